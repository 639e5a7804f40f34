//! How many of several intervals may miss the truth; pure.

/// An interval misses the truth so often, when it is right.
const MISS: f64 = 0.05;
/// So rarely, more misses than are allowed are nothing but chance.
const CHANCE: f64 = 0.01;

/// The most intervals of `runs` that may miss before it is no chance any more.
pub(super) fn allowed(runs: usize) -> usize {
    let mut beyond = 1.0;
    let mut likelihood = (1.0 - MISS).powf(runs as f64);
    for misses in 0..runs {
        beyond -= likelihood;
        if beyond <= CHANCE {
            return misses;
        }
        likelihood *= (runs - misses) as f64 / (misses + 1) as f64 * MISS / (1.0 - MISS);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_the_binomial_distribution() {
        // P(X > k) by a table of B(n, 0.05).
        for (runs, expected) in [(1, 1), (2, 1), (5, 2), (10, 3), (20, 4), (100, 11)] {
            assert_eq!(allowed(runs), expected, "{runs} runs");
        }
    }
}
