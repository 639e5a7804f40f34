//! `sherd-bench relay`: sherd's relay path, HAProxy, nginx stream and no balancer, in front of the same shards, in one
//! run; owns the order of things and leaves nothing running.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use self::field::Field;
use super::{
    ComparisonError, Lineup, Run, Scenario,
    idle::{SLACK_CONNECTIONS, fit},
};
use crate::{
    analysis::{Bound, Evidence, Target},
    contestant::{Choice, haproxy::Variant, nginx, sherd},
    interrupt::Interrupt,
    report::{Bulk, Origin, Progress, Report, Settings},
    sample::{LoadKind, Measure},
};

mod field;
mod idle;

/// All that can be told; of loads that aren't put on nothing is.
const MEASURES: [Measure; 13] = [
    Measure::CpuPerRequest,
    Measure::RequestsPerSecond,
    Measure::CpuPerConnection,
    Measure::ConnectionsPerSecond,
    Measure::CpuPerGigabyte,
    Measure::GigabytesPerSecond,
    Measure::CpuPerRequestAtRate,
    Measure::LatencyP50,
    Measure::LatencyP99,
    Measure::CpuPerEcho,
    Measure::EchoesPerSecond,
    Measure::CpuPerStreamGigabyte,
    Measure::StreamGigabytesPerSecond,
];

/// What the relay path is to reach.
pub const TARGETS: [Target; 5] = {
    let [requests, rate, connections, bulk] = targets(&PEERS, &HAPROXY);
    [requests, rate, connections, bulk, Target::IdleBytes { at_most: IDLE_BYTES }]
};
/// Of the relay's own memory, for an idle connection.
pub(super) const IDLE_BYTES: f64 = 2048.0;
const HAPROXY: [&str; 3] = [Variant::Auto.name(), Variant::Splice.name(), Variant::PerCore.name()];
const PEERS: [&str; 4] = [Variant::Auto.name(), Variant::Splice.name(), Variant::PerCore.name(), nginx::NAME];

/// What it is to reach under load, against balancers of these names.
pub(super) const fn targets(balancers: &'static [&'static str], haproxy: &'static [&'static str]) -> [Target; 4] {
    [
        Target::Peers { measure: Measure::CpuPerRequest, peers: balancers, bound: Bound::AtMost(0.9) },
        Target::Peers { measure: Measure::RequestsPerSecond, peers: balancers, bound: Bound::AtLeast(1.0) },
        Target::Peers { measure: Measure::ConnectionsPerSecond, peers: balancers, bound: Bound::AtLeast(1.0) },
        Target::Peers { measure: Measure::CpuPerGigabyte, peers: haproxy, bound: Bound::AtMost(0.95) },
    ]
}

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the report repeats.
    pub settings: Settings,
    /// Who is to take part.
    pub contestants: Vec<Choice>,
    /// What is put on them.
    pub loads: Vec<LoadKind>,
    /// Where installed peers are.
    pub peers: PathBuf,
    /// The `sherd` program, where there is one.
    pub sherd: Option<PathBuf>,
    /// HAProxy, where another than the installed one is wanted.
    pub haproxy: Option<PathBuf>,
    /// nginx, where another than the installed one is wanted.
    pub nginx: Option<PathBuf>,
    /// Envoy, where another than the installed one is wanted.
    pub envoy: Option<PathBuf>,
    /// What the report says of where it comes from.
    pub origin: Origin,
}

/// Runs it and reports. Everything it started has ended when it returns.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Report, ComparisonError> {
    let started = SystemTime::now();
    let mut settings = options.settings.clone();
    let mut remarks = Vec::new();
    settings.idle_connections = fit(settings.idle_connections, &mut remarks)?;
    let field = Field::start(options, &settings, scratch, progress, &mut remarks)?;
    field.verify(settings.answer_bytes, bulk(&settings).answer_bytes)?;
    let idle = idle::measure(&field, &settings, progress, interrupt)?;
    let (subject, again) = (field.subject(), field.control());
    let targets: &[Target] = if subject == sherd::NAME { &TARGETS } else { &[] };
    let lineup = Lineup {
        contestants: &field.contestants,
        entries: field.entries(),
        subject,
        control: (subject, &again),
        missing: field.missing.clone(),
    };
    let run = Run { origin: &options.origin, started, settings, remarks, interrupt, progress };
    let told = |measure: &Measure| options.loads.contains(&measure.load());
    let measures: Vec<Measure> = MEASURES.into_iter().filter(told).collect();
    let scenario = Scenario { name: "relay", loads: &options.loads, measures: &measures };
    scenario.run(lineup, Evidence { idle, ..Evidence::default() }, targets, run)
}

/// How many connections each contestant must be able to hold.
fn capacity(settings: &Settings) -> usize {
    settings.idle_connections.max(settings.connections).max(bulk(settings).connections) + SLACK_CONNECTIONS
}

/// The large answers; without any, they are as the small ones.
pub(super) fn bulk(settings: &Settings) -> Bulk {
    settings.bulk.unwrap_or(Bulk { connections: settings.connections, answer_bytes: settings.answer_bytes })
}
