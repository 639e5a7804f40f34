//! `sherd-bench balance`: how evenly a group's slots have connections, told by those who are connected; owns the order of things and leaves
//! nothing running.

use std::{fmt, io, path::Path, str::FromStr};

use super::{
    ComparisonError,
    trial::{Field, Setting, TrialOptions, at_most, millis},
};
use crate::{
    contestant::{Contestant, GroupPath},
    interrupt::Interrupt,
    load::{Crowd, LoadError, Origins},
    report::{Findings, Progress, Series},
};

/// Open for each slot before anything is looked at: a slot more or less of few connections says nothing.
const FIRST_PER_SLOT: usize = 8;
/// One leaves and one comes, so often for each slot and round.
const EXCHANGES_PER_SLOT: usize = 8;
/// Of `balanced`: what the fullest may have above the mean.
const MOST_EXCESS: f64 = 2.0;
/// As the kernel's own test goes.
pub const MOST_SLOTS: usize = 64;

/// How a port is steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// By what slots have to do.
    Balanced,
    /// By the 4-tuple.
    Connection,
    /// By the client's address.
    Client,
}

/// A word is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy {name:?} here: choose from balanced, connection, client")]
pub struct PolicyError {
    name: String,
}

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What every trial is told.
    pub trial: TrialOptions,
    /// How bytes reach the shards; one after the other.
    pub paths: Vec<GroupPath>,
    /// One after the other.
    pub policies: Vec<Policy>,
    /// Numbers of slots, one after the other; each has CPUs.
    pub slots: Vec<usize>,
    /// Bursts.
    pub rounds: usize,
    /// Connections of a burst for each slot.
    pub burst: usize,
}

impl Policy {
    /// In specifications and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::Connection => "connection",
            Self::Client => "client",
        }
    }

    /// Clients that it can tell apart.
    fn origins(self) -> Origins {
        if self == Self::Client { Origins::ManyAddresses } else { Origins::OneAddress }
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(name: &str) -> Result<Self, PolicyError> {
        let found = [Self::Balanced, Self::Connection, Self::Client].into_iter().find(|policy| policy.name() == name);
        found.ok_or_else(|| PolicyError { name: name.to_owned() })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Runs it and reports.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Findings, ComparisonError> {
    let (mut series, mut facts, mut verdicts, mut last) = (Vec::new(), Vec::new(), Vec::new(), None);
    for path in &options.paths {
        for policy in &options.policies {
            for slots in &options.slots {
                let cpus = options.trial.cpus[..*slots].to_vec();
                let trial = TrialOptions { cpus, ..options.trial.clone() };
                let setting = Setting { path: *path, policy: policy.name(), on_own_engine: false };
                let field = Field::start_as(setting, &trial, scratch, progress, interrupt)?;
                let word = if *path == GroupPath::Direct { "direct" } else { "relay" };
                let name = format!("{policy}, {slots} slots, {word}");
                let told = crowd(options, &field, *policy, progress, &name)?;
                if *policy == Policy::Balanced {
                    let bound = |what: &str, series: &Series| {
                        at_most(&format!("connections above the mean, {what}, {name}"), series, 1.0, MOST_EXCESS, &[])
                    };
                    verdicts.extend([bound("after bursts", &told[0]), bound("one by one", &told[1])]);
                }
                series.extend(told);
                facts.push(field.group.facts().clone());
                last = Some(field.report("balance", Vec::new(), Vec::new(), Vec::new())?);
            }
        }
    }
    let findings = last.ok_or(ComparisonError::Nobody { missing: Vec::new() })?;
    let remarks = vec![format!(
        "a burst is {} connections for each slot, begun at once; then all but {FIRST_PER_SLOT} for each slot leave; \
         one by one, {EXCHANGES_PER_SLOT} for each slot leave and come",
        options.burst
    )];
    Ok(Findings { series, contestants: facts, verdicts, remarks, ..findings })
}

/// Connections above the mean in the fullest slot after each burst, and after each that comes by itself; and how long bursts took.
fn crowd(
    options: &Options,
    field: &Field<'_>,
    policy: Policy,
    progress: &mut Progress,
    name: &str,
) -> Result<[Series; 3], ComparisonError> {
    let fail = |source: io::Error| {
        let cpu = field.options.load_cpus.first().copied().unwrap_or(0);
        field.load_error(LoadError::Thread { cpu, action: "hold its connections", source })
    };
    let slots = field.group.shards().len();
    let mut crowd = Crowd::new(field.group.addresses()[0], policy.origins(), field.options.seed);
    let (mut bursts, mut single, mut took) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..FIRST_PER_SLOT * slots {
        crowd.arrive().map_err(fail)?;
    }
    progress.restart();
    for round in 0..options.rounds {
        progress.step(round, options.rounds, name);
        if field.interrupt.is_raised() {
            return Err(ComparisonError::Interrupted);
        }
        took.push(millis(crowd.burst(options.burst * slots).map_err(fail)?));
        bursts.push(crowd.excess(slots));
        while crowd.len() > FIRST_PER_SLOT * slots {
            crowd.depart().map_err(fail)?;
        }
        // Whom departures have left with more than others is no fault of steering: what comes makes it even again.
        for _ in 0..EXCHANGES_PER_SLOT * slots {
            crowd.depart().map_err(fail)?;
            crowd.arrive().map_err(fail)?;
        }
        single.push(crowd.excess(slots));
    }
    progress.clear();
    Ok([
        Series::new(format!("the fullest slot above the mean after a burst, {name}"), bursts),
        Series::new(format!("  after as many came one by one, {name}"), single),
        Series::new(format!("  ms in which a burst was begun, {name}"), took),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_policy() {
        for policy in [Policy::Balanced, Policy::Connection, Policy::Client] {
            assert_eq!(policy.name().parse(), Ok(policy));
        }
        assert!("local".parse::<Policy>().is_err());
    }
}
