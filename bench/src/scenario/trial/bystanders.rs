//! CPU time that the host spends on what is no part of a run.

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::super::ComparisonError;
use crate::measure::{HostTime, allowed_cpus, cpu_time};

/// A moment, and what the run's processes had used then.
pub(in crate::scenario) struct Bystanders {
    processes: Vec<Pid>,
    at: Instant,
    own: Duration,
    host: HostTime,
}

impl Bystanders {
    /// Everybody but `processes`, from now on.
    pub(in crate::scenario) fn of(processes: Vec<Pid>) -> Result<Self, ComparisonError> {
        let own = used(&processes)?;
        Ok(Self { processes, at: Instant::now(), own, host: HostTime::read().map_err(ComparisonError::Host)? })
    }

    /// Percent of the host's CPU time that they have used since. Work in interrupts, which no process is charged for, is in it.
    pub(in crate::scenario) fn percent(&self) -> Result<f64, ComparisonError> {
        let host = HostTime::read().map_err(ComparisonError::Host)?.since(self.host);
        let own = used(&self.processes)?.saturating_sub(self.own);
        let cpus = allowed_cpus().map_err(ComparisonError::Host)?.len();
        let whole = self.at.elapsed().as_secs_f64() * cpus as f64;
        Ok(100.0 * host.busy.saturating_sub(own).as_secs_f64() / whole)
    }
}

fn used(processes: &[Pid]) -> Result<Duration, ComparisonError> {
    cpu_time(processes).map_err(|source| ComparisonError::Process { contestant: "the run".into(), source })
}
