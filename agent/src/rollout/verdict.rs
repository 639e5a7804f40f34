//! Whether a new shard does worse than what it can be compared with: its untouched siblings over the same time, and the
//! slot's own former shard. PURE: counts in, a judgement out.
//!
//! It is bad only if it is worse than both: what siblings suffer too is no fault of the new shard, and what the former shard
//! of the slot suffered too is the slot's (a slow core, a client that hangs up on it). Chance must not condemn: of shares,
//! Newcombe's interval of a difference decides (method 10 of Statistics in Medicine 17, 1998), of mean times the standard
//! error of their difference. A sibling that stands out alone is no standard; two of a kind are how the group is.

use std::fmt;

mod share;
mod times;

use share::Share;
pub use times::Times;

/// What was counted of one shard within a time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    /// Connections that ended.
    pub connections: u64,
    /// Of these, those on which it had sent nothing; also of clients that asked nothing, which siblings have too.
    pub unanswered: u64,
    /// Connections, beside these, that could not be handed to it.
    pub connect_failures: u64,
    /// From the handshake to the first answer. `None`: nobody timed it.
    pub first_answer: Option<Times>,
    /// CPU time that the shard used.
    pub cpu_seconds: f64,
}

impl Sample {
    fn failures(&self) -> Share {
        let all = self.connections + self.connect_failures;
        Share::new((self.unanswered + self.connect_failures).min(all), all)
    }
}

/// How much worse than others a new shard may be. `None`: as much as it likes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Connections that ended, of a shard and of whatever it is compared with: with fewer nothing is said. At least 1.
    pub min_connections: u64,
    /// How much larger the share of its connections that fail may be: 0.01 is one percentage point.
    pub max_error_points: Option<f64>,
    /// How many times longer its first answers may take, in the mean; at least 1.
    pub max_slowdown: Option<f64>,
    /// How many times more CPU time it may use for a connection; at least 1. Not for services whose CPU time
    /// is mostly used while nobody asks anything.
    pub max_cpu_ratio: Option<f64>,
}

/// A new shard, and what it is compared with.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The new shard.
    pub shard: &'a Sample,
    /// Shards of the former specification, over the same time.
    pub siblings: &'a [Sample],
    /// The former shard of the same slot, over an earlier time.
    pub before: Option<&'a Sample>,
}

/// What becomes of the rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing says that the new shard is worse.
    Good,
    /// It is: in one sentence, why.
    Bad(String),
    /// There is too little to compare: what was missing.
    TooLittle(String),
}

/// Judges a new shard.
pub fn judge(evidence: Evidence<'_>, policy: &Policy) -> Judgement {
    let (come, wanted) = (evidence.shard.failures().of(), policy.min_connections.max(1));
    if come < wanted {
        return Judgement::TooLittle(format!("{come} of its connections have ended, {wanted} are needed"));
    }
    let findings = [
        policy.max_error_points.map(|limit| evidence.compare(wanted, |shard, others| failures(shard, others, limit))),
        policy
            .max_slowdown
            .map(|limit| evidence.compare(wanted, |shard, others| slowdown(shard, others, limit, wanted))),
        policy.max_cpu_ratio.map(|limit| evidence.compare(wanted, |shard, others| cpu(shard, others, limit, wanted))),
    ];
    let mut missing = None;
    for finding in findings.into_iter().flatten() {
        match finding {
            Finding::Worse(why) => return Judgement::Bad(why),
            Finding::Unknown(what) => missing = missing.or(Some(what)),
            Finding::NotWorse => {}
        }
    }
    missing.map_or(Judgement::Good, Judgement::TooLittle)
}

#[derive(Debug)]
enum Finding {
    NotWorse,
    Worse(String),
    Unknown(String),
}

/// Those that a shard is compared with, all of whom had enough connections. Never empty.
#[derive(Debug, Clone, Copy)]
enum Others<'a> {
    Siblings(&'a [Sample]),
    Before(&'a Sample),
}

impl Others<'_> {
    fn samples(&self) -> &[Sample] {
        match self {
            Self::Siblings(siblings) => siblings,
            Self::Before(before) => std::slice::from_ref(before),
        }
    }
}

/// Whose a figure is.
impl fmt::Display for Others<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Siblings([_]) => "its sibling's",
            Self::Siblings(_) => "its siblings'",
            Self::Before(_) => "its predecessor's",
        })
    }
}

