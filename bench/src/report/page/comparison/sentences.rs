//! What a comparison says against each other contestant, in a sentence.

use super::View;
use crate::{
    analysis::Ratio,
    report::{
        page::{Conclusion, list},
        plot::Tone,
    },
};

impl View<'_> {
    pub(super) fn against_each(&self) -> impl Iterator<Item = Conclusion> + '_ {
        self.others().into_iter().map(|other| self.against(other))
    }

    /// One sentence.
    fn against(&self, other: &str) -> Conclusion {
        let ratios: Vec<&Ratio> = self.0.analysis.ratios.iter().filter(|ratio| ratio.to == other).collect();
        let of = |tone: Tone| -> Vec<String> {
            let words = |ratio: &&&Ratio| match tone {
                Tone::Good | Tone::Bad => format!("{} {}", ratio.measure.title(), percent(ratio.estimate.ratio)),
                _ => ratio.measure.title().to_owned(),
            };
            ratios.iter().filter(|ratio| self.tone(ratio) == tone).map(|ratio| words(&ratio)).collect()
        };
        let parts: Vec<String> = [
            (Tone::Good, "better in"),
            (Tone::Bad, "worse in"),
            (Tone::Plain, "no measurable difference in"),
            (Tone::Doubtful, "not concluded:"),
        ]
        .into_iter()
        .filter_map(|(tone, words)| {
            let found = of(tone);
            (!found.is_empty()).then(|| format!("{words} {}", list(&found)))
        })
        .collect();
        let (good, bad) = (!of(Tone::Good).is_empty(), !of(Tone::Bad).is_empty());
        let (tone, word) = match (good, bad) {
            (true, false) => (Tone::Good, "better"),
            (false, true) => (Tone::Bad, "worse"),
            (true, true) => (Tone::Plain, "mixed"),
            (false, false) => (Tone::Doubtful, "open"),
        };
        let subject = self.subject().unwrap_or_default();
        if ratios.iter().all(|ratio| self.tone(ratio) == Tone::Doubtful) {
            let text = format!("{subject} against {other}: nothing is concluded.");
            return Conclusion { tone, word: word.into(), text };
        }
        Conclusion { tone, word: word.into(), text: format!("{subject} against {other}: {}.", parts.join("; ")) }
    }
}

/// `−20 %`, or from twice on `× 2.1`.
fn percent(ratio: f64) -> String {
    if !(0.5..2.0).contains(&ratio) {
        return format!("× {ratio:.2}");
    }
    format!("{:+.0} %", (ratio - 1.0) * 100.0).replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{self, AWKWARD};

    #[test]
    fn percents_are_signed() {
        for (ratio, expected) in [(0.8, "−20 %"), (1.22, "+22 %"), (2.5, "× 2.50"), (0.4, "× 0.40")] {
            assert_eq!(percent(ratio), expected);
        }
    }

    #[test]
    fn what_is_better_is_said_and_what_is_not_told_apart_is_not() {
        let report = testing::report();
        let sentence = View(&report).against(AWKWARD);
        assert!(sentence.tone == Tone::Good && sentence.text.contains("CPU µs/request −20 %"), "{}", sentence.text);
        let mut off = report.clone();
        for control in &mut off.analysis.control {
            control.estimate.low = 1.01;
            control.estimate.high = 1.02;
        }
        let sentence = View(&off).against(AWKWARD);
        assert!(sentence.tone == Tone::Doubtful && sentence.text.contains("nothing is concluded"), "{}", sentence.text);
    }
}
