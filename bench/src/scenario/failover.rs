//! `sherd-bench failover`: shards that are killed under load, with the agent there and not there; owns the order of things
//! and leaves nothing running.
//!
//! All of it is seen from the clients' side: a connection that fails was steered to the shard that died.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{
    ComparisonError,
    trial::{Bystanders, Field, Stopped, TrialOptions, at_most, millis, signals::kill_at_once},
};
use crate::{
    interrupt::Interrupt,
    load::{Outcome, Visit, Visits},
    report::{Bins, FOREIGN, Findings, Progress, Series, Timeline},
};

const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_millis(700);
/// From the kill to the begin of the last connection that fails.
const OVER_WITHIN_MILLIS: f64 = 1.0;

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What every trial is told.
    pub trial: TrialOptions,
    /// How many shards are killed with the agent there, and as many without.
    pub kills: usize,
    /// How long the maximum is looked for.
    pub calibrate: Duration,
}

/// Who is there when a shard dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agent {
    Alive,
    Stopped,
}

/// Around the kill, in its time lines: what fails does so at once, what a new shard's start costs comes later.
const NEAR: Bins = Bins { from: -0.02, width: 0.001, count: 60 };
const AROUND: Bins = Bins { from: -0.2, width: 0.005, count: 160 };

/// One connection, seen from a kill.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    /// From the kill to its begin.
    seconds: f64,
    /// From its begin to its end.
    millis: f64,
    failed: bool,
}

const AGENTS: [(Agent, &str); 2] = [(Agent::Alive, "agent alive"), (Agent::Stopped, "agent stopped")];

/// What one death did.
#[derive(Debug, Clone, Default, PartialEq)]
struct Death {
    /// From the kill to the begin of the last that failed; zero if all of them had begun before.
    over: Duration,
    failed: usize,
    /// Of these, those that began after the kill.
    failed_after: usize,
    /// The longest that began after the kill and was answered.
    slowest: Duration,
}

/// What it is to reach, as its verdicts say it.
pub fn targets() -> Vec<String> {
    AGENTS.map(|(_, words)| format!("{} ≤ {OVER_WITHIN_MILLIS}", target(words))).into()
}

fn target(words: &str) -> String {
    format!("ms to the last connection that fails, {words}, all of them")
}

/// Runs it and reports.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Findings, ComparisonError> {
    let mut field = Field::start(&options.trial, "connection", scratch, progress, interrupt)?;
    let maximum = field.saturate(options.calibrate)?;
    let mut remarks = vec![format!("half load is {:.0} connections/s", maximum.requests_per_second() / 2.0)];
    remarks.push("times count from the call of kill(2), not from the death that it brings about".into());
    let (mut series, mut timelines, mut verdicts, mut foreign) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (agent, words) in AGENTS {
        progress.restart();
        let (mut deaths, mut seen) = (Vec::new(), Vec::new());
        for kill in 0..options.kills {
            progress.step(kill, options.kills, words);
            let (death, used) = kill_one(&mut field, &maximum, agent, kill % options.trial.cpus.len(), &mut seen)?;
            deaths.push(death);
            foreign.push(used);
        }
        let of = |title: &str, value: fn(&Death) -> f64| {
            Series::new(format!("{title}, {words}"), deaths.iter().map(value).collect()).less_is_better()
        };
        let over = of("ms from the kill to the last connection that failed", |death| millis(death.over));
        verdicts.push(at_most(&target(words), &over, 1.0, OVER_WITHIN_MILLIS, &foreign));
        series.extend([
            over,
            of("connections that failed", |death| death.failed as f64),
            of("  of these begun after the kill", |death| death.failed_after as f64),
            of("ms of the slowest begun after the kill", |death| millis(death.slowest)),
        ]);
        timelines.extend(draw(&seen, words));
    }
    series.push(Series::new(FOREIGN, foreign));
    Ok(Findings { timelines, ..field.report("failover", series, remarks, verdicts)? })
}

/// All kills in one.
fn draw(seen: &[Seen], words: &str) -> [Timeline; 2] {
    let failed = seen.iter().filter(|seen| seen.failed).map(|seen| seen.seconds);
    let waited = seen.iter().filter(|seen| !seen.failed).map(|seen| (seen.seconds, seen.millis));
    [
        Timeline::counts(
            format!("connections that failed, by when they began, all kills together, {words}"),
            "per ms",
            NEAR,
            failed,
        ),
        Timeline::largest(
            format!("the longest from begin to end, by when it began, all kills together, {words}"),
            "ms",
            AROUND,
            waited,
        ),
    ]
    .map(|timeline| timeline.mark(0.0, "kill(2)"))
}

