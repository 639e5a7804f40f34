//! `sherd-bench rollout`: a group that is changed again and again under steady load, and what that costs its clients: rollouts, scaling,
//! planned restarts of the agent, and kills of it. Owns the order of things and leaves nothing running.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    str::FromStr,
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};

use super::{
    ComparisonError,
    trial::{Bystanders, Field, Setting, TrialOptions, at_most, millis},
};
use crate::{
    contestant::{Change, Contestant, GroupPath, GroupState, Order},
    interrupt::Interrupt,
    load::{Asks, KeepPlan, Kept, KeptTold, Visit, VisitPlan, Visits},
    report::{Bins, FOREIGN, Findings, Progress, Series, Timeline},
    stats::quantile,
};

/// How long one change may take.
const DEADLINE: Duration = Duration::from_secs(120);
/// Load before and after all changes of one kind.
const MARGIN: Duration = Duration::from_secs(1);
/// Between two changes.
const BETWEEN: Duration = Duration::from_millis(300);
/// Shorter than a group's `drain`, which is how long a former shard finishes: longer ones are cut by design.
const KEPT_LIFE: Duration = Duration::from_secs(2);
const KEPT_GAP: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(30);
const ANSWER_BYTES: usize = 128;
/// systemd's, as in our unit: RestartSec.
const AGENT_AWAY: Duration = Duration::from_millis(250);
/// Of time lines.
const BIN_SECONDS: f64 = 0.1;
/// Failures that are told one by one, of each part.
const MOST_TOLD: usize = 10;

/// What is done to the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Every shard is replaced.
    Rollouts(Order),
    /// One shard less, and one more.
    Scale,
    /// The agent ends by SIGTERM and starts again.
    Restarts,
    /// The agent ends by SIGKILL and starts again.
    Kills,
}

/// A word is none of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is nothing to do: choose from rollouts, scale, restarts, kills")]
pub struct WhatError {
    name: String,
}

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What every trial is told.
    pub trial: TrialOptions,
    /// How bytes reach the shards; one after the other.
    pub paths: Vec<GroupPath>,
    /// What is done; one after the other.
    pub what: Vec<What>,
    /// How often each.
    pub times: usize,
    /// The load's visits.
    pub visits_per_second: f64,
    /// The load's kept connections.
    pub kept: usize,
}

impl What {
    /// All that one word of the command line stands for.
    pub fn parse(name: &str) -> Result<Vec<Self>, WhatError> {
        match name {
            "rollouts" => Ok(vec![Self::Rollouts(Order::StartFirst), Self::Rollouts(Order::StopFirst)]),
            "scale" => Ok(vec![Self::Scale]),
            "restarts" => Ok(vec![Self::Restarts]),
            "kills" => Ok(vec![Self::Kills]),
            _ => Err(WhatError { name: name.to_owned() }),
        }
    }

    /// How many failed connections it may cost on `path`: a killed agent takes what it relays with it.
    fn may_cost(self, path: GroupPath) -> Option<f64> {
        (self != Self::Kills || path == GroupPath::Direct).then_some(0.0)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rollouts(order) => write!(f, "rollout {}", order.word()),
            Self::Scale => f.write_str("scaling down and up"),
            Self::Restarts => f.write_str("agent restart"),
            Self::Kills => f.write_str("agent kill"),
        }
    }
}

/// For the command line: one word may be several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(pub Vec<What>);

impl FromStr for Words {
    type Err = WhatError;

    fn from_str(name: &str) -> Result<Self, WhatError> {
        What::parse(name).map(Self)
    }
}

/// Who serves in each slot, and when somebody else began to.
#[derive(Debug, Default)]
struct TakeOvers {
    serving: BTreeMap<u32, Pid>,
    seen: Vec<(Instant, u32)>,
}

impl TakeOvers {
    fn look(&mut self, group: &GroupState, now: Instant) {
        for slot in group.slots.iter().filter(|slot| slot.ready) {
            let Some(pid) = slot.process() else { continue };
            if self.serving.insert(slot.slot, pid).is_some_and(|before| before != pid) {
                self.seen.push((now, slot.slot));
            }
        }
    }
}

