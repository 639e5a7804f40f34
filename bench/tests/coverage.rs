//! Whether intervals hold the truth as often as they say, over a thousand simulated runs with noise like that of real ones: a
//! drift that all share, bursts of neighbours, and heavy tails, in the order in which a block runs.

use sherd_bench::stats::{Estimate, Random, ratio};

/// How a simulated host disturbs; standard deviations of a sample's logarithm.
#[derive(Debug, Clone, Copy)]
struct Noise {
    /// What all have in common, and how much of it is still there in the next sample.
    drift: f64,
    persistence: f64,
    /// Each sample's own.
    own: f64,
    /// One of so many samples is in a burst, which costs up to 40 %.
    burst_in: usize,
}

const QUIET: Noise = Noise { drift: 0.01, persistence: 0.9, own: 0.005, burst_in: 200 };
/// As in the samples of bench/results: 10 % between samples of one contestant.
const REAL: Noise = Noise { drift: 0.09, persistence: 0.9, own: 0.03, burst_in: 30 };
const NOISES: [Noise; 2] = [QUIET, REAL];

struct Host {
    random: Random,
    noise: Noise,
    drift: f64,
}

impl Host {
    fn new(noise: Noise, seed: u64) -> Self {
        Self { random: Random::new(seed), noise, drift: 0.0 }
    }

    /// By Box and Muller.
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.random.exponential(), self.random.unit());
        (2.0 * radius).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    /// A measurement of something that is `truth`.
    fn sample(&mut self, truth: f64) -> f64 {
        let Noise { drift, persistence, own, burst_in } = self.noise;
        self.drift = persistence * self.drift + (1.0 - persistence * persistence).sqrt() * drift * self.normal();
        // A mixture of a narrow and a wide one has the tails of real samples.
        let wide = if self.random.below(5) == 0 { 3.0 } else { 1.0 };
        let burst = if self.random.below(burst_in) == 0 { 0.4 * self.random.unit() } else { 0.0 };
        truth * (self.drift + own * wide * self.normal() + burst).exp()
    }

    /// A run: in each block A B B A or B A A B, as drawn.
    fn run(&mut self, of: f64, to: f64, pairs: usize, seed: u64) -> Estimate {
        let pair = |_| {
            let (a, b) = if self.random.below(2) == 0 { (of, to) } else { (to, of) };
            let samples = [a, b, b, a].map(|truth| self.sample(truth));
            let (outer, inner) = (samples[0] + samples[3], samples[1] + samples[2]);
            if a == of { (outer, inner) } else { (inner, outer) }
        };
        let pairs: Vec<(f64, f64)> = (0..pairs).map(pair).collect();
        ratio(&pairs, seed).expect("there are pairs")
    }
}

#[test]
fn intervals_of_95_percent_hold_the_truth_in_about_95_of_100_runs() {
    let runs = if std::env::var_os("SHERD_PROVE").is_some() { 10_000 } else { 1000 };
    for noise in NOISES {
        let held = (0..runs).filter(|seed| Host::new(noise, *seed).run(1.0, 1.0, 12, *seed).includes(1.0)).count();
        let share = held as f64 / runs as f64;
        println!("{noise:?}: {:.1} % of {runs} intervals hold the truth", share * 100.0);
        // The standard deviation of a thousand is 0.7 %; a median of twelve has few values to choose from.
        assert!((0.925..=0.985).contains(&share), "{share} of {runs} under {noise:?}");
    }
}

#[test]
fn what_is_planted_is_found_where_the_noise_lets_it_be() {
    const RUNS: u64 = 200;
    for (noise, pairs) in [(QUIET, 12), (REAL, 100)] {
        let found: Vec<Estimate> = (0..RUNS).map(|seed| Host::new(noise, seed).run(1.05, 1.0, pairs, seed)).collect();
        let seen = found.iter().filter(|found| found.low > 1.0).count();
        let held = found.iter().filter(|found| found.includes(1.05)).count();
        println!("{noise:?}, {pairs} pairs: found in {seen} of {RUNS} runs, the interval holds 1.05 in {held}");
        assert!(seen >= 190 && held >= 180, "{seen} and {held} of {RUNS} under {noise:?} with {pairs} pairs");
    }
}
