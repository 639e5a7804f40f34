//! The maximum of one server, found by our load generator and by others in turn; owns the server.
//!
//! The server works so long for each request that it is what ends the maximum, on a CPU that the generators leave alone:
//! else the cheaper generator would find more. What they find of a server that does nothing is told too, and not judged.

use std::time::Duration;

use super::{
    super::{ComparisonError, told::Told},
    Bench, load_error,
};
use crate::{
    analysis::{Verdict, VerdictWord},
    contestant::{GeneratorOrder, InstalledGenerator, Shards, StartError},
    load::{self, Load, Shape},
    report::{Missing, Progress, Series},
    shard::burn,
    stats::{Estimate, ratio},
};

/// Several times what any generator needs for a request.
const WORK: Duration = Duration::from_micros(60);
const TOLERANCE: f64 = 0.05;
const WARM_UP: Duration = Duration::from_millis(200);
const MIN_PAIRS: usize = 4;

pub(super) fn check(bench: Bench<'_>, progress: &mut Progress, told: &mut Told) -> Result<(), ComparisonError> {
    let settings = &bench.options.settings;
    let server_cpu = settings.cpus[0];
    let load_cpus: Vec<usize> = settings.load_cpus.iter().copied().filter(|cpu| *cpu != server_cpu).collect();
    let alone = !load_cpus.is_empty();
    let load_cpus = if alone { load_cpus } else { settings.load_cpus.clone() };
    let nanos = burn::nanos_per_round(server_cpu).map_err(ComparisonError::Host)?;
    for (generator, program) in &bench.options.generators {
        let installed = match generator.find(program.as_deref()) {
            Ok(installed) => installed,
            Err(error @ StartError::Missing { .. }) => {
                told.remarks.push(Missing::of(generator.name(), &error).why);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let name = generator.name();
        progress.say(&format!("{name} and our generator in turn, {} times", bench.options.generator_pairs));
        for (words, rounds) in [("busy", (WORK.as_nanos() as f64 / nanos) as u64), ("idle", 0)] {
            let server = Shards::start_burning(&format!("{name}-{words}"), rounds, bench.scratch, &[server_cpu])?;
            let pairs = pairs(bench, &installed, &server, &load_cpus)?;
            let found = ratio(&pairs, settings.seed);
            let what = format!("requests/s of a server that is {words} with each");
            told.series.push(Series::new(format!("{what}, ours"), pairs.iter().map(|pair| pair.0).collect()));
            told.series.push(Series::new(format!("{what}, {name}"), pairs.iter().map(|pair| pair.1).collect()));
            match found {
                Some(found) if rounds > 0 => told.verdicts.push(verdict(name, &found, alone)),
                Some(Estimate { ratio, low, high, .. }) => told.remarks.push(format!(
                    "of a server that does nothing, ours finds {ratio:.3} ({low:.3}–{high:.3}) × {name}'s maximum: it is the \
                     generators' own costs that differ"
                )),
                None => told.remarks.push(format!("{name} or ours found no answer")),
            }
        }
        told.contestants.push(installed.facts().clone());
    }
    Ok(())
}

/// Both in turn, the first one second in the next pair.
fn pairs(
    bench: Bench<'_>,
    installed: &InstalledGenerator,
    server: &Shards,
    cpus: &[usize],
) -> Result<Vec<(f64, f64)>, ComparisonError> {
    let settings = &bench.options.settings;
    let targets = server.addresses();
    let order = GeneratorOrder {
        target: targets[0],
        answer_bytes: settings.answer_bytes,
        connections: settings.connections,
        cpus,
        seconds: bench.options.generator_seconds,
    };
    let load = Load {
        targets: targets.clone(),
        connections: settings.connections,
        answer_bytes: settings.answer_bytes,
        shape: Shape::KeepAlive,
        cpus: cpus.to_vec(),
        warm_up: WARM_UP,
        duration: Duration::from_secs(bench.options.generator_seconds),
    };
    let ours = || {
        let (outcome, (), ()) = load::run(&load, bench.interrupt, || ()).map_err(load_error("our generator"))?;
        Ok::<f64, ComparisonError>(outcome.requests_per_second())
    };
    let theirs = || {
        let name = installed.facts().name.clone();
        installed.requests_per_second(order).map_err(|source| ComparisonError::Generator { name, source })
    };
    let mut pairs = Vec::new();
    for pair in 0..bench.options.generator_pairs {
        if bench.interrupt.is_raised() {
            return Err(ComparisonError::Interrupted);
        }
        pairs.push(if pair % 2 == 0 {
            let first = ours()?;
            (first, theirs()?)
        } else {
            let first = theirs()?;
            (ours()?, first)
        });
    }
    Ok(pairs)
}

fn verdict(name: &str, found: &Estimate, alone: bool) -> Verdict {
    let Estimate { ratio, low, high, pairs } = *found;
    let because = if !alone {
        Some("server and generators share a CPU: give --cpus and --load-cpus".to_owned())
    } else {
        (pairs < MIN_PAIRS).then(|| format!("{pairs} pairs are too few, {MIN_PAIRS} would do"))
    };
    let (least, most) = (1.0 - TOLERANCE, 1.0 + TOLERANCE);
    let word = match because {
        Some(_) => VerdictWord::Undecided,
        None if least <= low && high <= most => VerdictWord::Held,
        None if high < least || most < low => VerdictWord::NotHeld,
        None => VerdictWord::Undecided,
    };
    let because = because.or_else(|| (word == VerdictWord::Undecided).then(|| "the interval lies across".into()));
    let target = format!("the same maximum as {name} finds, ± {:.0} %", TOLERANCE * 100.0);
    Verdict { target, found: format!("{ratio:.3} ({low:.3}–{high:.3}) ×"), word, because }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_interval_decides() {
        let check = |low, high, alone, expected| {
            let found = Estimate { ratio: f64::midpoint(low, high), low, high, pairs: 8 };
            assert_eq!(verdict("wrk", &found, alone).word, expected, "{low}–{high} {alone}");
        };
        check(0.98, 1.04, true, VerdictWord::Held);
        check(0.93, 1.04, true, VerdictWord::Undecided);
        check(1.06, 1.1, true, VerdictWord::NotHeld);
        check(0.98, 1.04, false, VerdictWord::Undecided);
    }
}
