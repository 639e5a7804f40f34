//! Latencies that a server plants, and what the open loop makes of them; owns the server.

use std::time::Duration;

use nix::unistd::Pid;

use super::{
    super::{ComparisonError, told::Told, trial::Bystanders},
    Bench, load_error,
};
use crate::{
    analysis::{Verdict, VerdictWord},
    load::{
        self, Load, Outcome, Shape,
        planted::{Lateness, Planted, Tier},
    },
    report::{Progress, Series},
    stats::median,
};

const REQUESTS_PER_SECOND: f64 = 500.0;
const CONNECTIONS: usize = 64;
const WARM_UP: Duration = Duration::from_millis(300);
/// Shares of requests, and what reports call them.
const PERCENTILES: [(f64, &str); 5] = [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "max")];
/// Waking up takes its time, and so does answering all that waited for a stall's end.
const TIERS_MILLIS: f64 = 1.0;
const STALL_MILLIS: f64 = 10.0;
/// A latency that is shorter than what was planted is a fault, but for the histogram's three digits.
const ROUNDING: f64 = 0.002;
/// More of the host's CPU time than this used by others, in percent, and a latency that is too long concludes nothing.
const MAX_FOREIGN_PERCENT: f64 = 5.0;

/// What was found beside what was planted, for each percentile.
struct Trial {
    name: &'static str,
    tolerance_millis: f64,
    lateness: Lateness,
    planted: Vec<f64>,
    /// Of each percentile, in each round.
    found: Vec<Vec<f64>>,
    foreign_percent: Vec<f64>,
}

pub(super) fn check(bench: Bench<'_>, progress: &mut Progress, told: &mut Told) -> Result<(), ComparisonError> {
    let seconds = bench.options.latency_seconds;
    let stall = Lateness::Stall { from: Duration::from_secs(1), to: Duration::from_secs(2) };
    for (name, tolerance_millis, lateness) in [("delays", TIERS_MILLIS, tiers()), ("a stall", STALL_MILLIS, stall)] {
        progress.say(&format!("planting {name}, {} times {seconds} s", bench.options.latency_rounds));
        let load = load(bench);
        let planted = PERCENTILES.iter().filter_map(|(share, _)| lateness.expected_millis(&load, *share)).collect();
        let found = vec![Vec::new(); PERCENTILES.len()];
        let mut trial = Trial { name, tolerance_millis, lateness, planted, found, foreign_percent: Vec::new() };
        for _ in 0..bench.options.latency_rounds {
            trial.round(bench, &load)?;
        }
        trial.conclude(told);
    }
    Ok(())
}

/// Far apart, and edges far from all percentiles: a small lateness of everything stays one.
fn tiers() -> Lateness {
    let tier = |share, millis| Tier { share, delay: Duration::from_millis(millis) };
    Lateness::Tiers(vec![tier(1200, 2), tier(680, 10), tier(110, 30), tier(9, 80), tier(1, 200)])
}

fn load(bench: Bench<'_>) -> Load {
    let settings = &bench.options.settings;
    Load {
        targets: Vec::new(),
        connections: CONNECTIONS.max(settings.load_cpus.len()),
        answer_bytes: 0,
        shape: Shape::Open { requests_per_second: REQUESTS_PER_SECOND, seed: settings.seed },
        cpus: settings.load_cpus.clone(),
        warm_up: WARM_UP,
        duration: Duration::from_secs(bench.options.latency_seconds),
    }
}

impl Trial {
    fn round(&mut self, bench: Bench<'_>, load: &Load) -> Result<(), ComparisonError> {
        let server = Planted::start(self.lateness.clone()).map_err(ComparisonError::Host)?;
        let load = Load { targets: vec![server.address()], ..load.clone() };
        let others = Bystanders::of(vec![Pid::this()])?;
        let (outcome, (), ()) = load::run(&load, bench.interrupt, || ()).map_err(load_error("the planting server"))?;
        self.foreign_percent.push(others.percent()?);
        for ((share, _), found) in PERCENTILES.iter().zip(&mut self.found) {
            found.push(millis(&outcome, *share));
        }
        Ok(())
    }

    fn conclude(self, told: &mut Told) {
        told.verdicts.push(self.verdict());
        for (((_, word), planted), found) in PERCENTILES.iter().zip(&self.planted).zip(self.found) {
            told.series
                .push(Series::new(format!("{}: ms at {word}, where {planted:.2} were planted", self.name), found));
        }
    }

    fn verdict(&self) -> Verdict {
        let Self { name, tolerance_millis, .. } = self;
        let target = format!("{name}: each percentile at most {tolerance_millis} ms more than planted, and never less");
        let of_each = || self.planted.iter().zip(&self.found);
        let least =
            of_each().flat_map(|(planted, found)| found.iter().map(move |found| found - planted * (1.0 - ROUNDING)));
        let least = least.fold(f64::INFINITY, f64::min);
        let most = of_each().filter_map(|(planted, found)| Some(median(found)? - planted)).fold(0.0, f64::max);
        let foreign = median(&self.foreign_percent).unwrap_or(0.0);
        let (word, because) = if least < 0.0 {
            (VerdictWord::NotHeld, None)
        } else if most <= *tolerance_millis {
            (VerdictWord::Held, None)
        } else if foreign > MAX_FOREIGN_PERCENT {
            (VerdictWord::Undecided, Some(format!("others used {foreign:.1} % of the CPU time")))
        } else {
            (VerdictWord::NotHeld, None)
        };
        Verdict { target, found: format!("at most {most:.2} ms more, at least {least:.2}"), word, because }
    }
}

fn millis(outcome: &Outcome, share: f64) -> f64 {
    outcome.latency.value_at_quantile(share) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_planted_is_a_fault_and_noise_excuses_only_more() {
        let check = |found: [f64; 3], foreign: f64, expected| {
            let found: Vec<f64> = found.into();
            let trial = Trial {
                name: "",
                tolerance_millis: 1.0,
                lateness: tiers(),
                planted: vec![50.0],
                found: vec![found.clone()],
                foreign_percent: vec![foreign],
            };
            assert_eq!(trial.verdict().word, expected, "{found:?} with {foreign} %");
        };
        check([50.1, 50.2, 70.0], 0.0, VerdictWord::Held);
        check([49.95, 50.2, 50.1], 0.0, VerdictWord::Held);
        check([49.0, 50.2, 50.1], 90.0, VerdictWord::NotHeld);
        check([50.1, 52.0, 53.0], 1.0, VerdictWord::NotHeld);
        check([50.1, 52.0, 53.0], 90.0, VerdictWord::Undecided);
    }
}