/// What one kind of change on one path gave.
struct Part {
    name: String,
    may_cost: Option<f64>,
    start: Instant,
    ran: Duration,
    /// Of each change: its begin and its end.
    changes: Vec<(Instant, Instant)>,
    visits: Vec<Visit>,
    kept: KeptTold,
    take_overs: Vec<(Instant, u32)>,
    /// Percent of the CPU time that others used before.
    foreign: f64,
}

/// Runs it and reports.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Findings, ComparisonError> {
    let (mut parts, mut facts, mut findings) = (Vec::new(), Vec::new(), None);
    for path in &options.paths {
        let setting = Setting { path: *path, policy: "connection", on_own_engine: false };
        let mut field = Field::start_as(setting, &options.trial, scratch, progress, interrupt)?;
        let mut version = 0;
        // The trial's own drain and monitor from the first change on.
        let slots = options.trial.cpus.len();
        change(&mut field, &mut version, Order::StartFirst, slots, &mut TakeOvers::default())?;
        for what in &options.what {
            parts.push(part(options, &mut field, *what, *path, &mut version, progress)?);
        }
        facts.push(field.group.facts().clone());
        findings = Some(field.report("rollout", Vec::new(), Vec::new(), Vec::new())?);
    }
    let mut findings = findings.ok_or(ComparisonError::Nobody { missing: Vec::new() })?;
    findings.contestants = facts;
    findings.remarks.push(format!(
        "the load: {} visits/s of one request each, {} kept connections with a request every {} ms, each used for {} s",
        options.visits_per_second,
        options.kept,
        KEPT_GAP.as_millis(),
        KEPT_LIFE.as_secs()
    ));
    for part in &parts {
        findings.series.extend(part.series());
        findings.timelines.push(part.timeline());
        findings.remarks.extend(part.remarks());
        findings.verdicts.extend(
            part.may_cost
                .map(|limit| at_most(&format!("failed requests, {}", part.name), &part.failed(), 1.0, limit, &[])),
        );
    }
    let foreign = parts.iter().map(|part| part.foreign).collect();
    findings.series.push(Series::new(FOREIGN, foreign));
    Ok(findings)
}

fn part(
    options: &Options,
    field: &mut Field<'_>,
    what: What,
    path: GroupPath,
    version: &mut usize,
    progress: &mut Progress,
) -> Result<Part, ComparisonError> {
    let name = format!("{what}, {}", if path == GroupPath::Direct { "direct" } else { "relay" });
    progress.restart();
    // The part before has replaced its shards.
    field.group.wait_until_whole(None)?;
    let mut take_overs = TakeOvers::default();
    if let Some(group) = field.group.api().status()?.into_group(field.group.name()) {
        take_overs.look(&group, Instant::now());
    }
    let start = Instant::now();
    let (visits, kept) = load(options, field);
    let others = Bystanders::of(field.processes())?;
    field.pause(MARGIN)?;
    let foreign = others.percent()?;
    let mut changes = Vec::new();
    for time in 0..options.times {
        progress.step(time, options.times, &name);
        let began = Instant::now();
        once(field, what, version, options.trial.cpus.len(), &mut take_overs)?;
        changes.push((began, Instant::now()));
        field.pause(BETWEEN)?;
    }
    field.pause(MARGIN)?;
    let ran = start.elapsed();
    let visits = visits.finish().map_err(|source| field.load_error(source))?;
    let kept = kept.finish().map_err(|source| field.load_error(source))?;
    progress.clear();
    let take_overs = take_overs.seen;
    Ok(Part { name, may_cost: what.may_cost(path), start, ran, changes, visits, kept, take_overs, foreign })
}

fn load(options: &Options, field: &Field<'_>) -> (Visits, Kept) {
    let target = field.group.addresses()[0];
    let cpus = options.trial.load_cpus.clone();
    let longest = (DEADLINE + BETWEEN) * options.times as u32 + 2 * MARGIN;
    let visits = VisitPlan {
        target,
        asks: Asks::Bytes(ANSWER_BYTES),
        visits_per_second: options.visits_per_second,
        cpus: cpus.clone(),
        seed: options.trial.seed,
        longest,
    };
    let kept = KeepPlan {
        target,
        path: format!("/{ANSWER_BYTES}?slot"),
        connections: options.kept,
        gap: KEPT_GAP,
        life: KEPT_LIFE,
        patience: PATIENCE,
        cpus,
        longest,
    };
    (Visits::start(&visits), Kept::start(&kept))
}

