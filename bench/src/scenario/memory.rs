//! `sherd-bench memory`: what an idle connection costs in memory, of the balancer, the shards and the kernel; owns the order of
//! things and leaves nothing running.
//!
//! Contestants are started one at a time, and anew in each round: an allocator that has grown once shows nothing any more.
//! Each then gets more and more connections; what is told is the slope over all sizes, so that what a program takes at its
//! first connection, or in large pieces, is no connection's.

use std::{path::Path, time::SystemTime};

use super::{
    ComparisonError,
    field::{Base, Entrant, FieldOptions, Started},
    idle::{SLACK_CONNECTIONS, fit, settled},
    relay,
};
use crate::{
    analysis::{Verdict, VerdictWord},
    contestant::{Contestant, Facts},
    interrupt::Interrupt,
    load::{IdleConnections, IdleError, fetch},
    measure::HostFacts,
    report::{Findings, IdlePoint, IdleReport, IdleSlope, Missing, Origin, Progress, Series, WhoseMemory, utc},
    stats::{Estimate, Random, Slope, ratio, slope},
};

/// With fewer there is no line.
const MIN_POINTS: usize = 3;

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who takes part.
    pub field: FieldOptions,
    /// The most connections.
    pub connections: usize,
    /// How many sizes up to that, none left out.
    pub sizes: usize,
    /// How often each contestant is started.
    pub rounds: usize,
    /// Bytes of the one answer that each connection has had.
    pub answer_bytes: usize,
    /// Of orders and intervals.
    pub seed: u64,
    /// What the report says of where it comes from.
    pub origin: Origin,
}

/// What a run has found so far.
#[derive(Default)]
struct Found {
    contestants: Vec<Facts>,
    missing: Vec<Missing>,
    points: Vec<IdlePoint>,
    remarks: Vec<String>,
}

/// Runs it and reports. Everything it started has ended when it returns; its image is the keeper's to remove.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<IdleReport, ComparisonError> {
    let started = SystemTime::now();
    let mut found = Found::default();
    let most = fit(options.connections, &mut found.remarks)?;
    let base = Base::make(&options.field, most + SLACK_CONNECTIONS, scratch, progress)?;
    let mut random = Random::new(options.seed);
    let mut order = options.field.contestants.clone();
    let total = options.rounds * order.len();
    progress.restart();
    for round in 0..options.rounds {
        random.shuffle(&mut order);
        for (position, &entrant) in order.iter().enumerate() {
            progress.step(round * order.len() + position, total, entrant.name());
            if interrupt.is_raised() {
                return Err(ComparisonError::Interrupted);
            }
            if found.missing.iter().any(|missing| missing.name == entrant.name()) {
                continue;
            }
            match base.start(entrant)? {
                Ok(contestant) => climb(options, most, round, &contestant, &mut found, interrupt)?,
                Err(missing) => found.missing.push(missing),
            }
        }
    }
    progress.clear();
    if found.points.is_empty() {
        return Err(ComparisonError::Nobody { missing: found.missing });
    }
    report(options, started, found)
}

