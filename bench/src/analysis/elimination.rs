//! Which of several is best, by successive elimination: all are measured in rounds, and after some of them those that are
//! surely worse than the leader leave; pure, and knows nothing of what is measured.
//!
//! Two are compared by the mean of the logarithms of their ratios within rounds, with Student's interval. The intervals hold
//! together, over all pairs and all looks, with 95 % confidence (Bonferroni): look number j spends 1/(j(j+1)) of the 5 %,
//! which adds up to all of it however many looks there are. So one that is as good as the leader is lost in at most one run
//! of twenty, wherever a run ends. Ratios within rounds of two that are equally good are symmetric about 1 whatever the noise
//! is like, and Student's interval errs on the safe side where it has heavy tails.

use crate::stats::critical_value;

/// How often all intervals of a run may be wrong, together.
const MISSES: f64 = 0.05;
/// The first look; from fewer rounds nothing follows.
const FIRST_LOOK: usize = 4;

/// One against another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Advantage {
    /// How many times as good.
    pub ratio: f64,
    /// At least so many times.
    pub low: f64,
    /// At most so many times.
    pub high: f64,
    /// How many rounds it stands on.
    pub rounds: usize,
}

impl Advantage {
    /// Seen from the other.
    pub fn inverse(self) -> Self {
        Self { ratio: 1.0 / self.ratio, low: 1.0 / self.high, high: 1.0 / self.low, rounds: self.rounds }
    }

    /// Whether the interval includes `value`.
    pub fn includes(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// Where one stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Standing {
    /// It may be the best.
    In,
    /// It is surely worse.
    Worse {
        /// Than whom.
        than: usize,
        /// The other's advantage, when it was seen.
        by: Advantage,
    },
    /// It doesn't work.
    Failed,
}

/// Whether more rounds are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// They may tell more.
    Open,
    /// One is left.
    Decided,
    /// What is left is as good as the leader within the margin.
    Alike,
}

/// A run, so far.
#[derive(Debug, Clone)]
pub struct Elimination {
    /// Logarithms of each one's scores, more is better, from the first round until it was out.
    scores: Vec<Vec<f64>>,
    standings: Vec<Standing>,
    /// A difference that nobody cares about, as a ratio above 1.
    margin: f64,
    rounds: usize,
    looks: usize,
    next_look: usize,
}

impl Elimination {
    /// Of so many, the simplest first. Nobody cares about a difference below `margin`, a ratio above 1.
    pub fn new(candidates: usize, margin: f64) -> Self {
        Self {
            scores: vec![Vec::new(); candidates],
            standings: vec![Standing::In; candidates],
            margin,
            rounds: 0,
            looks: 0,
            next_look: FIRST_LOOK,
        }
    }

    /// Those that are in.
    pub fn remaining(&self) -> Vec<usize> {
        (0..self.standings.len()).filter(|one| self.standings[*one] == Standing::In).collect()
    }

    /// Where each stands.
    pub fn standings(&self) -> &[Standing] {
        &self.standings
    }

    /// How many rounds there were.
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// Takes a round: a score above 0, more is better, of each that is in.
    pub fn take(&mut self, scores: &[(usize, f64)]) -> Progress {
        for (one, score) in scores {
            self.scores[*one].push(score.ln());
        }
        self.rounds += 1;
        if self.rounds >= self.next_look {
            // A third more rounds each time: a look that is soon after another tells nothing new and costs certainty.
            self.next_look = self.rounds + (self.rounds / 3).max(1);
            self.look();
        }
        self.progress()
    }

    /// Takes out one that doesn't work.
    pub fn fail(&mut self, one: usize) {
        self.standings[one] = Standing::Failed;
    }

    /// A last look, if there were rounds since the one before.
    pub fn finish(&mut self) {
        if self.rounds >= FIRST_LOOK {
            self.look();
        }
    }

    /// Who is ahead of those that are in; the simpler one of two that are equal. None when nobody is in.
    pub fn leader(&self) -> Option<usize> {
        let mean = |one: usize| mean(&self.scores[one]);
        self.remaining().into_iter().reduce(|best, one| if mean(one) > mean(best) { one } else { best })
    }

    /// `one` against `other`, over the rounds that both were in; None before the first look.
    pub fn advantage(&self, one: usize, other: usize) -> Option<Advantage> {
        if self.looks == 0 {
            return None;
        }
        let pairs = self.scores.len() * (self.scores.len() - 1) / 2;
        let look = self.looks as f64;
        let spent = MISSES / (look * (look + 1.0));
        interval(&self.scores[one], &self.scores[other], spent / (2 * pairs.max(1)) as f64)
    }

    fn look(&mut self) {
        self.looks += 1;
        let Some(leader) = self.leader() else { return };
        for one in self.remaining() {
            if let Some(by) = self.advantage(leader, one).filter(|by| one != leader && by.low > 1.0) {
                self.standings[one] = Standing::Worse { than: leader, by };
            }
        }
    }

    fn progress(&self) -> Progress {
        let remaining = self.remaining();
        let Some(leader) = self.leader().filter(|_| remaining.len() > 1) else { return Progress::Decided };
        let is_alike = |one: &usize| {
            *one == leader || self.advantage(leader, *one).is_some_and(|advantage| advantage.high < self.margin)
        };
        if remaining.iter().all(is_alike) { Progress::Alike } else { Progress::Open }
    }
}

/// One against itself under another name, from its logarithms: whether a run can be believed. None from fewer than two
/// rounds.
pub fn control(logarithms: &[f64], again: &[f64]) -> Option<Advantage> {
    interval(logarithms, again, MISSES / 2.0)
}

