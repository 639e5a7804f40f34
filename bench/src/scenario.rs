//! What is compared with what, under which loads; owns the order of a run and its way to a report.

use std::time::SystemTime;

use self::rounds::{Entry, Rounds};
pub use self::{
    error::ComparisonError,
    field::{Entrant, EntrantError, FieldOptions},
};
use crate::{
    analysis::{Cast, Evidence, Target, analyse},
    contestant::Contestant,
    interrupt::Interrupt,
    measure::HostFacts,
    report::{Header, Missing, Origin, Progress, Report, Settings, utc},
    sample::{LoadKind, Measure},
};

pub mod balance;
pub mod chaos;
pub mod direct;
mod error;
pub mod failover;
mod field;
pub mod graft;
mod idle;
pub mod memory;
pub mod peers;
pub mod plan;
pub mod relay;
pub mod rollout;
mod rounds;
pub mod sharding;
pub mod stall;
pub mod steer;
mod told;
pub mod trial;
pub mod tune;
pub mod verify;

/// What makes one scenario another.
struct Scenario<'a> {
    name: &'static str,
    /// In the order in which they run.
    loads: &'a [LoadKind],
    /// In the order of tables.
    measures: &'a [Measure],
}

/// Who takes part, all of it up and shown to work.
struct Lineup<'a> {
    contestants: &'a [Box<dyn Contestant>],
    entries: Vec<Entry<'a>>,
    subject: &'a str,
    /// Two entries whose ratio is known to be 1.
    control: (&'a str, &'a str),
    missing: Vec<Missing>,
}

/// What a run is told and what it has to say.
struct Run<'a> {
    origin: &'a Origin,
    started: SystemTime,
    settings: Settings,
    remarks: Vec<String>,
    interrupt: &'a Interrupt,
    progress: &'a mut Progress,
}

impl Scenario<'_> {
    /// Measures all in interleaved rounds and concludes.
    fn run(
        &self,
        lineup: Lineup<'_>,
        evidence: Evidence,
        targets: &[Target],
        mut run: Run<'_>,
    ) -> Result<Report, ComparisonError> {
        let rounds = Rounds::prepare(&lineup.entries, self.loads, &run.settings, run.interrupt, run.progress)?;
        run.remarks.push(format!("the open loop's rate is {:.0} requests/s", rounds.open_requests_per_second));
        let samples = rounds.run(run.progress)?;
        let failed: u64 = samples.iter().flat_map(|sample| sample.errors.values()).sum();
        if failed > 0 {
            run.remarks.push(format!("{failed} requests failed; the JSON says which and how"));
        }
        let contestants: Vec<_> = lineup.contestants.iter().map(|contestant| contestant.facts().clone()).collect();
        let names: Vec<String> = contestants.iter().map(|facts| facts.name.clone()).collect();
        let cast =
            Cast { subject: lineup.subject, control: lineup.control, contestants: &names, measures: self.measures };
        let host = HostFacts::read().map_err(ComparisonError::Host)?;
        let analysis = analyse(cast, &samples, &evidence, targets, host.online, run.settings.seed);
        let header = Header {
            origin: run.origin.clone(),
            started: utc(run.started),
            took_seconds: run.started.elapsed().map_or(0.0, |took| took.as_secs_f64()),
            host,
            settings: run.settings,
            contestants,
            missing: lineup.missing,
            remarks: run.remarks,
        };
        Ok(Report { scenario: self.name.into(), header, analysis, evidence, samples })
    }

    /// Tells ratios and verdicts of another subject, too.
    fn tell_also(&self, report: &mut Report, subject: &str, control: (&str, &str), targets: &[Target]) {
        let names: Vec<String> = report.header.contestants.iter().map(|facts| facts.name.clone()).collect();
        let cast = Cast { subject, control, contestants: &names, measures: self.measures };
        let seed = report.header.settings.seed;
        report.analysis.tell_also(cast, &report.samples, &report.evidence, targets, seed);
    }
}
