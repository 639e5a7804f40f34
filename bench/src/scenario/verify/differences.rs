//! Differences that are planted, and one that isn't there, as a comparison finds them; owns the shards.
//!
//! In each run there are shards, the same under a second name (the control), others of their kind (a planted nothing), and
//! shards that do a known number of rounds of work more for each request. What a round costs is measured apart from all
//! this, alone on a CPU; what a request costs, under the run's own load.

use std::time::Duration;

use super::{
    super::{
        ComparisonError,
        rounds::{Entry, Rounds},
        told::Told,
    },
    Bench, load_error, misses,
};
use crate::{
    analysis::{Analysis, Cast, Evidence, Verdict, VerdictWord, analyse},
    contestant::{Direct, Shards},
    load::{self, Load, Shape},
    measure::{HostFacts, cpu_time},
    report::{Progress, Series, Settings},
    sample::{LoadKind, Measure, Sample},
    shard::burn,
    stats::{Estimate, median},
};

const PLAIN: &str = "plain";
const AGAIN: &str = "plain again";
const NOTHING: &str = "others";
const SLOWED: &str = "slowed";
const LOADS: [LoadKind; 1] = [LoadKind::KeepAlive];
const MEASURES: [Measure; 2] = [Measure::WholeCpuPerRequest, Measure::RequestsPerSecond];
/// How far the found slowdown may be from the planted one, in percentage points.
const WITHIN_POINTS: f64 = 1.5;

/// What one run found.
struct Found {
    /// In percent of a request's CPU time.
    planted_percent: f64,
    control: Estimate,
    nothing: Estimate,
    slowed: Estimate,
    slowed_requests: Estimate,
    complaint: Option<String>,
}

/// Shards, and who stands for them in a comparison.
struct Side {
    contestant: Direct,
    shards: Shards,
}

pub(super) fn check(bench: Bench<'_>, progress: &mut Progress, told: &mut Told) -> Result<(), ComparisonError> {
    let mut runs = Vec::new();
    for run in 0..bench.options.runs {
        progress.say(&format!("looking for planted differences: run {} of {}", run + 1, bench.options.runs));
        runs.push(one(bench, run, progress)?);
    }
    conclude(&runs, bench.options.slowdown * 100.0, told);
    Ok(())
}

fn one(bench: Bench<'_>, run: usize, progress: &mut Progress) -> Result<Found, ComparisonError> {
    let settings =
        Settings { seed: bench.options.settings.seed.wrapping_add(run as u64), ..bench.options.settings.clone() };
    let side = |name: &str, rounds| -> Result<Side, ComparisonError> {
        let shards = Shards::start_burning(&format!("{name}-{run}"), rounds, bench.scratch, &settings.cpus)?;
        Ok(Side { contestant: Direct::named(name, &shards.addresses()), shards })
    };
    let (plain, nothing) = (side(PLAIN, 0)?, side(NOTHING, 0)?);
    let nanos_per_request = nanos_per_request(bench, &settings, &plain)?;
    let nanos_per_round = burn::nanos_per_round(settings.cpus[0]).map_err(ComparisonError::Host)?;
    let rounds = (bench.options.slowdown * nanos_per_request / nanos_per_round).round();
    let slowed = side(SLOWED, rounds as u64)?;
    let processes = [&plain, &nothing, &slowed].map(|side| side.shards.processes());
    let entries = [
        Entry { name: PLAIN.into(), contestant: &plain.contestant, shards: &processes[0] },
        Entry { name: AGAIN.into(), contestant: &plain.contestant, shards: &processes[0] },
        Entry { name: NOTHING.into(), contestant: &nothing.contestant, shards: &processes[1] },
        Entry { name: SLOWED.into(), contestant: &slowed.contestant, shards: &processes[2] },
    ];
    let measured = Rounds::prepare(&entries, &LOADS, &settings, bench.interrupt, progress)?;
    let samples = measured.run(progress)?;
    let planted_percent = rounds * nanos_per_round / nanos_per_request * 100.0;
    found(&samples, planted_percent, settings.seed)
}

fn found(samples: &[Sample], planted_percent: f64, seed: u64) -> Result<Found, ComparisonError> {
    let online = HostFacts::read().map_err(ComparisonError::Host)?.online;
    let against = |subject: &'static str| -> Analysis {
        let contestants = [subject.to_owned(), PLAIN.to_owned()];
        let cast = Cast { subject, control: (PLAIN, AGAIN), contestants: &contestants, measures: &MEASURES };
        analyse(cast, samples, &Evidence::default(), &[], online, seed)
    };
    let of = |ratios: &[crate::analysis::Ratio], measure: Measure| {
        let found = ratios.iter().find(|ratio| ratio.measure == measure).map(|ratio| ratio.estimate);
        found.ok_or(ComparisonError::InVain { what: "an answer", deadline: Duration::ZERO })
    };
    let (nothing, slowed) = (against(NOTHING), against(SLOWED));
    Ok(Found {
        planted_percent,
        control: of(&slowed.control, Measure::WholeCpuPerRequest)?,
        nothing: of(&nothing.ratios, Measure::WholeCpuPerRequest)?,
        slowed: of(&slowed.ratios, Measure::WholeCpuPerRequest)?,
        slowed_requests: of(&slowed.ratios, Measure::RequestsPerSecond)?,
        complaint: slowed.noise.complaint(),
    })
}

