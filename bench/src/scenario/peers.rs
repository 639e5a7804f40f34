//! `sherd-bench peers`: both of sherd's paths against everything else that can stand in front of the same containers, under
//! all loads; owns the order of things and leaves nothing running.

use std::{path::Path, time::SystemTime};

use super::{
    ComparisonError, Lineup, Run, Scenario,
    direct::{self, SLACK_CONNECTIONS},
    field::{Base, Entrant, Field, FieldOptions, again, calls, conditions},
    relay,
};
use crate::{
    analysis::{Evidence, Target},
    interrupt::Interrupt,
    measure::raise_open_files,
    report::{Origin, Progress, Report, Settings},
    sample::{LoadKind, Measure},
};

mod programs;

const SCENARIO: Scenario = Scenario {
    name: "peers",
    loads: &[LoadKind::KeepAlive, LoadKind::Connections, LoadKind::Bulk, LoadKind::Open],
    measures: &[
        Measure::RequestsPerSecond,
        Measure::WholeCpuPerRequest,
        Measure::CpuPerRequest,
        Measure::SwitchesPerRequest,
        Measure::ConnectionsPerSecond,
        Measure::WholeCpuPerConnection,
        Measure::CpuPerConnection,
        Measure::SwitchesPerConnection,
        Measure::GigabytesPerSecond,
        Measure::WholeCpuPerGigabyte,
        Measure::CpuPerGigabyte,
        Measure::LatencyP50,
        Measure::LatencyP99,
        Measure::WholeCpuPerRequestAtRate,
        Measure::CpuPerRequestAtRate,
        Measure::BalancerShare,
        Measure::BalancerShareOfConnections,
    ],
};

const BALANCERS: [&str; 4] =
    [Entrant::Haproxy.name(), Entrant::HaproxyHost.name(), Entrant::HaproxySplice.name(), Entrant::NginxHost.name()];
const HAPROXY: [&str; 3] = [Entrant::Haproxy.name(), Entrant::HaproxyHost.name(), Entrant::HaproxySplice.name()];

const RELAY: &str = Entrant::SherdRelay.name();

/// What the relay path is to reach here as well as in `relay`.
pub const RELAY_TARGETS: [Target; 4] = relay::targets(&BALANCERS, &HAPROXY);

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
    let bulk = relay::bulk(&settings);
    let connections = settings.connections.max(bulk.connections) + SLACK_CONNECTIONS;
    raise_open_files(2 * connections as u64).map_err(|errno| ComparisonError::Host(errno.into()))?;
    let base = Base::make(&options.field, connections, scratch, progress)?;
    let field = Field::start(&base, progress, interrupt)?;
    field.verify(&[settings.answer_bytes, bulk.answer_bytes, 0])?;
    let mut remarks = vec![format!("the server is {}", options.field.server.name())];
    remarks.push(conditions::check(&field)?);
    let count = calls::Count {
        of: &Entrant::ALL,
        server: options.field.server,
        settings: &settings,
        times: options.counted,
        interrupt,
    };
    let calls = calls::count_if_possible(&field, count, scratch, progress, &mut remarks)?;
    let bpf = programs::measure(&field, &settings, scratch, progress, interrupt, &mut remarks)?;
    let control = field.control();
    let control = (&*control.of, &*control.to);
    let subject = field.subject();
    let lineup = Lineup {
        contestants: &field.contestants,
        // Bare containers have no balancer whose CPU time could be compared with itself.
        entries: field.entries_with_again(RELAY),
        subject,
        control,
        missing: field.missing.clone(),
    };
    let run = Run { origin: &options.origin, started, settings, remarks, interrupt, progress };
    let mut report = SCENARIO.run(lineup, Evidence { calls, bpf, ..Evidence::default() }, targets(subject), run)?;
    for other in [Entrant::SherdDirect.name(), RELAY] {
        if other != subject && field.takes_part(other) {
            SCENARIO.tell_also(&mut report, other, (RELAY, &again(RELAY)), targets(other));
        }
    }
    // What was restarted or fell back meanwhile was not measured as what the report calls it.
    conditions::check(&field)?;
    Ok(report)
}

/// What `subject` is to reach; nothing where it isn't sherd's.
fn targets(subject: &str) -> &'static [Target] {
    match subject.parse() {
        Ok(Entrant::SherdDirect) => &direct::TARGETS,
        Ok(Entrant::SherdRelay) => &RELAY_TARGETS,
        _ => &[],
    }
}
