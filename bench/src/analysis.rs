//! From samples to what may be said: medians, ratios with intervals, the control, the noise, and whether targets hold;
//! pure, and the only place that concludes anything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::{
    noise::Noise,
    target::{Bound, Sought, Target, Verdict, VerdictWord},
};
use crate::{
    sample::{BpfRuns, IdleMemory, Measure, Sample, SystemCalls},
    stats::{Estimate, median, ratio},
};

pub mod elimination;
mod noise;
mod target;

/// What a comparison says.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Analysis {
    /// What was compared, in the order of tables.
    pub measures: Vec<Measure>,
    /// Each contestant's median of each measure.
    pub medians: Vec<Median>,
    /// The subject against the others; of several subjects, one after the other.
    pub ratios: Vec<Ratio>,
    /// Something against itself: what this run cannot tell apart. One for each measure.
    pub control: Vec<Ratio>,
    /// What ratios were to reach.
    #[serde(default)]
    pub sought: Vec<Sought>,
    /// How much else the host did.
    pub noise: Noise,
    /// Whether the targets hold.
    pub verdicts: Vec<Verdict>,
}

/// A contestant's median over all samples of one measure.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Median {
    /// Of what.
    pub measure: Measure,
    /// Whose.
    pub contestant: String,
    /// In the measure's unit.
    pub value: f64,
}

/// One contestant against another.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Ratio {
    /// Of what.
    pub measure: Measure,
    /// Above the line.
    pub of: String,
    /// Below it.
    pub to: String,
    /// What the pairs say.
    #[serde(flatten)]
    pub estimate: Estimate,
}

/// Who is compared with whom.
#[derive(Debug, Clone, Copy)]
pub struct Cast<'a> {
    /// Whose ratios are told.
    pub subject: &'a str,
    /// Two whose ratio is known to be 1: mostly the subject and its second name in the same run.
    pub control: (&'a str, &'a str),
    /// All contestants, the subject among them; a second name is none.
    pub contestants: &'a [String],
    /// What is compared, in the order of tables.
    pub measures: &'a [Measure],
}

/// What is measured once and not in pairs.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Evidence {
    /// Memory of idle connections.
    pub idle: Vec<IdleMemory>,
    /// System calls of shards, and of what stands before them.
    pub calls: Vec<SystemCalls>,
    /// Run times of eBPF programs.
    pub bpf: Vec<BpfRuns>,
}

/// Concludes from `samples` and `evidence`. The same `seed` gives the same intervals.
pub fn analyse(
    cast: Cast<'_>,
    samples: &[Sample],
    evidence: &Evidence,
    targets: &[Target],
    host_cpus: usize,
    seed: u64,
) -> Analysis {
    let ratios = ratios(cast, samples, seed);
    let (of, to) = cast.control;
    let control: Vec<Ratio> = compared(cast).filter_map(|measure| ratio_of(samples, measure, of, to, seed)).collect();
    let noise = Noise::of(samples, host_cpus);
    let verdicts =
        targets.iter().map(|target| target.judge(cast.subject, &ratios, &control, evidence, &noise)).collect();
    Analysis {
        measures: cast.measures.to_vec(),
        medians: medians(cast, samples),
        ratios,
        control,
        sought: targets.iter().filter_map(Target::sought).collect(),
        noise,
        verdicts,
    }
}

impl Analysis {
    /// Tells ratios and verdicts of another subject in the same samples, beside those that are there. Its control counts
    /// where the first has none: what has no balancer controls no balancer's CPU time.
    pub fn tell_also(
        &mut self,
        cast: Cast<'_>,
        samples: &[Sample],
        evidence: &Evidence,
        targets: &[Target],
        seed: u64,
    ) {
        let ratios = ratios(cast, samples, seed);
        let (of, to) = cast.control;
        for measure in compared(cast) {
            if !self.control.iter().any(|control| control.measure == measure) {
                self.control.extend(ratio_of(samples, measure, of, to, seed));
            }
        }
        let judge = |target: &Target| target.judge(cast.subject, &ratios, &self.control, evidence, &self.noise);
        self.verdicts.extend(targets.iter().map(judge));
        self.ratios.extend(ratios);
    }
}

/// The subject's to all others.
fn ratios(cast: Cast<'_>, samples: &[Sample], seed: u64) -> Vec<Ratio> {
    let others = || cast.contestants.iter().filter(|name| *name != cast.subject);
    let to_others = |measure| others().filter_map(move |to| ratio_of(samples, measure, cast.subject, to, seed));
    compared(cast).flat_map(to_others).collect()
}

fn compared(cast: Cast<'_>) -> impl Iterator<Item = Measure> {
    cast.measures.iter().copied().filter(|measure| measure.is_compared())
}

fn ratio_of(samples: &[Sample], measure: Measure, of: &str, to: &str, seed: u64) -> Option<Ratio> {
    let estimate = ratio(&pairs(samples, measure, of, to), seed)?;
    Some(Ratio { measure, of: of.into(), to: to.into(), estimate })
}

