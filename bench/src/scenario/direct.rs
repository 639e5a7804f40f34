//! `sherd-bench direct`: sherd's direct path against the same containers without any sherd and behind HAProxy, all in real
//! containers; owns the order of things and leaves nothing running.

use std::{path::Path, time::SystemTime};

use super::{
    ComparisonError, Lineup, Run, Scenario,
    field::{Base, Entrant, Field, FieldOptions, calls, conditions},
};
use crate::{
    analysis::{Bound, Evidence, Target},
    interrupt::Interrupt,
    measure::raise_open_files,
    report::{Origin, Progress, Report, Settings},
    sample::{LoadKind, Measure},
};

const SCENARIO: Scenario = Scenario {
    name: "direct",
    loads: &[LoadKind::KeepAlive, LoadKind::Connections, LoadKind::Open],
    measures: &[
        Measure::WholeCpuPerRequest,
        Measure::RequestsPerSecond,
        Measure::WholeCpuPerConnection,
        Measure::ConnectionsPerSecond,
        Measure::LatencyP50,
        Measure::LatencyP99,
        Measure::BalancerShare,
        Measure::BalancerShareOfConnections,
    ],
};

const BARE: [&str; 1] = [Entrant::Bare.name()];
const HAPROXY: [&str; 2] = [Entrant::Haproxy.name(), Entrant::HaproxyHost.name()];

/// What the direct path is to reach: nothing is lost against containers that have the port for themselves.
pub const TARGETS: [Target; 6] = [
    Target::Peers { measure: Measure::RequestsPerSecond, peers: &BARE, bound: Bound::AtLeast(0.99) },
    Target::Peers { measure: Measure::WholeCpuPerRequest, peers: &BARE, bound: Bound::AtMost(1.0 / 0.99) },
    Target::Peers { measure: Measure::ConnectionsPerSecond, peers: &BARE, bound: Bound::AtLeast(0.97) },
    Target::Peers { measure: Measure::LatencyP99, peers: &BARE, bound: Bound::AtMost(1.05) },
    Target::NoMoreCalls { than: Entrant::Bare.name() },
    Target::Peers { measure: Measure::RequestsPerSecond, peers: &HAPROXY, bound: Bound::AtLeast(1.6) },
];

/// Those whose shards have clients of their own; behind a balancer the figure is its choice of connections.
const COUNTED: [Entrant; 2] = [Entrant::SherdDirect, Entrant::Bare];

/// Connections that a balancer must be able to hold besides those of the load.
pub(super) const SLACK_CONNECTIONS: usize = 500;

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the report repeats.
    pub settings: Settings,
    /// Who takes part.
    pub field: FieldOptions,
    /// Requests, and connections, over which system calls are counted; 0 leaves it out.
    pub counted: u64,
    /// What the report says of where it comes from.
    pub origin: Origin,
}

/// Runs it and reports. Everything it started has ended when it returns; its image is the keeper's to remove.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Report, ComparisonError> {
    let started = SystemTime::now();
    let settings = options.settings.clone();
    let connections = settings.connections + SLACK_CONNECTIONS;
    raise_open_files(2 * connections as u64).map_err(|errno| ComparisonError::Host(errno.into()))?;
    let base = Base::make(&options.field, connections, scratch, progress)?;
    let field = Field::start(&base, progress, interrupt)?;
    field.verify(&[settings.answer_bytes, 0])?;
    let mut remarks = vec![format!("the server is {}", options.field.server.name())];
    remarks.push(conditions::check(&field)?);
    let count = calls::Count {
        of: &COUNTED,
        server: options.field.server,
        settings: &settings,
        times: options.counted,
        interrupt,
    };
    let calls = calls::count_if_possible(&field, count, scratch, progress, &mut remarks)?;
    let control = field.control();
    let subject = field.subject();
    let targets: &[Target] = if subject == Entrant::SherdDirect.name() { &TARGETS } else { &[] };
    let lineup = Lineup {
        contestants: &field.contestants,
        entries: field.entries(),
        subject,
        control: (&control.of, &control.to),
        missing: field.missing.clone(),
    };
    let run = Run { origin: &options.origin, started, settings, remarks, interrupt, progress };
    let report = SCENARIO.run(lineup, Evidence { calls, ..Evidence::default() }, targets, run)?;
    // What was restarted or fell back meanwhile was not measured as what the report calls it.
    conditions::check(&field)?;
    Ok(report)
}