/// Gives one contestant more and more connections; what it can't hold, a remark tells.
fn climb(
    options: &Options,
    most: usize,
    round: usize,
    (contestant, shards): &Started,
    found: &mut Found,
    interrupt: &Interrupt,
) -> Result<(), ComparisonError> {
    let facts = contestant.facts();
    verify(contestant.as_ref(), options.answer_bytes)?;
    if !found.contestants.iter().any(|known| known.name == facts.name) {
        found.contestants.push(facts.clone());
    }
    let mut connections = IdleConnections::default();
    for size in 0..=options.sizes {
        let before = connections.len();
        let count = most * size / options.sizes;
        let grown = connections.grow_to(contestant.addresses(), count, options.answer_bytes, interrupt);
        let memory = match settled(contestant.as_ref(), shards) {
            // Out of descriptors, a balancer may end: the engine's proxy does.
            Err(ComparisonError::Process { .. }) if grown.is_err() => None,
            memory => Some(memory?),
        };
        if let Some(memory) = memory.filter(|_| size == 0 || connections.len() > before) {
            found.points.push(IdlePoint {
                contestant: facts.name.clone(),
                round,
                connections: connections.len(),
                balancer_bytes: memory.balancer,
                shard_bytes: memory.shards,
                kernel_bytes: memory.slab,
            });
        }
        match grown {
            Ok(()) => {}
            Err(IdleError::Interrupted) => return Err(ComparisonError::Interrupted),
            Err(IdleError::Connection { source, .. }) => {
                let (held, why) = (connections.len(), Missing::of(&facts.name, &source).why);
                found.remarks.push(format!("{} held {held} connections of {most}, then: {why}", facts.name));
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Nothing that doesn't work is measured.
fn verify(contestant: &dyn Contestant, answer_bytes: usize) -> Result<(), ComparisonError> {
    for address in contestant.addresses() {
        fetch(*address, answer_bytes)
            .map_err(|source| ComparisonError::Wrong { contestant: contestant.facts().name.clone(), source })?;
    }
    Ok(())
}

fn report(options: &Options, started: SystemTime, found: Found) -> Result<IdleReport, ComparisonError> {
    let Found { mut contestants, missing, points, mut remarks } = found;
    // As they were named, not as they came.
    let place = |facts: &Facts| options.field.contestants.iter().position(|entrant| entrant.name() == facts.name);
    contestants.sort_by_key(place);
    remarks.sort();
    remarks.dedup();
    let mut slopes = Vec::new();
    let mut series = Vec::new();
    for facts in &contestants {
        for whose in WhoseMemory::ALL {
            let lines = lines(&points, &facts.name, whose);
            let Some(found) = slope(&lines, options.seed) else { continue };
            slopes.push(IdleSlope { contestant: facts.name.clone(), whose, slope: found });
            let title = format!("{}: {}, bytes per connection", facts.name, whose.name());
            series.push(Series::new(title, of_rounds(&lines)));
        }
    }
    remarks.extend(missing.iter().map(|missing| format!("{} does not take part: {}", missing.name, missing.why)));
    remarks.push(control(&points, options.seed));
    let verdicts = verdicts(&slopes);
    let findings = Findings {
        scenario: "memory".into(),
        origin: options.origin.clone(),
        started: utc(started),
        took_seconds: started.elapsed().map_or(0.0, |took| took.as_secs_f64()),
        host: HostFacts::read().map_err(ComparisonError::Host)?,
        contestants,
        series,
        timelines: Vec::new(),
        remarks,
        verdicts,
    };
    Ok(IdleReport { findings, missing, slopes, points })
}

/// One line of points (connections, bytes) for each round that has enough of them.
fn lines(points: &[IdlePoint], contestant: &str, whose: WhoseMemory) -> Vec<Vec<(f64, f64)>> {
    let rounds = points.iter().map(|point| point.round + 1).max().unwrap_or(0);
    let of_round = |round: usize| -> Vec<(f64, f64)> {
        let of_it = points.iter().filter(|point| point.contestant == contestant && point.round == round);
        of_it.filter_map(|point| Some((point.connections as f64, point.bytes_of(whose)? as f64))).collect()
    };
    (0..rounds).map(of_round).filter(|line| line.len() >= MIN_POINTS).collect()
}

fn of_rounds(lines: &[Vec<(f64, f64)>]) -> Vec<f64> {
    lines.iter().filter_map(|line| slope(std::slice::from_ref(line), 0)).map(|slope| slope.value).collect()
}

/// Bare containers against others of their kind: how well this host can tell the kernel's memory.
fn control(points: &[IdlePoint], seed: u64) -> String {
    let of = |entrant: Entrant| of_rounds(&lines(points, entrant.name(), WhoseMemory::Kernel));
    let pairs: Vec<(f64, f64)> = of(Entrant::Bare).into_iter().zip(of(Entrant::BareAgain)).collect();
    let (bare, again) = (Entrant::Bare.name(), Entrant::BareAgain.name());
    match ratio(&pairs, seed) {
        None => format!("no control: the kernel's memory of {bare} and {again} was not measured"),
        Some(Estimate { ratio, low, high, pairs }) => {
            let concludes = if low <= 1.0 && 1.0 <= high { "" } else { ": THE KERNEL'S MEMORY CANNOT BE TOLD HERE" };
            let rounds = format!("{pairs} rounds");
            format!(
                "control: the kernel's memory of {bare} ÷ {again} is {ratio:.3} ({low:.3}–{high:.3}), {rounds}{concludes}"
            )
        }
    }
}

/// What the relay is to reach, and the agent beside the direct path a fortiori.
fn verdicts(slopes: &[IdleSlope]) -> Vec<Verdict> {
    let ours = [Entrant::SherdDirect, Entrant::SherdRelay].map(Entrant::name);
    let of_balancer = slopes.iter().filter(|slope| slope.whose == WhoseMemory::Balancer);
    of_balancer
        .filter(|slope| ours.contains(&&*slope.contestant))
        .map(|own| judge(&own.contestant, own.slope))
        .collect()
}

fn judge(name: &str, slope: Slope) -> Verdict {
    let limit = relay::IDLE_BYTES;
    let word = match (slope.high <= limit, slope.low > limit) {
        (true, _) => VerdictWord::Held,
        (_, true) => VerdictWord::NotHeld,
        _ => VerdictWord::Undecided,
    };
    Verdict {
        target: format!("{name}: own memory per idle connection ≤ {limit:.0} bytes"),
        found: format!("{:.0} ({:.0}–{:.0}) bytes", slope.value, slope.low, slope.high),
        word,
        because: (word == VerdictWord::Undecided).then(|| "the interval lies across".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(contestant: &str, round: usize, bytes_each: u64, sizes: u64) -> Vec<IdlePoint> {
        let point = |size: u64| IdlePoint {
            contestant: contestant.into(),
            round,
            connections: size as usize * 100,
            balancer_bytes: Some(5_000_000 * (round as u64 + 1) + size * 100 * bytes_each),
            shard_bytes: 0,
            kernel_bytes: 1_000_000 + size * 100 * bytes_each,
        };
        (0..sizes).map(point).collect()
    }

    #[test]
    fn what_is_there_before_is_no_connections() {
        let all =
            [points("sherd-relay", 0, 150, 5), points("sherd-relay", 1, 150, 5), points("sherd-relay", 2, 999, 2)];
        let lines = lines(&all.concat(), "sherd-relay", WhoseMemory::Balancer);
        assert_eq!(lines.len(), 2, "two points are no line");
        let found = slope(&lines, 1).expect("points differ");
        assert!((found.value - 150.0).abs() < 1e-6, "{found:?}");
        assert_eq!(judge("sherd-relay", found).word, VerdictWord::Held);
    }

    #[test]
    fn the_whole_interval_counts() {
        let check = |low, high, expected| {
            let slope = Slope { value: f64::midpoint(low, high), low, high, points: 9 };
            assert_eq!(judge("sherd-relay", slope).word, expected, "{low}–{high}");
        };
        check(100.0, 2048.0, VerdictWord::Held);
        check(2000.0, 2100.0, VerdictWord::Undecided);
        check(2049.0, 2100.0, VerdictWord::NotHeld);
    }

    #[test]
    fn a_control_beside_one_says_so() {
        let rounds = |each| (0..5).flat_map(move |round| points("bare-2", round, each, 4)).collect::<Vec<_>>();
        let bare: Vec<_> = (0..5).flat_map(|round| points("bare", round, 1000, 4)).collect();
        assert!(!control(&[bare.clone(), rounds(1000)].concat(), 1).contains("CANNOT"));
        assert!(control(&[bare.clone(), rounds(1100)].concat(), 1).contains("CANNOT"));
        assert!(control(&bare, 1).starts_with("no control"));
    }
}
