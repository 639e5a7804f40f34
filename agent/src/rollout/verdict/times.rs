//! Mean times, and how sure it is that one is longer than another.

use std::fmt;

use super::Standard;

/// One-sided 2.3 % for a shard that is just as slow as it may be: one that is as fast as others is far from there.
const Z: f64 = 2.0;

/// Times that were measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Times {
    /// How many.
    pub count: u64,
    /// Of all of them.
    pub sum_seconds: f64,
    /// Of their squares, in square seconds. Without it a mean is compared as if it were exact: a few long times then decide.
    pub squares: Option<f64>,
}

impl Times {
    /// Of a histogram: upper bounds of its buckets, and one more bucket for what took longer. Squares are those of times that
    /// are spread evenly over each bucket, the last one reaching to twice its lower bound.
    pub fn of_buckets(bounds_micros: &[u64], buckets: &[u64], sum_micros: u64) -> Self {
        let lows = [0].into_iter().chain(bounds_micros.iter().copied());
        let highs = bounds_micros.iter().copied().chain(bounds_micros.last().map(|last| last.saturating_mul(2)));
        let square = |((low, high), count): ((u64, u64), &u64)| {
            let (low, high) = (low as f64 / 1e6, high as f64 / 1e6);
            *count as f64 * (low * low + low * high + high * high) / 3.0
        };
        let squares = lows.zip(highs).zip(buckets).map(square).sum();
        Self { count: buckets.iter().sum(), sum_seconds: sum_micros as f64 / 1e6, squares: Some(squares) }
    }

    pub(super) fn mean(&self) -> Mean {
        let count = self.count.max(1) as f64;
        let seconds = self.sum_seconds / count;
        let error = self.squares.map_or(0.0, |squares| {
            let variance = (squares - count * seconds * seconds) / (count - 1.0).max(1.0);
            (variance.max(0.0) / count).sqrt()
        });
        Mean { seconds, error }
    }

    /// Of a sum of which the parts are not known.
    pub(super) fn mean_of(sum_seconds: f64, count: u64) -> Mean {
        Self { count, sum_seconds, squares: None }.mean()
    }
}

/// A mean and its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mean {
    seconds: f64,
    error: f64,
}

impl Mean {
    pub(super) fn is_positive(&self) -> bool {
        self.seconds > 0.0
    }

    /// Whether it is surely more than `limit` times the other.
    pub(super) fn exceeds(self, other: Self, limit: f64) -> bool {
        let error = self.error.hypot(limit * other.error);
        self.seconds - limit * other.seconds > Z * error
    }
}

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds {
            s if s >= 1.0 => write!(f, "{s:.2} s"),
            s if s >= 1e-3 => write!(f, "{:.2} ms", s * 1e3),
            s => write!(f, "{:.0} us", s * 1e6),
        }
    }
}

/// The slowest, but for one that is alone in being more than `limit` times as slow as all others: slots differ, as cores
/// do. `means` is not empty.
pub(super) fn standard(mut means: Vec<Mean>, limit: f64) -> Standard<Mean> {
    means.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
    match means[..] {
        [better, worse] if worse.exceeds(better, limit) => Standard::Between { better, worse },
        [.., next, worst] if worst.exceeds(next, limit) => Standard::Agreed(next),
        [.., worst] => Standard::Agreed(worst),
        [] => Standard::Agreed(Mean { seconds: f64::INFINITY, error: 0.0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(seconds: f64) -> Mean {
        Mean { seconds, error: 0.0 }
    }

    #[test]
    fn means_have_the_standard_error() {
        // 1, 2, 3: variance 1.
        let times = Times { count: 3, sum_seconds: 6.0, squares: Some(14.0) };
        assert_eq!(times.mean(), Mean { seconds: 2.0, error: (1.0_f64 / 3.0).sqrt() });
        assert_eq!(Times::default().mean(), mean(0.0));
        // Rounding must give no root of something negative.
        assert_eq!(Times { count: 2, sum_seconds: 2.0, squares: Some(1.999_999) }.mean(), mean(1.0));
    }

    #[test]
    fn an_error_hides_a_difference() {
        let [fast, slow] = [1.0, 2.0].map(|seconds| Mean { seconds, error: 0.1 });
        assert!(slow.exceeds(fast, 1.5));
        assert!(!slow.exceeds(fast, 1.8));
        assert!(!fast.exceeds(slow, 1.0) && !fast.exceeds(fast, 1.0));
    }

    #[test]
    fn buckets_give_nearly_the_squares() {
        // 4 of 0 to 2 us, 2 of 2 to 4 us, 1 from 4 us on: in square microseconds 4 * 4/3, 2 * 28/3, 112/3.
        let times = Times::of_buckets(&[2, 4], &[4, 2, 1], 15);
        assert_eq!((times.count, times.sum_seconds), (7, 15.0 / 1e6));
        let squares = times.squares.expect("it has some") * 1e12;
        assert!((squares - 184.0 / 3.0).abs() < 1e-6, "{squares}");
    }

    #[test]
    fn one_that_stands_out_is_no_standard() {
        let check = |seconds: &[f64], expected| {
            assert_eq!(standard(seconds.iter().copied().map(mean).collect(), 1.5), expected, "{seconds:?}");
        };
        check(&[3.0], Standard::Agreed(mean(3.0)));
        check(&[1.4, 1.0], Standard::Agreed(mean(1.4)));
        check(&[3.0, 1.0], Standard::Between { better: mean(1.0), worse: mean(3.0) });
        check(&[1.0, 9.0, 1.2], Standard::Agreed(mean(1.2)));
        // Two slow cores of four.
        check(&[1.0, 3.0, 1.0, 3.1], Standard::Agreed(mean(3.1)));
    }

    #[test]
    fn times_are_said_in_units_that_fit() {
        for (seconds, expected) in [(2.5, "2.50 s"), (0.0042, "4.20 ms"), (0.000_35, "350 us"), (0.0, "0 us")] {
            assert_eq!(mean(seconds).to_string(), expected);
        }
    }
}
