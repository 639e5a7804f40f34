//! Targets and whether they hold: a target holds when its whole interval is on the right side, and is undecided when the
//! interval lies across.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Evidence, Noise, Ratio};
use crate::{
    sample::{IdleMemory, Measure, SystemCalls},
    stats::Estimate,
};

/// With fewer pairs an interval says nothing: it is the range of what was seen.
const MIN_PAIRS: usize = 4;

/// Fewer than one in so many repetitions is the tracer's coming and going.
const MAX_EXTRA_CALLS: f64 = 0.01;

/// What a subject is to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Against the best of these peers.
    Peers {
        /// Of what.
        measure: Measure,
        /// Those that take part count.
        peers: &'static [&'static str],
        /// The limit.
        bound: Bound,
    },
    /// System calls of its shards, against those of another's.
    NoMoreCalls {
        /// Against whom.
        than: &'static str,
    },
    /// Own memory per idle connection.
    IdleBytes {
        /// The limit.
        at_most: f64,
    },
}

/// What ratios of one measure are to reach, as a report has it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Sought {
    /// Of what.
    pub measure: Measure,
    /// Against the best of these.
    pub peers: Vec<String>,
    /// The limit.
    pub bound: Bound,
}

/// A limit for a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// Less is better.
    AtMost(f64),
    /// More is better.
    AtLeast(f64),
}

/// Whether a target holds.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Verdict {
    /// The target in words.
    pub target: String,
    /// What was found.
    pub found: String,
    /// The answer.
    pub word: VerdictWord,
    /// Why there is no answer.
    pub because: Option<String>,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictWord {
    /// It holds.
    Held,
    /// It doesn't.
    NotHeld,
    /// This run cannot tell.
    Undecided,
}

impl Target {
    /// With what a verdict on it begins, whoever took part: the target in words, without its peers.
    pub fn title(&self) -> String {
        match self {
            Self::Peers { measure, bound, .. } => format!("{} {bound} × the best", measure.title()),
            Self::NoMoreCalls { than } => format!("no more system calls per request and connection than {than}"),
            Self::IdleBytes { at_most } => format!("memory per idle connection ≤ {at_most} bytes"),
        }
    }

    /// The target in words, with all peers that count.
    pub fn in_words(&self) -> String {
        match self {
            Self::Peers { peers, .. } => format!("{} of {}", self.title(), peers.join(", ")),
            Self::NoMoreCalls { .. } | Self::IdleBytes { .. } => self.title(),
        }
    }

    pub(super) fn sought(&self) -> Option<Sought> {
        let Self::Peers { measure, peers, bound } = self else { return None };
        let peers = peers.iter().map(|peer| (*peer).to_owned()).collect();
        Some(Sought { measure: *measure, peers, bound: *bound })
    }

    /// Begins with the subject's name: a run may have several.
    pub(super) fn judge(
        &self,
        subject: &str,
        ratios: &[Ratio],
        control: &[Ratio],
        evidence: &Evidence,
        noise: &Noise,
    ) -> Verdict {
        let mut verdict = match self {
            Self::Peers { measure, peers, bound } => {
                let is_peer = |ratio: &&Ratio| ratio.measure == *measure && peers.contains(&ratio.to.as_str());
                let found: Vec<&Ratio> = ratios.iter().filter(is_peer).collect();
                let itself = control.iter().find(|ratio| ratio.measure == *measure);
                judge_ratio(*measure, peers, *bound, &found, itself, noise)
            }
            Self::NoMoreCalls { than } => {
                let of = |name: &str| evidence.calls.iter().find(|calls| calls.contestant == name);
                judge_calls(than, of(subject), of(than))
            }
            Self::IdleBytes { at_most } => {
                let of_subject = evidence.idle.iter().find(|memory| memory.contestant == subject);
                judge_idle(*at_most, of_subject.and_then(IdleMemory::bytes_per_connection))
            }
        };
        verdict.target = format!("{subject}: {}", verdict.target);
        verdict
    }
}

