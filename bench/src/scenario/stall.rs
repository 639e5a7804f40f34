//! `sherd-bench stall`: a shard that stops accepting, and shards that only have all they can do; owns the order of things and
//! leaves nothing running.
//!
//! All of it is seen from the clients' side. A connection that begins while a shard is stopped and is not answered for long
//! was steered to it: the last of these tells when the slot was out, and its answer, when its queue had been moved.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use self::round::{Round, seen};
use super::{
    ComparisonError,
    trial::{Bystanders, Field, Stopped, TrialOptions, at_most, millis},
};
use crate::{
    analysis::{Verdict, VerdictWord},
    interrupt::Interrupt,
    load::Visits,
    report::{Bins, FOREIGN, Findings, Progress, Series, Timeline},
};

mod round;

/// How long a shard is stopped: long enough for its queue to be moved, which is due after 2 s.
const STOPPED: Duration = Duration::from_secs(3);
const BEFORE: Duration = Duration::from_millis(500);
/// How long all is asked of shards that nobody stops, if the target is to be shown.
const SATURATED: Duration = Duration::from_secs(600);
const OUT: &str = "ms until a hung slot is out, all of them";
const LATE: &str = "queued connections that others don't serve";
const FAILED: &str = "connections that fail";
/// Around a stop, in the time line.
const AROUND: Bins = Bins { from: -0.5, width: 0.02, count: 200 };
const BACK_DEADLINE: Duration = Duration::from_secs(10);
/// From the first connection in a stopped shard's queue to the last that was steered there.
const OUT_WITHIN_MILLIS: f64 = 100.0;

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What every trial is told.
    pub trial: TrialOptions,
    /// How often a shard is stopped.
    pub stalls: usize,
    /// How long all is asked of shards that nobody stops.
    pub saturate: Duration,
    /// How long the maximum is looked for.
    pub calibrate: Duration,
}

/// What it is to reach, as its verdicts say it; a shorter time at the maximum is another target.
pub fn targets() -> Vec<String> {
    vec![no_alarm(SATURATED), format!("{OUT} ≤ {OUT_WITHIN_MILLIS}"), format!("{LATE} ≤ 0"), format!("{FAILED} ≤ 0")]
}

fn no_alarm(duration: Duration) -> String {
    format!("no shard is found hung in {} s at the maximum", duration.as_secs())
}

/// Runs it and reports.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Findings, ComparisonError> {
    let field = Field::start(&options.trial, "connection", scratch, progress, interrupt)?;
    let (mut remarks, mut verdicts) = (Vec::new(), Vec::new());
    if !options.saturate.is_zero() {
        progress.say(&format!("{} s at the maximum", options.saturate.as_secs()));
        let (foreign, verdict) = saturate(&field, options.saturate)?;
        remarks.push(format!("at the maximum, {}; others used {foreign:.1} % of the CPU time", verdict.found));
        verdicts.push(verdict);
    }
    let maximum = field.saturate(options.calibrate)?;
    remarks.push(format!("half load is {:.0} connections/s", maximum.requests_per_second() / 2.0));
    progress.restart();
    let (mut rounds, mut waits, mut foreign) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.stalls {
        progress.step(round, options.stalls, "a shard is stopped");
        let visits = Visits::start(&field.half_load(&maximum));
        let others = Bystanders::of(field.processes())?;
        field.pause(BEFORE)?;
        foreign.push(others.percent()?);
        rounds.push(stall(&field, visits, round % options.trial.cpus.len(), &mut waits)?);
    }
    let (series, concluded) = conclude(&rounds, foreign);
    verdicts.extend(concluded);
    let timelines = vec![draw(&waits)];
    Ok(Findings { timelines, ..field.report("stall", series, remarks, verdicts)? })
}

/// All stops in one.
fn draw(waits: &[(f64, f64)]) -> Timeline {
    let waits = waits.iter().copied();
    Timeline::largest("the longest from begin to end, by when it began, all stops together", "ms", AROUND, waits)
        .mark(0.0, "stopped")
        .mark(STOPPED.as_secs_f64(), "goes on")
}

fn conclude(rounds: &[Round], foreign: Vec<f64>) -> (Vec<Series>, Vec<Verdict>) {
    let of = |title: &str, value: fn(&Round) -> Option<f64>| {
        Series::new(title, rounds.iter().filter_map(value).collect()).less_is_better()
    };
    let out = of("ms from the first connection queued to the last steered there", |round| round.out.map(millis));
    let served = of("ms from the first connection queued to the last of them served", |round| round.served.map(millis));
    let queued = of("connections queued there", |round| Some(round.queued as f64));
    let late = of("  of these served only when the shard went on", |round| Some(round.late as f64));
    let caught = of("connections that the shard had when it was stopped", |round| Some(round.caught as f64));
    let failed = of("connections that failed", |round| Some(round.failed as f64));
    let verdicts = vec![
        at_most(OUT, &out, 1.0, OUT_WITHIN_MILLIS, &foreign),
        // These don't depend on how fast anything is.
        at_most(LATE, &late, 1.0, 0.0, &[]),
        at_most(FAILED, &failed, 1.0, 0.0, &[]),
    ];
    let others = Series::new(FOREIGN, foreign);
    (vec![out, served, queued, late, caught, failed, others], verdicts)
}

/// Stops one shard under load and lets it go on. Adds to `waits` what [`seen`] tells.
fn stall(
    field: &Field<'_>,
    visits: Visits,
    slot: usize,
    waits: &mut Vec<(f64, f64)>,
) -> Result<Round, ComparisonError> {
    let stopped = Stopped::stop(field.group.shards()[slot])?;
    let stopped_at = Instant::now();
    field.pause(STOPPED)?;
    let continued_at = Instant::now();
    drop(stopped);
    let visits = visits.finish().map_err(|source| field.load_error(source))?;
    field.wait_until("the end of a stall", BACK_DEADLINE, || {
        Ok(field.group.metric("sherd_slot_hung")?.iter().all(|hung| *hung == 0.0))
    })?;
    waits.extend(seen(&visits, stopped_at));
    Ok(Round::of(&visits, stopped_at, continued_at))
}

/// Gives the percentage of CPU time that others used, too.
fn saturate(field: &Field<'_>, duration: Duration) -> Result<(f64, Verdict), ComparisonError> {
    let alarms = || Ok::<f64, ComparisonError>(field.group.metric("sherd_slot_hung_total")?.iter().sum());
    let before = alarms()?;
    let others = Bystanders::of(field.processes())?;
    let outcome = field.saturate(duration)?;
    let (foreign, found) = (others.percent()?, alarms()? - before);
    let verdict = Verdict {
        target: no_alarm(duration),
        found: format!(
            "{found} found, {:.0} connections/s, {} failed",
            outcome.requests_per_second(),
            outcome.failed()
        ),
        word: if found == 0.0 { VerdictWord::Held } else { VerdictWord::NotHeld },
        because: None,
    };
    Ok((foreign, verdict))
}