/// Gives the percentage of CPU time that others used before, too, and adds to `seen` what began near the kill.
fn kill_one(
    field: &mut Field<'_>,
    maximum: &Outcome,
    agent: Agent,
    slot: usize,
    seen: &mut Vec<Seen>,
) -> Result<(Death, f64), ComparisonError> {
    let shard = field.group.shards()[slot];
    let stopped = (agent == Agent::Stopped).then(|| Stopped::stop(field.group.agent())).transpose()?;
    let visits = Visits::start(&field.half_load(maximum));
    let others = Bystanders::of(field.processes())?;
    field.pause(BEFORE)?;
    let foreign = others.percent()?;
    let killed_at = Instant::now();
    kill_at_once(shard)?;
    field.pause(AFTER)?;
    let visits = visits.finish().map_err(|source| field.load_error(source))?;
    drop(stopped);
    field.group.wait_until_whole(Some(shard))?;
    seen.extend(visits.iter().map(|visit| Seen::of(visit, killed_at)).filter(|seen| seen.seconds >= AROUND.from));
    Ok((Death::of(&visits, killed_at), foreign))
}

impl Seen {
    fn of(visit: &Visit, killed_at: Instant) -> Self {
        let after = visit.began.saturating_duration_since(killed_at).as_secs_f64();
        let before = killed_at.saturating_duration_since(visit.began).as_secs_f64();
        Self { seconds: after - before, millis: millis(visit.ended - visit.began), failed: visit.failure.is_some() }
    }
}

impl Death {
    fn of(visits: &[Visit], killed_at: Instant) -> Self {
        let failed: Vec<&Visit> = visits.iter().filter(|visit| visit.failure.is_some()).collect();
        let last = failed.iter().map(|visit| visit.began).max();
        let answered = visits.iter().filter(|visit| visit.failure.is_none() && visit.began >= killed_at);
        Self {
            over: last.map_or(Duration::ZERO, |last| last.saturating_duration_since(killed_at)),
            failed: failed.len(),
            failed_after: failed.iter().filter(|visit| visit.began >= killed_at).count(),
            slowest: answered.map(|visit| visit.ended - visit.began).max().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Failure, Reached};

    #[test]
    fn a_death_is_over_with_the_last_that_fails() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let visit = |(began, ended, fails): (u64, u64, bool)| Visit {
            began: at(began),
            ended: at(ended),
            failure: fails.then(|| Failure { error: "reset".into(), client: None, reached: Reached::Asked }),
        };
        let check = |visits: &[(u64, u64, bool)], expected: Death| {
            let visits: Vec<Visit> = visits.iter().copied().map(visit).collect();
            assert_eq!(Death::of(&visits, at(100)), expected, "{visits:?}");
        };
        let slowest = Duration::from_millis(7);
        check(&[(90, 200, false), (101, 108, false)], Death { slowest, ..Death::default() });
        check(&[(99, 101, true), (101, 108, false)], Death { failed: 1, slowest, ..Death::default() });
        let over = Duration::from_millis(3);
        let both = Death { over, failed: 2, failed_after: 1, slowest };
        check(&[(99, 101, true), (103, 104, true), (104, 111, false)], both);
    }

    #[test]
    fn time_lines_tell_what_failed_when_and_what_waited() {
        let seen = [(-0.0105, 2.0, true), (-0.0102, 3.0, true), (0.1, 7.0, false), (0.101, 4.0, false)];
        let seen = seen.map(|(seconds, millis, failed)| Seen { seconds, millis, failed });
        let [failed, waited] = draw(&seen, "agent alive");
        assert_eq!(failed.points.iter().map(|(_, count)| count).sum::<f64>(), 2.0);
        let (at, most) = *waited.points.last().expect("one bin has some");
        assert!((at - 0.1).abs() < 1e-9 && most == 7.0 && waited.points.len() == 1, "{waited:?}");
        assert_eq!(failed.marks, [(0.0, "kill(2)".to_owned())]);
    }

    #[test]
    fn a_connection_is_seen_from_the_kill() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let visit = Visit { began: at(90), ended: at(93), failure: None };
        assert_eq!(Seen::of(&visit, at(100)), Seen { seconds: -0.01, millis: 3.0, failed: false });
        assert_eq!(Seen::of(&visit, at(80)).seconds, 0.01);
    }
}