fn medians(cast: Cast<'_>, samples: &[Sample]) -> Vec<Median> {
    let one = |measure: Measure, contestant: &String| {
        let of_it = samples.iter().filter(|sample| sample.contestant == *contestant);
        let values: Vec<f64> =
            of_it.filter_map(|sample| measure.of(sample)).filter(|value| value.is_finite()).collect();
        Some(Median { measure, contestant: contestant.clone(), value: median(&values)? })
    };
    cast.measures
        .iter()
        .flat_map(|measure| cast.contestants.iter().filter_map(move |contestant| one(*measure, contestant)))
        .collect()
}

/// One pair for each block: the means of `of` and of `to` there. A block runs A B B A, so that a drift that is even over
/// the block falls out of the means.
pub fn pairs(samples: &[Sample], measure: Measure, of: &str, to: &str) -> Vec<(f64, f64)> {
    let (of, to) = (block_means(samples, measure, of), block_means(samples, measure, to));
    of.into_iter().filter_map(|(block, mean)| Some((mean, *to.get(&block)?))).collect()
}

/// A contestant's mean in each block where it has one.
pub fn block_means(samples: &[Sample], measure: Measure, contestant: &str) -> BTreeMap<usize, f64> {
    let mut sums: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.contestant == contestant) {
        if let Some(value) = measure.of(sample) {
            let (sum, count) = sums.entry(sample.block).or_default();
            (*sum, *count) = (*sum + value, *count + 1);
        }
    }
    sums.into_iter().map(|(block, (sum, count))| (block, sum / count as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        sample::{LoadKind, tests::sample},
        stats::Random,
    };

    /// Blocks A A' B B' B' … mirrored, under a drift and some noise; B costs `factor` times A's CPU.
    fn run(factor: f64, blocks: usize, seed: u64) -> Vec<Sample> {
        let mut random = Random::new(seed);
        let mut samples = Vec::new();
        for block in 0..blocks {
            let order = ["a", "a again", "b", "b", "a again", "a"];
            for (position, contestant) in order.into_iter().enumerate() {
                let drift = 1.0 + 0.05 * (block * order.len() + position) as f64;
                let noise = 1.0 + 0.01 * (2.0 * random.unit() - 1.0);
                let cost = if contestant == "b" { factor } else { 1.0 };
                let mut sample = sample(LoadKind::KeepAlive, contestant, block);
                sample.balancer_cpu_seconds = Some(0.1 * drift * noise * cost);
                samples.push(sample);
            }
        }
        samples
    }

    fn analysis(samples: &[Sample]) -> Analysis {
        let contestants = ["a".to_owned(), "b".to_owned()];
        let measures = [Measure::CpuPerRequest, Measure::RequestsPerSecond];
        let cast = Cast { subject: "a", control: ("a", "a again"), contestants: &contestants, measures: &measures };
        analyse(cast, samples, &Evidence::default(), &[], 2, 1)
    }

    fn cpu(ratios: &[Ratio]) -> Estimate {
        ratios.iter().find(|ratio| ratio.measure == Measure::CpuPerRequest).expect("it was measured").estimate
    }

    #[test]
    fn a_planted_difference_is_found_through_drift_and_noise() {
        let found = cpu(&analysis(&run(1.05, 10, 3)).ratios);
        assert!(found.high < 1.0 && found.includes(1.0 / 1.05), "{found:?}");
        assert_eq!(found.pairs, 10);
    }

    #[test]
    fn the_control_and_a_planted_nothing_include_one() {
        let mut outside = 0;
        for seed in 0..50 {
            let analysis = analysis(&run(1.0, 10, seed));
            outside += usize::from(!cpu(&analysis.control).includes(1.0));
            outside += usize::from(!cpu(&analysis.ratios).includes(1.0));
        }
        assert!(outside <= 12, "about 5 of 100 intervals may miss, {outside} did");
    }

    #[test]
    fn another_subject_is_told_beside_the_first() {
        let samples = run(2.0, 6, 3);
        let mut analysis = analysis(&samples);
        let before = analysis.ratios.len();
        let contestants = ["a".to_owned(), "b".to_owned()];
        let cast = Cast {
            subject: "b",
            control: ("a", "a again"),
            contestants: &contestants,
            measures: &[Measure::CpuPerRequest],
        };
        let target = Target::Peers { measure: Measure::CpuPerRequest, peers: &["a"], bound: Bound::AtMost(1.5) };
        analysis.tell_also(cast, &samples, &Evidence::default(), &[target], 1);
        let [told] = &analysis.ratios[before..] else { panic!("one more: {:?}", analysis.ratios) };
        assert!(told.of == "b" && told.to == "a" && told.estimate.includes(2.0), "{told:?}");
        let [verdict] = &*analysis.verdicts else { panic!("one: {:?}", analysis.verdicts) };
        assert!(verdict.target.starts_with("b: ") && verdict.found.ends_with("× a"), "{verdict:?}");
    }

    #[test]
    fn medians_are_of_the_contestants_only() {
        let found = analysis(&run(2.0, 3, 3)).medians;
        let names: Vec<&str> = found
            .iter()
            .filter(|median| median.measure == Measure::RequestsPerSecond)
            .map(|median| &*median.contestant)
            .collect();
        assert_eq!(names, ["a", "b"]);
    }
}