fn judge_ratio(
    measure: Measure,
    peers: &[&str],
    bound: Bound,
    ratios: &[&Ratio],
    itself: Option<&Ratio>,
    noise: &Noise,
) -> Verdict {
    let Some(closest) = bound.closest(ratios) else {
        return Verdict {
            target: format!("{} {bound} × the best peer", measure.title()),
            found: String::new(),
            word: VerdictWord::Undecided,
            because: Some(format!("none of {} took part", peers.join(", "))),
        };
    };
    let there: Vec<&str> = ratios.iter().map(|ratio| ratio.to.as_str()).collect();
    let Estimate { ratio, low, high, pairs } = closest.estimate;
    let too_few = (pairs < MIN_PAIRS).then(|| format!("{pairs} pairs are too few, {MIN_PAIRS} would do"));
    let off_control = itself.filter(|control| !control.estimate.includes(1.0)).map(|control| {
        let Estimate { low, high, .. } = control.estimate;
        format!("the control, which should be 1, is {low:.3}–{high:.3}")
    });
    let because = noise.complaint().or(too_few).or(off_control);
    Verdict {
        target: format!("{} {bound} × the best of {}", measure.title(), there.join(", ")),
        found: format!("{ratio:.3} ({low:.3}–{high:.3}) × {}", closest.to),
        word: if because.is_some() { VerdictWord::Undecided } else { bound.judge(&closest.estimate) },
        because,
    }
}

fn judge_calls(than: &str, subject: Option<&SystemCalls>, other: Option<&SystemCalls>) -> Verdict {
    let target = format!("no more system calls per request and connection than {than}");
    let (Some(subject), Some(other)) = (subject, other) else {
        let because = Some("they were not counted".into());
        return Verdict { target, found: String::new(), word: VerdictWord::Undecided, because };
    };
    let requests = subject.per_request() - other.per_request();
    let connections = subject.per_connection() - other.per_connection();
    let held = requests.max(connections) < MAX_EXTRA_CALLS;
    let word = if held { VerdictWord::Held } else { VerdictWord::NotHeld };
    Verdict { target, found: format!("{requests:+.3} and {connections:+.3}"), word, because: None }
}

fn judge_idle(at_most: f64, found: Option<f64>) -> Verdict {
    let target = format!("memory per idle connection ≤ {at_most:.0} bytes");
    let Some(bytes) = found else {
        let because = Some("it was not measured".into());
        return Verdict { target, found: String::new(), word: VerdictWord::Undecided, because };
    };
    let word = if bytes <= at_most { VerdictWord::Held } else { VerdictWord::NotHeld };
    Verdict { target, found: format!("{bytes:.0} bytes"), word, because: None }
}

impl Bound {
    /// The ratio that is hardest to meet: the one to the best peer.
    fn closest<'r>(self, ratios: &[&'r Ratio]) -> Option<&'r Ratio> {
        let order = |a: &&Ratio, b: &&Ratio| a.estimate.ratio.total_cmp(&b.estimate.ratio);
        match self {
            Self::AtMost(_) => ratios.iter().copied().max_by(order),
            Self::AtLeast(_) => ratios.iter().copied().min_by(order),
        }
    }

    fn judge(self, estimate: &Estimate) -> VerdictWord {
        let (held, not_held) = match self {
            Self::AtMost(limit) => (estimate.high <= limit, estimate.low > limit),
            Self::AtLeast(limit) => (estimate.low >= limit, estimate.high < limit),
        };
        match (held, not_held) {
            (true, _) => VerdictWord::Held,
            (_, true) => VerdictWord::NotHeld,
            _ => VerdictWord::Undecided,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, limit) = match self {
            Self::AtMost(limit) => ('≤', limit),
            Self::AtLeast(limit) => ('≥', limit),
        };
        write!(f, "{sign} {}", (limit * 1e4).round() / 1e4)
    }
}