/// Of the rounds that both have; the true ratio is above the interval with probability `tail`, and as often below it.
fn interval(one: &[f64], other: &[f64], tail: f64) -> Option<Advantage> {
    let differences: Vec<f64> = one.iter().zip(other).map(|(a, b)| a - b).collect();
    let rounds = differences.len();
    if rounds < 2 {
        return None;
    }
    let middle = mean(&differences);
    let squares: f64 = differences.iter().map(|difference| (difference - middle).powi(2)).sum();
    let standard_error = (squares / ((rounds - 1) * rounds) as f64).sqrt();
    let reach = critical_value(tail, rounds - 1) * standard_error;
    Some(Advantage { ratio: middle.exp(), low: (middle - reach).exp(), high: (middle + reach).exp(), rounds })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Random;

    const ROUNDS: usize = 60;
    const MARGIN: f64 = 1.02;
    const RUNS: u64 = 200;

    /// How a host disturbs.
    #[derive(Debug, Clone, Copy)]
    enum Noise {
        /// Each sample within so much of its truth, evenly.
        Even(f64),
        /// Normally distributed, with this deviation.
        Normal(f64),
        /// As `Normal`, and one sample of twenty loses a fifth to a neighbour.
        Bursts(f64),
    }

    impl Noise {
        fn factor(self, random: &mut Random) -> f64 {
            let mut normal = |deviation: f64| {
                // Box-Muller.
                let radius = (2.0 * random.exponential()).sqrt();
                1.0 + deviation * radius * (std::f64::consts::TAU * random.unit()).cos()
            };
            match self {
                Self::Even(reach) => 1.0 + reach * (2.0 * random.unit() - 1.0),
                Self::Normal(deviation) => normal(deviation),
                Self::Bursts(deviation) => {
                    let factor = normal(deviation);
                    if random.below(20) == 0 { 0.8 * factor } else { factor }
                }
            }
        }
    }

    /// A run in which `truths` are the scores, under a drift that all share and noise of their own.
    fn run(truths: &[f64], noise: Noise, seed: u64) -> Elimination {
        let mut random = Random::new(seed);
        let mut elimination = Elimination::new(truths.len(), MARGIN);
        for round in 0..ROUNDS {
            let drift = 1.0 + 0.1 * (round as f64 / 9.0).sin();
            let scores: Vec<(usize, f64)> = elimination
                .remaining()
                .into_iter()
                // The mean of two, as a round has them.
                .map(|one| {
                    (one, truths[one] * drift * f64::midpoint(noise.factor(&mut random), noise.factor(&mut random)))
                })
                .collect();
            if elimination.take(&scores) != Progress::Open {
                break;
            }
        }
        elimination.finish();
        elimination
    }

    const NOISES: [Noise; 4] = [Noise::Even(0.05), Noise::Normal(0.01), Noise::Normal(0.03), Noise::Bursts(0.02)];

    #[test]
    fn a_planted_difference_of_5_percent_is_found() {
        for noise in NOISES {
            for best in 0..5 {
                let mut truths = [1000.0; 5];
                truths[best] *= 1.05;
                let found = (0..RUNS / 5).filter(|seed| run(&truths, noise, *seed).remaining() == [best]).count();
                assert!(found as f64 >= 0.95 * (RUNS / 5) as f64, "{noise:?}: {best} was found {found} times");
            }
        }
    }

    #[test]
    fn a_planted_nothing_is_not_found() {
        for noise in NOISES {
            let none = (0..RUNS).filter(|seed| run(&[1000.0; 5], noise, *seed).remaining().len() == 5).count();
            assert!(none as f64 >= 0.95 * RUNS as f64, "{noise:?}: nothing was found {none} times of {RUNS}");
        }
    }

    #[test]
    fn a_large_difference_ends_soon_and_little_noise_too() {
        assert_eq!(run(&[1000.0, 1500.0, 800.0], Noise::Normal(0.01), 1).rounds(), FIRST_LOOK);
        let alike = run(&[1000.0; 3], Noise::Normal(0.002), 1);
        assert!(alike.rounds() < ROUNDS / 2 && alike.remaining().len() == 3, "{} rounds", alike.rounds());
    }

    #[test]
    fn intervals_hold_what_was_planted() {
        let found = run(&[1000.0, 1050.0], Noise::Normal(0.01), 3);
        let Standing::Worse { than: 1, by } = found.standings()[0] else { panic!("{:?}", found.standings()) };
        assert!(by.includes(1.05) && !by.includes(1.0), "{by:?}");
        let seen_from_the_other = by.inverse();
        assert!((seen_from_the_other.ratio * by.ratio - 1.0).abs() < 1e-12);
        assert!(seen_from_the_other.low < seen_from_the_other.ratio && seen_from_the_other.high < 1.0);
    }

    #[test]
    fn what_fails_is_out_and_of_equal_ones_the_simpler_leads() {
        let mut elimination = Elimination::new(3, MARGIN);
        assert_eq!(elimination.take(&[(0, 5.0), (1, 9.0), (2, 9.0)]), Progress::Open);
        assert_eq!(elimination.leader(), Some(1));
        assert_eq!(elimination.advantage(0, 1), None, "one round tells nothing");
        elimination.fail(1);
        assert_eq!((elimination.leader(), elimination.remaining()), (Some(2), vec![0, 2]));
        elimination.fail(2);
        assert_eq!(elimination.take(&[(0, 5.0)]), Progress::Decided);
        elimination.fail(0);
        assert_eq!(elimination.leader(), None);
    }

    #[test]
    fn the_control_is_a_plain_interval() {
        let found = control(&[1.0, 2.0, 3.0, 4.0], &[1.1, 1.9, 3.1, 3.9]).expect("four rounds");
        assert!(found.includes(1.0) && found.rounds == 4, "{found:?}");
        assert_eq!(control(&[1.0], &[1.0]), None);
    }
}
