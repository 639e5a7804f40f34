//! Whether figures stay within a limit; pure.

use crate::{
    analysis::{Verdict, VerdictWord},
    report::Series,
    stats::quantile,
};

/// More of the host's CPU time than this used by others, in percent, and a missed limit concludes nothing.
const MAX_FOREIGN_PERCENT: f64 = 5.0;

/// Whether `share` of the figures are at most `limit`. What else the host does (`foreign_percent`, one figure for each
/// trial) only ever adds to a duration: a limit that is kept in spite of it is kept.
pub fn at_most(target: &str, series: &Series, share: f64, limit: f64, foreign_percent: &[f64]) -> Verdict {
    let target = format!("{target} ≤ {limit}");
    let Some(found) = quantile(&series.samples, share) else {
        let because = Some("there is no figure".to_owned());
        return Verdict { target, found: String::new(), word: VerdictWord::Undecided, because };
    };
    let foreign = quantile(foreign_percent, 0.5).unwrap_or(0.0);
    let noisy = (foreign > MAX_FOREIGN_PERCENT).then(|| format!("others used {foreign:.1} % of the CPU time"));
    let (word, because) = match (found <= limit, noisy) {
        (true, _) => (VerdictWord::Held, None),
        (false, None) => (VerdictWord::NotHeld, None),
        (false, because) => (VerdictWord::Undecided, because),
    };
    Verdict { target, found: format!("{found:.3}"), word, because }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_excuses_a_miss_and_spoils_no_success() {
        let check = |samples: &[f64], foreign: &[f64], expected| {
            let series = Series::new("", samples.to_vec());
            assert_eq!(at_most("", &series, 1.0, 2.0, foreign).word, expected, "{samples:?} {foreign:?}");
        };
        check(&[1.0, 2.0], &[0.0], VerdictWord::Held);
        check(&[1.0, 2.0], &[50.0], VerdictWord::Held);
        check(&[1.0, 2.1], &[0.0, 90.0, 1.0], VerdictWord::NotHeld);
        check(&[1.0, 2.1], &[9.0], VerdictWord::Undecided);
        check(&[], &[0.0], VerdictWord::Undecided);
    }
}
