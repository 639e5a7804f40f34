//! `sherd-bench relay`: sherd's relay path, HAProxy, nginx stream and no balancer, in front of the same shards, in one
//! run; owns the order of things and leaves nothing running.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

pub use self::error::RelayError;
use self::{field::Field, rounds::Rounds};
use crate::{
    analysis::{Bound, Cast, Target, analyse},
    contestant::{Choice, haproxy::Variant, nginx, sherd},
    interrupt::Interrupt,
    measure::{HostFacts, raise_open_files},
    report::{Header, Progress, Report, Settings, utc},
    sample::Measure,
};

mod error;
mod field;
mod idle;
mod rounds;

/// What the relay path is to reach.
pub const TARGETS: [Target; 5] = [
    Target::Peers { measure: Measure::CpuPerRequest, peers: &PEERS, bound: Bound::AtMost(0.9) },
    Target::Peers { measure: Measure::RequestsPerSecond, peers: &PEERS, bound: Bound::AtLeast(1.0) },
    Target::Peers { measure: Measure::ConnectionsPerSecond, peers: &PEERS, bound: Bound::AtLeast(1.0) },
    Target::Peers { measure: Measure::CpuPerGigabyte, peers: &HAPROXY, bound: Bound::AtMost(0.95) },
    Target::IdleBytes { at_most: 2048.0 },
];
const HAPROXY: [&str; 3] = [Variant::Auto.name(), Variant::Splice.name(), Variant::PerCore.name()];
const PEERS: [&str; 4] = [Variant::Auto.name(), Variant::Splice.name(), Variant::PerCore.name(), nginx::NAME];

/// Connections that a balancer must be able to hold besides those of the largest load.
const SLACK_CONNECTIONS: usize = 500;
/// Files that a balancer may have open besides two for each connection: HAProxy's pipes, listeners, logs.
const OTHER_FILES: usize = 2000;

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the report repeats.
    pub settings: Settings,
    /// Who is to take part.
    pub contestants: Vec<Choice>,
    /// Where installed peers are.
    pub peers: PathBuf,
    /// The `sherd` program, where there is one.
    pub sherd: Option<PathBuf>,
    /// HAProxy, where another than the installed one is wanted.
    pub haproxy: Option<PathBuf>,
    /// nginx, where another than the installed one is wanted.
    pub nginx: Option<PathBuf>,
    /// As typed.
    pub command_line: String,
    /// What this was built from, as far as is known.
    pub commit: Option<String>,
}

/// Runs it and reports. Everything it started has ended when it returns.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Report, RelayError> {
    let started = SystemTime::now();
    let mut settings = options.settings.clone();
    let mut remarks = Vec::new();
    fit_idle_connections(&mut settings, &mut remarks)?;
    let field = Field::start(options, &settings, scratch, progress, &mut remarks)?;
    field.verify(settings.answer_bytes, settings.bulk_bytes)?;
    let idle = idle::measure(&field, &settings, progress, interrupt)?;
    let rounds = Rounds::prepare(&field, &settings, interrupt, progress)?;
    remarks.push(format!("the open loop's rate is {:.0} requests/s", rounds.open_requests_per_second));
    let samples = rounds.run(progress)?;
    let failed: u64 = samples.iter().flat_map(|sample| sample.errors.values()).sum();
    if failed > 0 {
        remarks.push(format!("{failed} requests failed; the JSON says which and how"));
    }
    let contestants: Vec<_> = field.contestants.iter().map(|contestant| contestant.facts().clone()).collect();
    let names: Vec<String> = contestants.iter().map(|facts| facts.name.clone()).collect();
    let cast = Cast { subject: field.subject(), control: &field.control(), contestants: &names };
    let targets: &[Target] = if field.subject() == sherd::NAME { &TARGETS } else { &[] };
    let host = HostFacts::read().map_err(RelayError::Host)?;
    let analysis = analyse(cast, &samples, &idle, targets, host.online, settings.seed);
    let header = Header {
        command_line: options.command_line.clone(),
        commit: options.commit.clone(),
        started: utc(started),
        took_seconds: started.elapsed().map_or(0.0, |took| took.as_secs_f64()),
        host,
        settings,
        contestants,
        missing: field.missing.clone(),
        remarks,
    };
    Ok(Report { scenario: "relay", header, analysis, idle, samples })
}

/// A balancer needs two files for each connection; where the limit can't be raised that far there are fewer of them.
fn fit_idle_connections(settings: &mut Settings, remarks: &mut Vec<String>) -> Result<(), RelayError> {
    let wanted = 2 * (settings.idle_connections + SLACK_CONNECTIONS) + OTHER_FILES;
    let limit = raise_open_files(wanted as u64).map_err(|errno| RelayError::Host(errno.into()))?;
    let affordable = ((limit as usize).saturating_sub(OTHER_FILES) / 2).saturating_sub(SLACK_CONNECTIONS);
    if affordable < settings.idle_connections {
        remarks.push(format!(
            "{affordable} idle connections instead of {}: the limit of open files is {limit} and cannot be raised",
            settings.idle_connections
        ));
        settings.idle_connections = affordable;
    }
    Ok(())
}

/// How many connections each contestant must be able to hold.
fn capacity(settings: &Settings) -> usize {
    settings.idle_connections.max(settings.connections).max(settings.bulk_connections) + SLACK_CONNECTIONS
}
