//! What a trial has to say, as it is found; owns the way to a report.

use std::time::SystemTime;

use super::ComparisonError;
use crate::{
    analysis::Verdict,
    contestant::Facts,
    measure::HostFacts,
    report::{Findings, Origin, Series, utc},
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) contestants: Vec<Facts>,
    pub(super) series: Vec<Series>,
    pub(super) remarks: Vec<String>,
    pub(super) verdicts: Vec<Verdict>,
}

impl Told {
    pub(super) fn report(
        self,
        scenario: &'static str,
        origin: &Origin,
        started: SystemTime,
    ) -> Result<Findings, ComparisonError> {
        Ok(Findings {
            scenario: scenario.into(),
            origin: origin.clone(),
            started: utc(started),
            took_seconds: started.elapsed().map_or(0.0, |took| took.as_secs_f64()),
            host: HostFacts::read().map_err(ComparisonError::Host)?,
            contestants: self.contestants,
            series: self.series,
            timelines: Vec::new(),
            remarks: self.remarks,
            verdicts: self.verdicts,
        })
    }
}
