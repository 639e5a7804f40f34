//! From values to pixels, and where ticks are; pure arithmetic.

/// Few enough to be read.
const MOST_TICKS: usize = 7;
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];

/// A way from values to pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    kind: Kind,
    least: f64,
    most: f64,
    pixels: (f64, f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Linear,
    Log,
}

impl Scale {
    /// Equal steps, with some room around `values`; from 0 where they come near it.
    pub(super) fn linear(values: impl IntoIterator<Item = f64>, pixels: (f64, f64)) -> Self {
        let found = span(values.into_iter().filter(|value| value.is_finite()));
        let (least, most) = found.filter(|ends| *ends != (0.0, 0.0)).unwrap_or((0.0, 1.0));
        let from_zero = least >= 0.0 && least < most * 0.6;
        let room = (most - least).max(most.abs() * 0.02).max(f64::MIN_POSITIVE);
        let least = if from_zero { 0.0 } else { least - 0.08 * room };
        let most = if most > least { most + 0.06 * room } else { least + 1.0 };
        Self { kind: Kind::Linear, least, most, pixels }
    }

    /// From `least` to `most`, which is larger, and no further.
    pub(super) fn exact(least: f64, most: f64, pixels: (f64, f64)) -> Self {
        Self { kind: Kind::Linear, least, most: if most > least { most } else { least + 1.0 }, pixels }
    }

    /// Equal ratios, with some room around `values`; those that have no logarithm are left out.
    pub(super) fn log(values: impl IntoIterator<Item = f64>, pixels: (f64, f64)) -> Self {
        let usable = values.into_iter().filter(|value| value.is_finite() && *value > 0.0);
        let (least, most) = span(usable).unwrap_or((1.0, 10.0));
        let room = (most / least).powf(0.05).max(1.02);
        Self { kind: Kind::Log, least: least / room, most: most * room, pixels }
    }

    /// Where `value` is; beyond the ends, at the end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = match self.kind {
            Kind::Linear => (value - self.least) / (self.most - self.least),
            Kind::Log => (value.max(f64::MIN_POSITIVE) / self.least).ln() / (self.most / self.least).ln(),
        };
        self.pixels.0 + share.clamp(0.0, 1.0) * (self.pixels.1 - self.pixels.0)
    }

    /// Round values within the scale, ascending, at most [`MOST_TICKS`].
    pub(super) fn ticks(&self) -> Vec<f64> {
        match self.kind {
            Kind::Linear => self.linear_ticks(),
            Kind::Log => self.log_ticks(),
        }
    }

    fn linear_ticks(&self) -> Vec<f64> {
        let span = self.most - self.least;
        let magnitude = 10_f64.powf((span / MOST_TICKS as f64).log10().floor());
        let steps = STEPS.into_iter().chain([10.0, 20.0]).map(|step| step * magnitude);
        let Some(step) = steps.into_iter().find(|step| span / step <= (MOST_TICKS - 1) as f64) else {
            return Vec::new();
        };
        let first = (self.least / step - 1e-9).ceil() as i64;
        let last = (self.most / step + 1e-9).floor() as i64;
        (first..=last).map(|index| index as f64 * step).collect()
    }

    /// 1, 2, 5 of each decade; where these are too many decades alone, and where too few, what a linear scale would have.
    fn log_ticks(&self) -> Vec<f64> {
        let decades = (self.least.log10().floor() as i32)..=(self.most.log10().ceil() as i32);
        let within = |value: &f64| *value >= self.least && *value <= self.most;
        let of = |steps: &[f64]| -> Vec<f64> {
            let decade = |decade: i32| steps.iter().map(move |step| step * 10_f64.powi(decade));
            decades.clone().flat_map(decade).filter(within).collect()
        };
        let fine = of(&STEPS);
        match fine.len() {
            0..=2 => self.linear_ticks().into_iter().filter(within).collect(),
            3..=MOST_TICKS => fine,
            _ => {
                let coarse = of(&STEPS[..1]);
                let every = coarse.len().div_ceil(MOST_TICKS).max(1);
                coarse.into_iter().step_by(every).collect()
            }
        }
    }
}

fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |span, value| {
        let (least, most) = span.unwrap_or((value, value));
        Some((least.min(value), most.max(value)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_by_hand() {
        let close = |found: &[f64], expected: &[f64]| {
            found.len() == expected.len()
                && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9 * b.abs().max(1.0))
        };
        for (scale, expected) in [
            (Scale::exact(0.0, 10.0, (0.0, 1.0)), vec![0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
            (Scale::exact(-0.5, 3.5, (0.0, 1.0)), vec![0.0, 1.0, 2.0, 3.0]),
            (Scale::log([0.3, 3.0], (0.0, 1.0)), vec![0.5, 1.0, 2.0]),
            (Scale::log([1.0, 9e4], (0.0, 1.0)), vec![1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0]),
        ] {
            assert!(close(&scale.ticks(), &expected), "{scale:?}: {:?}", scale.ticks());
        }
    }

    #[test]
    fn nothing_and_sameness_have_a_scale_too() {
        for scale in [
            Scale::linear([], (0.0, 1.0)),
            Scale::linear([0.0, 0.0], (0.0, 1.0)),
            Scale::linear([7.0], (0.0, 1.0)),
            Scale::linear([-7.0], (0.0, 1.0)),
            Scale::log([], (0.0, 1.0)),
            Scale::log([3.0, 3.0], (0.0, 1.0)),
            Scale::log([0.0, -1.0], (0.0, 1.0)),
            Scale::exact(1.0, 1.0, (0.0, 1.0)),
        ] {
            assert!(scale.at(7.0).is_finite() && scale.ticks().len() <= MOST_TICKS, "{scale:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_scale_keeps_order_and_its_ends(values in prop::collection::vec(1e-6..1e9, 1..20), log: bool) {
            let pixels = (100.0, 20.0);
            let scale = if log { Scale::log(values.clone(), pixels) } else { Scale::linear(values.clone(), pixels) };
            let mut sorted = values;
            sorted.sort_by(f64::total_cmp);
            let at: Vec<f64> = sorted.iter().map(|value| scale.at(*value)).collect();
            prop_assert!(at.windows(2).all(|pair| pair[0] >= pair[1] - 1e-9), "{at:?}");
            prop_assert!(at.iter().all(|at| (20.0..=100.0).contains(at)));
            let ticks = scale.ticks();
            prop_assert!(ticks.len() <= MOST_TICKS && ticks.windows(2).all(|pair| pair[0] < pair[1]), "{ticks:?}");
        }
    }
}