impl fmt::Display for VerdictWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Held => "held",
            Self::NotHeld => "NOT held",
            Self::Undecided => "undecided",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Noise = Noise { stolen_share: 0.0, foreign_share: 0.0 };
    const TARGET: Target =
        Target::Peers { measure: Measure::CpuPerRequest, peers: &["haproxy", "nginx"], bound: Bound::AtMost(0.9) };

    fn to(peer: &str, low: f64, ratio: f64, high: f64) -> Ratio {
        let estimate = Estimate { ratio, low, high, pairs: 9 };
        Ratio { measure: Measure::CpuPerRequest, of: "sherd".into(), to: peer.into(), estimate }
    }

    #[test]
    fn the_best_peer_counts_and_the_whole_interval() {
        let check = |ratios: &[Ratio], expected| {
            assert_eq!(TARGET.judge("sherd", ratios, &[], &Evidence::default(), &QUIET).word, expected, "{ratios:?}");
        };
        check(&[to("haproxy", 0.7, 0.8, 0.85), to("nginx", 0.5, 0.6, 0.7)], VerdictWord::Held);
        check(&[to("haproxy", 0.7, 0.8, 0.85), to("nginx", 0.91, 0.95, 0.99)], VerdictWord::NotHeld);
        check(&[to("haproxy", 0.85, 0.88, 0.92), to("nginx", 0.5, 0.6, 0.7)], VerdictWord::Undecided);
        check(&[to("direct", 0.5, 0.5, 0.5)], VerdictWord::Undecided);
    }

    #[test]
    fn noise_and_a_control_beside_one_conclude_nothing() {
        let held = [to("haproxy", 0.7, 0.8, 0.85)];
        let noisy = Noise { foreign_share: 0.5, ..QUIET };
        let beside = [to("sherd again", 1.01, 1.02, 1.03)];
        let around = [to("sherd again", 0.99, 1.0, 1.01)];
        for (control, noise, expected) in [
            (&around, QUIET, VerdictWord::Held),
            (&around, noisy, VerdictWord::Undecided),
            (&beside, QUIET, VerdictWord::Undecided),
        ] {
            let verdict = TARGET.judge("sherd", &held, control, &Evidence::default(), &noise);
            assert_eq!(verdict.word, expected);
            assert_eq!(verdict.because.is_some(), expected == VerdictWord::Undecided);
        }
    }

    #[test]
    fn few_pairs_conclude_nothing() {
        let mut held = to("haproxy", 0.7, 0.8, 0.85);
        held.estimate.pairs = 3;
        assert_eq!(TARGET.judge("sherd", &[held], &[], &Evidence::default(), &QUIET).word, VerdictWord::Undecided);
    }

    #[test]
    fn calls_are_counted_on_both_sides_or_not_judged() {
        let calls = |contestant: &str, of_connections| SystemCalls {
            contestant: contestant.into(),
            repetitions: 1000,
            of_requests: [("read".to_owned(), 2000)].into(),
            of_connections: [("accept4".to_owned(), of_connections)].into(),
        };
        let check = |calls: Vec<SystemCalls>, expected| {
            let evidence = Evidence { calls, ..Evidence::default() };
            let verdict = Target::NoMoreCalls { than: "bare" }.judge("sherd", &[], &[], &evidence, &QUIET);
            assert_eq!(verdict.word, expected, "{verdict:?}");
        };
        check(vec![calls("sherd", 1003), calls("bare", 1000)], VerdictWord::Held);
        check(vec![calls("sherd", 2000), calls("bare", 1000)], VerdictWord::NotHeld);
        check(vec![calls("sherd", 900)], VerdictWord::Undecided);
    }

    #[test]
    fn at_least() {
        let bound = Bound::AtLeast(1.0);
        let estimate = |low, high| Estimate { ratio: 1.0, low, high, pairs: 9 };
        assert_eq!(bound.judge(&estimate(1.0, 1.2)), VerdictWord::Held);
        assert_eq!(bound.judge(&estimate(0.9, 0.99)), VerdictWord::NotHeld);
        assert_eq!(bound.judge(&estimate(0.9, 1.1)), VerdictWord::Undecided);
    }
}
