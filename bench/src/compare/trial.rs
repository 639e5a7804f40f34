//! Changes between two trials of one behaviour: of what their targets say, and of every figure that has a better side; pure.

use super::{Change, MIN_SAMPLES, SEED, Word};
use crate::{
    analysis::{Verdict, VerdictWord},
    report::{FOREIGN, Findings, Series, number},
    sample::Better,
    stats::{difference_of_means, median, unpaired},
};

/// As for targets: more of the host's CPU time than this used by others, in percent, and nothing is concluded from times.
const MAX_FOREIGN_PERCENT: f64 = 5.0;

pub(super) fn changes(old: &Findings, new: &Findings) -> Vec<Change> {
    let targets = new.verdicts.iter().filter_map(|verdict| {
        let former = old.verdicts.iter().find(|former| former.target == verdict.target)?;
        Some(of_verdict(former, verdict))
    });
    let noise = noise(old, "then").or_else(|| noise(new, "now"));
    let figures = new.series.iter().filter_map(|series| {
        let former = old.series.iter().find(|former| former.title == series.title)?;
        of_series(former, series, noise.as_deref())
    });
    targets.chain(figures).collect()
}

fn noise(findings: &Findings, when: &str) -> Option<String> {
    let foreign = findings.series.iter().find(|series| series.title == FOREIGN)?;
    let percent = median(&foreign.samples).filter(|percent| *percent > MAX_FOREIGN_PERCENT)?;
    Some(format!("{when}, others used {percent:.1} % of the CPU time"))
}

fn of_verdict(old: &Verdict, new: &Verdict) -> Change {
    let word = match (old.word, new.word) {
        (VerdictWord::Undecided, _) | (_, VerdictWord::Undecided) => Word::Undecided,
        (VerdictWord::Held, VerdictWord::NotHeld) => Word::Regressed,
        (VerdictWord::NotHeld, VerdictWord::Held) => Word::Improved,
        _ => Word::Same,
    };
    let words = |verdict: &Verdict| format!("{}: {}", verdict.word, verdict.found);
    Change {
        what: new.target.clone(),
        who: String::new(),
        old: words(old),
        new: words(new),
        absolute: None,
        relative: None,
        word,
        because: new.because.clone().unwrap_or_default(),
    }
}

/// Ratios of medians; where there are zeros, as among counts, differences of means.
fn of_series(old: &Series, new: &Series, noise: Option<&str>) -> Option<Change> {
    let (then, now) = (median(&old.samples)?, median(&new.samples)?);
    let positive = |series: &Series| series.samples.iter().all(|sample| *sample > 0.0);
    let logs = |series: &Series| -> Vec<f64> { series.samples.iter().map(|sample| sample.ln()).collect() };
    let absolute = (positive(old) && positive(new)).then(|| unpaired(&logs(new), &logs(old), SEED)).flatten();
    let sign = match absolute {
        Some(found) if found.includes(1.0) => 0.0,
        Some(found) => found.ratio.ln(),
        None => {
            let (difference, low, high) = difference_of_means(&new.samples, &old.samples, SEED)?;
            if low <= 0.0 && 0.0 <= high { 0.0 } else { difference }
        }
    };
    let few = old.samples.len().min(new.samples.len());
    let (word, because) = match (new.better, noise) {
        (None, _) => (Word::Told, String::new()),
        _ if few < MIN_SAMPLES => (Word::Undecided, format!("{few} figures are too few, {MIN_SAMPLES} would do")),
        (_, Some(noise)) => (Word::Undecided, noise.to_owned()),
        _ if sign == 0.0 => (Word::Same, String::new()),
        (Some(better), _) if (sign > 0.0) == (better == Better::More) => (Word::Improved, String::new()),
        _ => (Word::Regressed, String::new()),
    };
    Some(Change {
        what: new.title.trim().into(),
        who: String::new(),
        old: number(then),
        new: number(now),
        absolute,
        relative: None,
        word,
        because,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing;

    fn findings(samples: &[f64], foreign: f64, word: VerdictWord) -> Findings {
        let mut findings = testing::findings();
        findings.series =
            vec![Series::new("ms", samples.to_vec()).less_is_better(), Series::new(FOREIGN, vec![foreign])];
        findings.verdicts.truncate(1);
        findings.verdicts[0].word = word;
        findings
    }

    #[test]
    fn times_counts_and_answers_that_get_worse_are_found() {
        let (held, missed, open) = (VerdictWord::Held, VerdictWord::NotHeld, VerdictWord::Undecided);
        let check = |old: Findings, new: Findings, target: Word, figure: Word| {
            let words: Vec<Word> = changes(&old, &new).iter().map(|change| change.word).collect();
            assert_eq!(words, [target, figure, Word::Told], "{:?} {:?}", old.series[0], new.series[0]);
        };
        let fast = [10.0, 11.0, 9.0, 10.5, 10.0];
        let slow = [20.0, 21.0, 19.0, 20.5, 20.0];
        check(findings(&fast, 0.0, held), findings(&slow, 0.0, missed), Word::Regressed, Word::Regressed);
        check(findings(&slow, 0.0, missed), findings(&fast, 0.0, held), Word::Improved, Word::Improved);
        check(findings(&fast, 0.0, held), findings(&fast, 0.0, held), Word::Same, Word::Same);
        check(findings(&fast, 0.0, held), findings(&slow, 9.0, open), Word::Undecided, Word::Undecided);
        check(
            findings(&[0.0; 5], 0.0, held),
            findings(&[3.0, 4.0, 3.0, 5.0, 4.0], 0.0, held),
            Word::Same,
            Word::Regressed,
        );
        check(findings(&[0.0; 5], 0.0, held), findings(&[0.0; 5], 0.0, held), Word::Same, Word::Same);
        check(findings(&[1.0; 2], 0.0, held), findings(&[9.0; 2], 0.0, held), Word::Same, Word::Undecided);
    }
}
