//! Whether a later report differs from an earlier one beyond noise: values in, changes out; pure, and reads no file.
//!
//! Between two runs a host changes too, and no pairs span both. What sherd's figures are to those of programs that did not change
//! (HAProxy, nginx, bare containers, each in the same version) was measured within pairs in either run, so where there are such,
//! that relation is what is compared. A difference counts if its interval excludes 1 and it is larger than the width of the control's
//! interval, which is what a run finds between a thing and itself.

mod comparison;
mod show;
mod trial;

pub use self::show::page;
use crate::{
    report::{AnyReport, Report},
    stats::Estimate,
};

/// With fewer samples an interval says nothing.
const MIN_SAMPLES: usize = 4;
const SEED: u64 = 1;

/// Two reports of one scenario, compared.
#[derive(Debug)]
pub struct Changes {
    /// The scenario's name.
    pub scenario: String,
    /// Date and commit of the earlier report.
    pub old: String,
    /// Of the later one.
    pub new: String,
    /// In what else than sherd the runs differ: host and settings. Where there is anything, changes may be its doing.
    pub differences: Vec<String>,
    /// Every measure of every contestant that is in both.
    pub changes: Vec<Change>,
}

/// One figure, then and now.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Of what.
    pub what: String,
    /// Whose; empty in trials.
    pub who: String,
    /// In words, then.
    pub old: String,
    /// And now.
    pub new: String,
    /// New ÷ old, if that can be told.
    pub absolute: Option<Estimate>,
    /// The same of its relation to programs that did not change.
    pub relative: Option<Estimate>,
    /// What it means.
    pub word: Word,
    /// Why it means that, where it isn't plain.
    pub because: String,
}

/// What a change means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Worse beyond noise.
    Regressed,
    /// Better beyond noise.
    Improved,
    /// No difference beyond noise.
    Same,
    /// These runs cannot tell.
    Undecided,
    /// Somebody else's, or a figure that only says how things were.
    Told,
}

/// Two reports are of different scenarios or kinds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a report of {old} and one of {new} have nothing in common")]
pub struct Unlike {
    old: String,
    new: String,
}

impl Changes {
    /// Compares `new` with `old`.
    pub fn between(old: &AnyReport, new: &AnyReport) -> Result<Self, Unlike> {
        let (mut differences, changes) = match (old, new) {
            _ if old.scenario() != new.scenario() => return Err(Unlike::of(old, new)),
            (AnyReport::Comparison(old), AnyReport::Comparison(new)) => {
                (settings(old, new), comparison::changes(old, new))
            }
            (AnyReport::Trial(old), AnyReport::Trial(new)) => (Vec::new(), trial::changes(old, new)),
            _ => return Err(Unlike::of(old, new)),
        };
        differences.extend(host(old, new));
        let origin = |report: &AnyReport| {
            format!("{}, commit {}", report.started(), report.origin().commit.as_deref().unwrap_or("unknown"))
        };
        Ok(Self { scenario: new.scenario().into(), old: origin(old), new: origin(new), differences, changes })
    }

    /// How many changes are `word`.
    pub fn count(&self, word: Word) -> usize {
        self.changes.iter().filter(|change| change.word == word).count()
    }
}

impl Unlike {
    fn of(old: &AnyReport, new: &AnyReport) -> Self {
        Self { old: old.scenario().into(), new: new.scenario().into() }
    }
}

/// In which facts two hosts differ.
fn host(old: &AnyReport, new: &AnyReport) -> Vec<String> {
    let (old, new) = (old.host(), new.host());
    let smt = |word: &Option<String>| word.as_deref().unwrap_or("unknown").to_owned();
    different([
        ("host", old.name.clone(), new.name.clone()),
        ("kernel", old.kernel.clone(), new.kernel.clone()),
        ("CPU", old.cpu.clone(), new.cpu.clone()),
        ("CPUs", format!("{:?} of {}", old.cpus, old.online), format!("{:?} of {}", new.cpus, new.online)),
        ("bytes of memory", old.memory_bytes.to_string(), new.memory_bytes.to_string()),
        ("frequency governors", format!("{:?}", old.governors), format!("{:?}", new.governors)),
        ("SMT", smt(&old.smt), smt(&new.smt)),
    ])
}

/// In which settings two comparisons differ, but for the number of pairs and the seed: these make figures surer, not other ones.
fn settings(old: &Report, new: &Report) -> Vec<String> {
    let (old, new) = (&old.header.settings, &new.header.settings);
    different([
        ("seconds of a sample", old.duration_seconds.to_string(), new.duration_seconds.to_string()),
        ("seconds of warm-up", old.warm_up_seconds.to_string(), new.warm_up_seconds.to_string()),
        ("connections", old.connections.to_string(), new.connections.to_string()),
        ("bytes of an answer", old.answer_bytes.to_string(), new.answer_bytes.to_string()),
        ("bulk load", format!("{:?}", old.bulk), format!("{:?}", new.bulk)),
        ("share of the open loop", old.open_share.to_string(), new.open_share.to_string()),
        ("CPUs of contestants", format!("{:?}", old.cpus), format!("{:?}", new.cpus)),
        ("CPUs of the load", format!("{:?}", old.load_cpus), format!("{:?}", new.load_cpus)),
    ])
}

