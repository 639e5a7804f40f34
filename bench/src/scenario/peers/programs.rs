//! What sherd's eBPF programs cost: a short load while the kernel counts their run times, apart from all other timing.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::super::{ComparisonError, field::Field};
use crate::{
    contestant::Contestant,
    interrupt::Interrupt,
    load::{self, Load, LoadError, Shape},
    measure::{BpfPrograms, BpfStats, BpfTime},
    report::{Progress, Settings},
    sample::{BpfLoad, BpfRuns},
};

/// Some hundred connections on a busy host.
const LEAST: Duration = Duration::from_secs(1);

/// Measures those of `field` that have programs; where the kernel cannot count, a remark says why.
pub(super) fn measure(
    field: &Field,
    settings: &Settings,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
    remarks: &mut Vec<String>,
) -> Result<Vec<BpfRuns>, ComparisonError> {
    let ours: Vec<&dyn Contestant> = field
        .contestants
        .iter()
        .zip(&field.entrants)
        .filter(|(_, entrant)| entrant.is_ours())
        .map(|(contestant, _)| contestant.as_ref())
        .collect();
    if ours.is_empty() {
        return Ok(Vec::new());
    }
    progress.say("run times of eBPF programs");
    let counting = BpfPrograms::default().times().and_then(|_| BpfStats::enable(scratch));
    let stats = match counting {
        Ok(stats) => stats,
        Err(error) => {
            remarks.push(format!("run times of eBPF programs are not counted: {error}"));
            return Ok(Vec::new());
        }
    };
    let found = ours.into_iter().map(|contestant| of_one(contestant, settings, interrupt)).collect::<Result<_, _>>()?;
    if stats.still_counts().map_err(ComparisonError::Host)? {
        return Ok(found);
    }
    remarks.push("run times of eBPF programs are not told: somebody else turned kernel.bpf_stats_enabled off".into());
    Ok(Vec::new())
}

fn of_one(contestant: &dyn Contestant, settings: &Settings, interrupt: &Interrupt) -> Result<BpfRuns, ComparisonError> {
    let name = &contestant.facts().name;
    let cgroup = contestant.cgroup();
    let programs = BpfPrograms::of(&contestant.balancer(), cgroup.as_deref()).map_err(ComparisonError::Host)?;
    let under = |shape| -> Result<BpfLoad, ComparisonError> {
        let load = Load {
            targets: contestant.addresses().to_vec(),
            connections: settings.connections,
            answer_bytes: settings.answer_bytes,
            shape,
            cpus: settings.load_cpus.clone(),
            warm_up: Duration::from_secs_f64(settings.warm_up_seconds),
            duration: Duration::from_secs_f64(settings.duration_seconds).max(LEAST),
        };
        let (outcome, before, after) =
            load::run(&load, interrupt, || programs.times()).map_err(|source| match source {
                LoadError::Interrupted => ComparisonError::Interrupted,
                source => ComparisonError::Load { contestant: name.clone(), source },
            })?;
        let (before, after) = (before.map_err(ComparisonError::Host)?, after.map_err(ComparisonError::Host)?);
        Ok(BpfLoad { requests: outcome.requests, programs: difference(&before, &after) })
    };
    Ok(BpfRuns {
        contestant: name.clone(),
        of_requests: under(Shape::KeepAlive)?,
        of_connections: under(Shape::ConnectionPerRequest)?,
    })
}

fn difference(before: &BTreeMap<String, BpfTime>, after: &BTreeMap<String, BpfTime>) -> BTreeMap<String, BpfTime> {
    let since = |name: &str, time: BpfTime| {
        let earlier = before.get(name).copied().unwrap_or_default();
        BpfTime { nanos: time.nanos.saturating_sub(earlier.nanos), runs: time.runs.saturating_sub(earlier.runs) }
    };
    after.iter().map(|(name, time)| (name.clone(), since(name, *time))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_before_is_not_counted() {
        let time = |nanos, runs| BpfTime { nanos, runs };
        let before = [("steer".to_owned(), time(100, 2))].into();
        let after = [("steer".to_owned(), time(350, 5)), ("account".to_owned(), time(7, 1))].into();
        let expected = [("steer".to_owned(), time(250, 3)), ("account".to_owned(), time(7, 1))].into();
        assert_eq!(difference(&before, &after), expected);
    }
}