/// CPU time of the shards for one request, under the load of the comparison.
fn nanos_per_request(bench: Bench<'_>, settings: &Settings, side: &Side) -> Result<f64, ComparisonError> {
    const TIMES: usize = 5;
    let processes = side.shards.processes();
    let load = Load {
        targets: side.shards.addresses(),
        connections: settings.connections,
        answer_bytes: settings.answer_bytes,
        shape: Shape::KeepAlive,
        cpus: settings.load_cpus.clone(),
        warm_up: Duration::from_secs_f64(settings.warm_up_seconds),
        duration: Duration::from_secs_f64(settings.duration_seconds),
    };
    let mut found = Vec::new();
    for _ in 0..TIMES {
        let (outcome, before, after) =
            load::run(&load, bench.interrupt, || cpu_time(&processes)).map_err(load_error(PLAIN))?;
        let process = |source| ComparisonError::Process { contestant: PLAIN.into(), source };
        let used = after.map_err(process)? - before.map_err(process)?;
        found.push(used.as_nanos() as f64 / outcome.requests.max(1) as f64);
    }
    Ok(median(&found).unwrap_or(0.0))
}

fn conclude(runs: &[Found], wanted_percent: f64, told: &mut Told) {
    let noisy: Vec<&String> = runs.iter().filter_map(|run| run.complaint.as_ref()).collect();
    // One noisy run is undecided in a report of its own; of many, most decide.
    let because =
        (noisy.len() * 2 > runs.len()).then(|| format!("{} of {} runs: {}", noisy.len(), runs.len(), noisy[0]));
    let judge = |target: String, found: String, holds: bool| {
        let word = match (&because, holds) {
            (Some(_), _) => VerdictWord::Undecided,
            (None, true) => VerdictWord::Held,
            (None, false) => VerdictWord::NotHeld,
        };
        Verdict { target, found, word, because: because.clone() }
    };
    let all = runs.len();
    let least = all - misses::allowed(all);
    let count = |holds: fn(&Found) -> bool| runs.iter().filter(|run| holds(run)).count();
    let chance = format!("in {least} of {all} runs at least: intervals of 95 % miss now and then");
    let (control, nothing) = (count(|run| run.control.includes(1.0)), count(|run| run.nothing.includes(1.0)));
    let slowed = count(|run| run.slowed.low > 1.0);
    let off: Vec<f64> = runs.iter().map(|run| percent(run.slowed.ratio) - run.planted_percent).collect();
    let off = median(&off).unwrap_or(f64::NAN);
    told.verdicts.extend([
        judge(format!("the control includes 1, {chance}"), format!("in {control}"), control >= least),
        judge(format!("a planted 0 % is not found, {chance}"), format!("in {nothing}"), nothing >= least),
        judge(
            format!("a planted {wanted_percent} % is found in all of {all} runs"),
            format!("in {slowed}"),
            slowed == all,
        ),
        judge(
            format!("it is found as large as planted, ± {WITHIN_POINTS} percentage points in the median"),
            format!("{off:+.2}"),
            off.abs() <= WITHIN_POINTS,
        ),
    ]);
    told.series.extend(series(runs));
}

fn series(runs: &[Found]) -> Vec<Series> {
    let of = |title: &str, value: fn(&Found) -> f64| Series::new(title, runs.iter().map(value).collect());
    vec![
        of("% of a request's CPU time that were planted", |run| run.planted_percent),
        of("  found", |run| percent(run.slowed.ratio)),
        of("    lower end of the interval", |run| percent(run.slowed.low)),
        of("    upper end", |run| percent(run.slowed.high)),
        of("  by how much requests/s differ: others take part in the path", |run| percent(run.slowed_requests.ratio)),
        of("% found in other processes where nothing was planted", |run| percent(run.nothing.ratio)),
        of("    lower end of the interval", |run| percent(run.nothing.low)),
        of("    upper end", |run| percent(run.nothing.high)),
        of("% found in the control", |run| percent(run.control.ratio)),
        of("    lower end of the interval", |run| percent(run.control.low)),
        of("    upper end", |run| percent(run.control.high)),
    ]
}

/// By how much a ratio differs from 1.
fn percent(ratio: f64) -> f64 {
    (ratio - 1.0) * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(control: (f64, f64), slowed: (f64, f64)) -> Found {
        let estimate = |(low, high): (f64, f64)| Estimate { ratio: f64::midpoint(low, high), low, high, pairs: 9 };
        Found {
            planted_percent: 5.0,
            control: estimate(control),
            nothing: estimate((0.99, 1.01)),
            slowed: estimate(slowed),
            slowed_requests: estimate((0.97, 0.98)),
            complaint: None,
        }
    }

    fn words(runs: &[Found]) -> Vec<VerdictWord> {
        let mut told = Told::default();
        conclude(runs, 5.0, &mut told);
        told.verdicts.iter().map(|verdict| verdict.word).collect()
    }

    #[test]
    fn one_miss_is_chance_and_two_of_two_are_not() {
        use VerdictWord::{Held, NotHeld, Undecided};
        let (good, off) = (|| run((0.99, 1.01), (1.04, 1.06)), || run((1.01, 1.02), (1.04, 1.06)));
        assert_eq!(words(&[good(), good()]), [Held; 4]);
        assert_eq!(words(&[good(), off()]), [Held; 4]);
        assert_eq!(words(&[off(), off()]), [NotHeld, Held, Held, Held]);
        let unfound = || run((0.99, 1.01), (0.99, 1.06));
        assert_eq!(words(&[good(), unfound(), good()]), [Held, Held, NotHeld, Held]);
        let too_much = || run((0.99, 1.01), (1.08, 1.10));
        assert_eq!(words(&[too_much(), too_much()]), [Held, Held, Held, NotHeld]);
        let noisy = || Found { complaint: Some("noise".into()), ..good() };
        assert_eq!(words(&[noisy(), noisy(), good()]), [Undecided; 4]);
    }
}
