//! Shares of connections, and how sure it is that one is larger than another.

use std::{fmt, iter::Sum};

use super::Standard;

/// One-sided 0.13 %: what a rollout may be stopped for by chance where two shares are equal and no margin is allowed.
const Z: f64 = 3.0;

/// So many of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    some: u64,
    of: u64,
}

impl Share {
    /// `some` is at most `of`.
    pub(super) fn new(some: u64, of: u64) -> Self {
        Self { some, of }
    }

    /// How many there are in all.
    pub(super) fn of(self) -> u64 {
        self.of
    }

    /// Whether it is surely larger by more than `margin`.
    pub(super) fn exceeds(self, other: Self, margin: f64) -> bool {
        let (own, others) = (self.value(), other.value());
        let below = own - self.interval().0;
        let above = other.interval().1 - others;
        own - others - below.hypot(above) > margin
    }

    /// From 0 to 1; of nothing it is 0.
    fn value(self) -> f64 {
        if self.of == 0 { 0.0 } else { self.some as f64 / self.of as f64 }
    }

    /// Wilson's score interval.
    fn interval(self) -> (f64, f64) {
        if self.of == 0 {
            return (0.0, 1.0);
        }
        let (share, count, z2) = (self.value(), self.of as f64, Z * Z);
        let center = (share + z2 / (2.0 * count)) / (1.0 + z2 / count);
        let half = Z / (1.0 + z2 / count) * (share * (1.0 - share) / count + z2 / (4.0 * count * count)).sqrt();
        ((center - half).max(0.0), (center + half).min(1.0))
    }
}

impl Sum for Share {
    fn sum<I: Iterator<Item = Self>>(shares: I) -> Self {
        shares.fold(Self::new(0, 0), |sum, next| Self::new(sum.some + next.some, sum.of + next.of))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} % of {}", 100.0 * self.value(), self.of)
    }
}

/// All together, but for one that surely has a larger share than the others together. `shares` is not empty.
pub(super) fn standard(shares: &[Share], margin: f64) -> Standard<Share> {
    let all = || Standard::Agreed(shares.iter().copied().sum());
    let worst = (0..shares.len()).max_by(|one, other| shares[*one].value().total_cmp(&shares[*other].value()));
    let Some(worst) = worst.filter(|_| shares.len() > 1) else { return all() };
    let others = shares.iter().enumerate().filter(|(n, _)| *n != worst).map(|(_, share)| *share).sum();
    match (shares[worst].exceeds(others, margin), shares.len()) {
        (false, _) => all(),
        (true, 2) => Standard::Between { better: others, worse: shares[worst] },
        (true, _) => Standard::Agreed(others),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(one: (u64, u64), other: (u64, u64), margin: f64, expected: bool) {
        let exceeds = Share::new(one.0, one.1).exceeds(Share::new(other.0, other.1), margin);
        assert_eq!(exceeds, expected, "{one:?} {other:?} {margin}");
    }

    #[test]
    fn intervals_are_wilsons() {
        // By hand, z = 3: (0.05 + 0.015) / 1.03 -+ 3 / 1.03 * sqrt(0.0475 / 300 + 9 / 360000).
        let (low, high) = Share::new(15, 300).interval();
        assert!((low - 0.023_701).abs() < 1e-4 && (high - 0.102_513).abs() < 1e-4, "{low} {high}");
        assert_eq!(Share::new(0, 0).interval(), (0.0, 1.0));
        assert_eq!(Share::new(0, 9).interval(), (0.0, 0.5));
        assert!((Share::new(9, 9).interval().0 - 0.5).abs() < 1e-9);
    }

    #[test]
    fn few_say_little() {
        check((1, 10), (0, 1000), 0.01, false);
        check((2, 100), (0, 1000), 0.01, false);
        check((9, 100), (0, 1000), 0.01, true);
        check((15, 300), (0, 900), 0.01, true);
        check((15, 300), (1, 5), 0.01, false);
        check((150, 300), (450, 900), 0.0, false);
        check((30, 30), (0, 0), 0.0, false);
    }

    #[test]
    fn a_margin_is_allowed() {
        check((5_000, 100_000), (4_500, 100_000), 0.0, true);
        check((5_000, 100_000), (4_500, 100_000), 0.01, false);
    }

    #[test]
    fn one_that_stands_out_is_no_standard() {
        let (good, bad) = (Share::new(1, 500), Share::new(200, 500));
        assert_eq!(standard(&[bad], 0.01), Standard::Agreed(bad));
        assert_eq!(standard(&[good, good], 0.01), Standard::Agreed(Share::new(2, 1000)));
        assert_eq!(standard(&[bad, good], 0.01), Standard::Between { better: good, worse: bad });
        assert_eq!(standard(&[good, bad, good], 0.01), Standard::Agreed(Share::new(2, 1000)));
    }
}
