//! How much of the host's CPU time went elsewhere during a run, and whether that is too much to conclude.

use serde::{Deserialize, Serialize};

use crate::{sample::Sample, stats::median};

/// More than this, and a run does not conclude.
const MAX_STOLEN_SHARE: f64 = 0.01;
/// More than this, and a run does not conclude. Softirq work that no process is charged for is in it: some is normal.
const MAX_FOREIGN_SHARE: f64 = 0.05;

/// What else the host did, as shares of its CPU time; medians over all samples.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Noise {
    /// Given to other guests by the hypervisor.
    pub stolen_share: f64,
    /// Used by what is not part of the run.
    pub foreign_share: f64,
}

impl Noise {
    pub(crate) fn of(samples: &[Sample], host_cpus: usize) -> Self {
        let share = |of: fn(&Sample, usize) -> f64| {
            let shares: Vec<f64> = samples.iter().map(|sample| of(sample, host_cpus)).collect();
            median(&shares).unwrap_or(0.0)
        };
        Self { stolen_share: share(Sample::stolen_share), foreign_share: share(Sample::foreign_share) }
    }

    /// Why nothing should be concluded, if so.
    pub fn complaint(&self) -> Option<String> {
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        if self.stolen_share > MAX_STOLEN_SHARE {
            return Some(format!("the hypervisor stole {} of the CPU time", percent(self.stolen_share)));
        }
        (self.foreign_share > MAX_FOREIGN_SHARE)
            .then(|| format!("other processes used {} of the CPU time", percent(self.foreign_share)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{LoadKind, tests::sample};

    #[test]
    fn noise_complains_only_above_its_limits() {
        let mut quiet = sample(LoadKind::KeepAlive, "a", 0);
        (quiet.host_cpu_seconds, quiet.stolen_seconds) = (2.1, 0.01);
        let busy = Sample { host_cpu_seconds: 3.0, ..quiet.clone() };
        let stolen = Sample { stolen_seconds: 0.2, ..quiet.clone() };
        for (samples, complains) in [
            (vec![], false),
            (vec![quiet.clone()], false),
            (vec![busy.clone()], true),
            (vec![stolen], true),
            (vec![quiet.clone(), busy, quiet], false),
        ] {
            assert_eq!(Noise::of(&samples, 2).complaint().is_some(), complains, "{samples:?}");
        }
    }
}