/// One change, up to its end.
fn once(
    field: &mut Field<'_>,
    what: What,
    version: &mut usize,
    shards: usize,
    take_overs: &mut TakeOvers,
) -> Result<(), ComparisonError> {
    match what {
        What::Rollouts(order) => change(field, version, order, shards, take_overs),
        What::Scale => {
            for count in [shards - 1, shards] {
                field.group.change(Change { shards: count, version: *version, order: Order::StartFirst })?;
                wait_until(field, "a group of another size", count, take_overs, |_| true)?;
            }
            Ok(())
        }
        What::Restarts | What::Kills => {
            let signal = if what == What::Restarts { Signal::SIGTERM } else { Signal::SIGKILL };
            field.group.end_agent(signal)?;
            field.pause(AGENT_AWAY)?;
            field.group.begin_agent()?;
            field.group.wait_for_agent()?;
            wait_until(field, "a group after its agent's start", shards, take_overs, |_| true)
        }
    }
}

fn change(
    field: &mut Field<'_>,
    version: &mut usize,
    order: Order,
    shards: usize,
    take_overs: &mut TakeOvers,
) -> Result<(), ComparisonError> {
    *version += 1;
    field.group.change(Change { shards, version: *version, order })?;
    let mut phase = None;
    wait_until(field, "a rollout's end", shards, take_overs, |group| {
        phase = group.rollout.as_ref().map(|rollout| (rollout.phase.clone(), rollout.reason.clone()));
        !matches!(&phase, Some((phase, _)) if phase == "progressing" || phase == "rolling-back")
    })?;
    match phase {
        Some((phase, reason)) if phase != "completed" => {
            let why = format!("its rollout is {phase}: {}", reason.unwrap_or_default());
            Err(ComparisonError::Group { group: field.group.name().into(), why })
        }
        _ => Ok(()),
    }
}

/// Waits until all `count` slots serve with one shard each, and `is_over` holds.
fn wait_until(
    field: &Field<'_>,
    what: &'static str,
    count: usize,
    take_overs: &mut TakeOvers,
    mut is_over: impl FnMut(&GroupState) -> bool,
) -> Result<(), ComparisonError> {
    let api = field.group.api();
    field.wait_until(what, DEADLINE, || {
        let group = api.status()?.into_group(field.group.name());
        group.iter().for_each(|group| take_overs.look(group, Instant::now()));
        let whole = |group: &GroupState| {
            group.slots.len() == count && group.slots.iter().all(|slot| slot.ready && slot.is_settled())
        };
        Ok(group.is_some_and(|group| is_over(&group) && whole(&group)))
    })
}

impl Part {
    /// Of each change: requests that failed, by when they began.
    fn failed(&self) -> Series {
        let begins: Vec<Instant> = self.changes.iter().map(|(began, _)| *began).collect();
        let mut counts = vec![0.0; begins.len()];
        let visits = self.visits.iter().filter(|visit| visit.failure.is_some()).map(|visit| visit.ended);
        for ended in visits.chain(self.kept.lost.iter().map(|lost| lost.ended)) {
            // What fails before the first change is told with it.
            let change = begins.partition_point(|began| *began <= ended).saturating_sub(1);
            counts[change] += 1.0;
        }
        Series::new(format!("failed requests of one {}", self.name), counts)
    }

    fn series(&self) -> Vec<Series> {
        let seconds = self.changes.iter().map(|(began, ended)| (*ended - *began).as_secs_f64()).collect();
        let waits: Vec<f64> =
            self.visits.iter().filter(|visit| visit.failure.is_none()).map(|visit| millis(visit.took())).collect();
        let slowest = |share: f64| quantile(&waits, share).into_iter().collect();
        vec![
            self.failed(),
            Series::new(format!("  s of one {}", self.name), seconds),
            Series::new(format!("  ms of a visit, p99.9, {}", self.name), slowest(0.999)),
            Series::new(format!("  ms of the slowest visit, {}", self.name), slowest(1.0)),
        ]
    }