fn different<const N: usize>(facts: [(&str, String, String); N]) -> Vec<String> {
    let differ = facts.into_iter().filter(|(_, old, new)| old != new);
    differ.map(|(what, old, new)| format!("{what}: {old} then, {new} now")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{self, Plan};

    fn report(seed: u64, factor: f64) -> AnyReport {
        AnyReport::Comparison(Box::new(testing::planned(&Plan { factor, foreign_share: 0.0, blocks: 10, seed })))
    }

    fn words(old: &AnyReport, new: &AnyReport) -> Vec<(String, Word)> {
        let changes = Changes::between(old, new).expect("the same scenario").changes;
        changes.into_iter().filter(|change| change.who == "sherd").map(|change| (change.what, change.word)).collect()
    }

    #[test]
    fn a_planted_regression_is_found_and_an_improvement_and_nothing() {
        let opposite = |word| if word == Word::Regressed { Word::Improved } else { Word::Regressed };
        for (factor, expected) in [(1.08, Word::Regressed), (0.92, Word::Improved), (1.0, Word::Same)] {
            let mut found = Vec::new();
            for seed in 0..4 {
                found.extend(words(&report(seed, 1.0), &report(seed + 100, factor)));
            }
            found.retain(|(what, _)| !what.contains("system calls") && !what.contains("idle"));
            // A control misses 1 about once in twenty times, and leaves its measure undecided then.
            let right = found.iter().filter(|(_, word)| *word == expected).count();
            let wrong = found.iter().filter(|(_, word)| *word == opposite(expected)).count();
            assert!(found.len() == 12 && right >= 8 && wrong <= 1, "{factor}: {found:?}");
        }
    }

    #[test]
    fn a_host_that_is_slower_for_all_is_no_regression() {
        let old = report(1, 1.0);
        let AnyReport::Comparison(mut slower) = report(2, 1.0) else { panic!("a comparison") };
        for sample in &mut slower.samples {
            sample.requests = sample.requests * 8 / 10;
            sample.latency_micros.p99 *= 1.3;
        }
        let found = words(&old, &AnyReport::Comparison(slower));
        assert!(found.iter().all(|(_, word)| *word != Word::Regressed), "{found:?}");
    }

    #[test]
    fn noise_and_a_control_that_is_off_leave_it_open() {
        let noisy = testing::planned(&Plan { factor: 1.5, foreign_share: 0.3, blocks: 10, seed: 3 });
        let found = words(&report(1, 1.0), &AnyReport::Comparison(Box::new(noisy)));
        assert!(
            found.iter().filter(|(what, _)| what.contains("/s")).all(|(_, word)| *word == Word::Undecided),
            "{found:?}"
        );
        let AnyReport::Comparison(mut off) = report(2, 1.5) else { panic!("a comparison") };
        for control in &mut off.analysis.control {
            (control.estimate.low, control.estimate.high) = (1.01, 1.02);
        }
        let found = words(&report(1, 1.0), &AnyReport::Comparison(off));
        assert!(found.iter().all(|(_, word)| *word != Word::Regressed), "{found:?}");
    }

    #[test]
    fn a_wide_control_hides_what_is_smaller_than_it() {
        let AnyReport::Comparison(mut wide) = report(2, 1.08) else { panic!("a comparison") };
        for control in &mut wide.analysis.control {
            (control.estimate.low, control.estimate.high) = (0.85, 1.15);
        }
        let found = words(&report(1, 1.0), &AnyReport::Comparison(wide));
        assert!(found.iter().all(|(_, word)| *word != Word::Regressed), "{found:?}");
    }

    #[test]
    fn other_hosts_and_settings_are_told() {
        let (old, AnyReport::Comparison(mut new)) = (report(1, 1.0), report(2, 1.0)) else { panic!("a comparison") };
        new.header.host.kernel = "Linux 7".into();
        new.header.settings.connections = 8;
        new.header.settings.pairs = 100;
        let changes = Changes::between(&old, &AnyReport::Comparison(new)).expect("the same scenario");
        assert_eq!(changes.differences, ["connections: 64 then, 8 now", "kernel: Linux 6.18 then, Linux 7 now"]);
        let trial = AnyReport::Trial(Box::new(testing::findings()));
        assert!(Changes::between(&old, &trial).is_err());
    }
}
