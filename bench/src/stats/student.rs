//! Student's t distribution, for intervals of means of few values; pure.

/// Halvings of the bracket: more than a double has bits.
const STEPS: usize = 80;

/// The value that a number of the distribution with `degrees` degrees of freedom (1 or more) exceeds with probability
/// `tail` (above 0, at most one half).
pub(crate) fn critical_value(tail: f64, degrees: usize) -> f64 {
    let mut high = 1.0;
    while upper_tail(high, degrees) > tail && high < 1e15 {
        high *= 2.0;
    }
    let mut low = 0.0;
    for _ in 0..STEPS {
        let middle = f64::midpoint(low, high);
        if upper_tail(middle, degrees) > tail {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The probability of more than `t`, which is not negative: Abramowitz & Stegun 26.7.3 and 26.7.4, which are finite sums
/// because the degrees are whole.
fn upper_tail(t: f64, degrees: usize) -> f64 {
    let angle = (t / (degrees as f64).sqrt()).atan();
    let (sine, cosine) = angle.sin_cos();
    let odd = degrees % 2 == 1;
    // Each further summand is the one before times cos² and a fraction of neighbouring numbers.
    let mut summand = if odd { cosine } else { 1.0 };
    let mut sum = if degrees == 1 { 0.0 } else { summand };
    let mut number = if odd { 3 } else { 2 };
    while number < degrees {
        summand *= cosine * cosine * (number - 1) as f64 / number as f64;
        sum += summand;
        number += 2;
    }
    let within = if odd { std::f64::consts::FRAC_2_PI * (angle + sine * sum) } else { sine * sum };
    ((1.0 - within) / 2.0).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of any book of tables.
    #[test]
    fn the_printed_table() {
        for (tail, degrees, expected) in [
            (0.025, 1, 12.706),
            (0.025, 2, 4.303),
            (0.025, 3, 3.182),
            (0.0005, 3, 12.924),
            (0.0005, 10, 4.587),
            (0.025, 29, 2.045),
            (0.005, 30, 2.750),
            (0.025, 1000, 1.962),
        ] {
            let found = critical_value(tail, degrees);
            assert!((found - expected).abs() < 0.0006, "{degrees} degrees, {tail}: {found}, not {expected}");
        }
    }

    #[test]
    fn half_are_above_zero() {
        for degrees in [1, 2, 7, 50] {
            assert!(critical_value(0.5, degrees) < 1e-9, "{degrees}");
        }
    }
}