    /// Waiting times with marks where slots' shards changed.
    fn timeline(&self) -> Timeline {
        let bins =
            Bins { from: 0.0, width: BIN_SECONDS, count: (self.ran.as_secs_f64() / BIN_SECONDS).ceil() as usize };
        let since = |moment: Instant| moment.saturating_duration_since(self.start).as_secs_f64();
        let visits = self.visits.iter().filter(|visit| visit.failure.is_none());
        let points = visits.map(|visit| (since(visit.began), millis(visit.took())));
        let points = points.chain(self.kept.answered.iter().map(|(asked, took)| (since(*asked), millis(*took))));
        let title = format!("the longest that was answered, by when it was asked, since the begin, {}", self.name);
        let timeline = Timeline::largest(title, "ms", bins, points);
        let marks = self.take_overs.iter().map(|(at, slot)| (since(*at), format!("slot {slot} taken over")));
        let failed = self.kept.lost.iter().map(|lost| (since(lost.ended), "lost".to_owned()));
        let lost = self.visits.iter().filter(|visit| visit.failure.is_some());
        let lost = lost.map(|visit| (since(visit.ended), "lost".to_owned()));
        let mut marks: Vec<(f64, String)> = marks.chain(failed).chain(lost).collect();
        marks.sort_by(|one, other| one.0.total_cmp(&other.0));
        marks.into_iter().fold(timeline, |timeline, (at, text)| timeline.mark(at, text))
    }

    /// What failed, one by one.
    fn remarks(&self) -> Vec<String> {
        let answered = self.visits.iter().filter(|visit| visit.failure.is_none()).count();
        let since = |moment: Instant| moment.saturating_duration_since(self.start).as_secs_f64();
        let mut lines = vec![format!(
            "{}: {} times; {answered} visits and {} requests on kept connections were answered",
            self.name,
            self.changes.len(),
            self.kept.answered.len()
        )];
        let visits =
            self.visits.iter().filter_map(|visit| Some((visit.began, visit.ended, "visit", visit.failure.as_ref()?)));
        let kept = self.kept.lost.iter().map(|lost| (lost.opened, lost.ended, "kept connection", &lost.failure));
        let told = visits.chain(kept).take(MOST_TOLD).map(|(began, ended, what, failure)| {
            format!(
                "{}: lost at {:.3} s, {:.1} ms old: a {what}, {:?}: {}",
                self.name,
                since(ended),
                millis(ended - began),
                failure.reached,
                failure.error
            )
        });
        lines.extend(told);
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Failure, Reached};

    #[test]
    fn what_fails_is_counted_with_the_change_that_was_under_way() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let failure = || Some(Failure { error: "reset".into(), client: None, reached: Reached::Asked });
        let visit = |began: u64, ended: u64, fails: bool| Visit {
            began: at(began),
            ended: at(ended),
            failure: failure().filter(|_| fails),
        };
        let part = Part {
            name: "x".into(),
            may_cost: Some(0.0),
            start,
            ran: Duration::from_secs(1),
            changes: vec![(at(100), at(200)), (at(300), at(400))],
            visits: vec![visit(150, 160, true), visit(250, 260, true), visit(290, 310, true), visit(500, 501, false)],
            kept: KeptTold::default(),
            take_overs: vec![(at(180), 1)],
            foreign: 0.0,
        };
        assert_eq!(part.failed().samples, [2.0, 1.0]);
        assert_eq!(part.remarks().len(), 4);
        let timeline = part.timeline();
        assert_eq!(timeline.marks.len(), 4);
        assert_eq!(timeline.points.len(), 1, "what fails has no waiting time");
    }

    #[test]
    fn only_a_killed_agent_may_cost_and_only_what_it_relays() {
        for what in ["rollouts", "scale", "restarts", "kills"].map(What::parse).into_iter().flatten().flatten() {
            assert_eq!(what.may_cost(GroupPath::Direct), Some(0.0));
            assert_eq!(what.may_cost(GroupPath::Relay), (what != What::Kills).then_some(0.0));
        }
        assert!(What::parse("upgrades").is_err());
    }
}