impl Evidence<'_> {
    /// Worse than its siblings and than its predecessor, as far as they can be compared with.
    fn compare(&self, wanted: u64, worse: impl Fn(&Sample, Others<'_>) -> Finding) -> Finding {
        let is_enough = |sample: &&Sample| sample.failures().of() >= wanted;
        let siblings: Vec<Sample> = self.siblings.iter().filter(is_enough).copied().collect();
        let before = self.before.filter(|before| is_enough(before));
        let siblings = (!siblings.is_empty()).then_some(Others::Siblings(&siblings));
        let nobody =
            || format!("neither a sibling nor the slot's former shard had the {wanted} connections that are needed");
        let mut finding = Finding::Unknown(nobody());
        for others in siblings.into_iter().chain(before.map(Others::Before)) {
            finding = match (finding, worse(self.shard, others)) {
                (Finding::NotWorse, _) | (_, Finding::NotWorse) => return Finding::NotWorse,
                // Siblings come first, and say more: their time is the same.
                (Finding::Worse(why), _) | (_, Finding::Worse(why)) => Finding::Worse(why),
                (_, unknown) => unknown,
            };
        }
        finding
    }
}

fn failures(shard: &Sample, others: Others<'_>, limit: f64) -> Finding {
    let (own, shares): (_, Vec<Share>) = (shard.failures(), others.samples().iter().map(Sample::failures).collect());
    let standard = share::standard(&shares, limit);
    standard.judge(
        |theirs| own.exceeds(theirs, limit),
        |theirs| {
            let points = 100.0 * limit;
            format!("{own} of its connections failed, of {others} {theirs}: more than {points:.1} points more")
        },
        || format!("{others} shares of failed connections differ by more than {:.1} points", 100.0 * limit),
    )
}

fn slowdown(shard: &Sample, others: Others<'_>, limit: f64, wanted: u64) -> Finding {
    let times: Option<Vec<Times>> = others.samples().iter().map(|sample| sample.first_answer).collect();
    // Where nobody looks at the clock there is no clock to miss.
    let (Some(own), Some(times)) = (shard.first_answer, times) else { return Finding::NotWorse };
    let fewest = times.iter().chain([&own]).map(|times| times.count).min().unwrap_or(0);
    if fewest < wanted {
        return Finding::Unknown(format!("the first answer was timed of {fewest} connections, {wanted} are needed"));
    }
    let means = times.iter().map(Times::mean).collect();
    times::standard(means, limit).judge(
        |theirs| own.mean().exceeds(theirs, limit),
        |theirs| format!("its first answers took {}, {others} {theirs}: more than {limit} times as long", own.mean()),
        || format!("{others} first answers differ by more than {limit} times"),
    )
}

fn cpu(shard: &Sample, others: Others<'_>, limit: f64, wanted: u64) -> Finding {
    let work = |sample: &Sample| sample.connections;
    let means = others.samples().iter().map(|sample| Times::mean_of(sample.cpu_seconds, work(sample)));
    let (own, means): (_, Vec<_>) = (Times::mean_of(shard.cpu_seconds, work(shard)), means.collect());
    let least = others.samples().iter().chain([shard]).map(work).min().unwrap_or(0);
    if least < wanted || !means.iter().all(times::Mean::is_positive) {
        return Finding::Unknown(format!("CPU time was counted of {least} connections, {wanted} are needed"));
    }
    times::standard(means, limit).judge(
        |theirs| own.exceeds(theirs, limit),
        |theirs| {
            format!("it took {own} of CPU time for a connection, {others} {theirs}: more than {limit} times as much")
        },
        || format!("{others} CPU time for a connection differs by more than {limit} times"),
    )
}

/// What others do, as a shard is held to it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Standard<T> {
    /// All of them, but one that stands out.
    Agreed(T),
    /// There are two, of which either could be the one that stands out.
    Between { better: T, worse: T },
}

impl<T: Copy> Standard<T> {
    fn judge(self, exceeds: impl Fn(T) -> bool, why: impl Fn(T) -> String, disagree: impl Fn() -> String) -> Finding {
        let (better, worse) = match self {
            Self::Agreed(standard) => (standard, standard),
            Self::Between { better, worse } => (better, worse),
        };
        match (exceeds(better), exceeds(worse)) {
            (_, true) => Finding::Worse(why(worse)),
            (false, _) => Finding::NotWorse,
            (true, false) => Finding::Unknown(disagree()),
        }
    }
}

#[cfg(test)]
mod tests;
