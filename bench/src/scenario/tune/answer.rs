//! What follows from a run of eliminations: which layout to take, and how sure that is; pure.

use crate::{
    analysis::{
        Verdict, VerdictWord,
        elimination::{Advantage, Elimination, Standing},
    },
    sample::Measure,
};

/// Which layout to take.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// Which of the candidates.
    pub(super) chosen: usize,
    /// In words.
    pub(super) verdict: Verdict,
}

/// Concludes. `names` are the candidates', the one that the specification had first; `complaint` is why nothing should be
/// concluded, if so: then that one is kept.
pub(super) fn conclude(race: &Elimination, names: &[String], measure: Measure, complaint: Option<String>) -> Answer {
    let answer = |chosen: usize, word, found, because| Answer {
        chosen,
        verdict: Verdict { target: format!("the best layout by {}", measure.title()), found, word, because },
    };
    if let [only] = names {
        return answer(0, VerdictWord::Held, format!("there is only {only}"), None);
    }
    let remaining = race.remaining();
    if let Some(because) = complaint {
        return answer(first_that_works(race), VerdictWord::Undecided, String::new(), Some(because));
    }
    match &*remaining {
        [] => answer(0, VerdictWord::Undecided, String::new(), Some("none of them works".into())),
        [best] => answer(*best, VerdictWord::Held, format!("{}{}", names[*best], gains(race, names, *best)), None),
        [simplest, ..] => {
            let left: Vec<&str> = remaining.iter().map(|one| &*names[*one]).collect();
            let found = format!(
                "no measurable difference between {}{}; {} is the simplest{}",
                left.join(", "),
                spread(race, &remaining),
                names[*simplest],
                gains(race, names, *simplest),
            );
            answer(*simplest, VerdictWord::Held, found, None)
        }
    }
}

/// `one` against `other`: as it was seen when the other left because of it, else by all rounds that both were in.
pub(super) fn advantage(race: &Elimination, one: usize, other: usize) -> Option<Advantage> {
    match race.standings()[other] {
        Standing::Worse { than, by } if than == one => Some(by),
        _ => race.advantage(one, other),
    }
}

/// The specification's own, unless that one doesn't work.
fn first_that_works(race: &Elimination) -> usize {
    race.standings().iter().position(|standing| *standing != Standing::Failed).unwrap_or(0)
}

/// How far apart what is left may be.
fn spread(race: &Elimination, remaining: &[usize]) -> String {
    let Some(leader) = race.leader() else { return String::new() };
    let most = remaining.iter().filter(|one| **one != leader).filter_map(|one| race.advantage(leader, *one));
    let most = most.map(|advantage| advantage.high).fold(1.0, f64::max);
    if most > 1.0 { format!(" (it is at most {:.1} %)", (most - 1.0) * 100.0) } else { String::new() }
}

/// By how much `best` is better than what the specification had, and than the next best that is out.
fn gains(race: &Elimination, names: &[String], best: usize) -> String {
    let percent = |advantage: Advantage| {
        let of = |ratio: f64| (ratio - 1.0) * 100.0;
        format!("{:.1} % ({:.1} to {:.1}) better than", of(advantage.ratio), of(advantage.low), of(advantage.high))
    };
    let out = |one: &usize| matches!(race.standings()[*one], Standing::Worse { .. });
    // What the specification had is told for itself.
    let next = (usize::from(best != 0)..names.len()).filter(out);
    let next = next.filter_map(|one| Some((one, advantage(race, best, one)?)));
    let next = next.min_by(|(_, a), (_, b)| a.ratio.total_cmp(&b.ratio));
    let before = advantage(race, best, 0).filter(|_| best != 0 && out(&0));
    let mut told: Vec<String> =
        before.map(|before| format!("{} {}, which it was", percent(before), names[0])).into_iter().collect();
    if let Some((one, next)) = next {
        told.push(format!("{} {}, the best of those that are surely worse", percent(next), names[one]));
    }
    if told.is_empty() { String::new() } else { format!(": {}", told.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["core/connection", "core/balanced", "l3/connection"].map(str::to_owned).into()
    }

    /// Rounds of scores that wobble by a thousandth, each in its own way.
    fn race(truths: [f64; 3]) -> Elimination {
        let mut race = Elimination::new(3, 1.02);
        for round in 0..12_u32 {
            let wobble = |one: usize| 1.0 + 0.001 * f64::from((round * 7 + 3 * one as u32) % 5);
            let scores: Vec<_> = race.remaining().into_iter().map(|one| (one, truths[one] * wobble(one))).collect();
            race.take(&scores);
        }
        race.finish();
        race
    }

    fn check(truths: [f64; 3], complaint: Option<&str>, chosen: usize, word: VerdictWord, says: &[&str]) {
        let found = conclude(&race(truths), &names(), Measure::RequestsPerSecond, complaint.map(str::to_owned));
        assert_eq!((found.chosen, found.verdict.word), (chosen, word), "{found:?}");
        let text = format!("{} {:?}", found.verdict.found, found.verdict.because);
        for words in says {
            assert!(text.contains(words), "{words} in {text}");
        }
    }

    #[test]
    fn answers() {
        use VerdictWord::{Held, Undecided};
        check(
            [1.0, 1.1, 1.0],
            None,
            1,
            Held,
            &["core/balanced: ", "better than core/connection, which it was", "than l3/"],
        );
        check([1.1, 1.0, 1.0], None, 0, Held, &["core/connection: ", "surely worse"]);
        check(
            [1.0, 1.0, 1.0],
            None,
            0,
            Held,
            &["no measurable difference between core/connection, core/balanced, l3/"],
        );
        check([1.0, 1.1, 1.1], None, 1, Held, &["between core/balanced, l3/connection (it is at most", "which it was"]);
        check([1.0, 1.1, 1.0], Some("too noisy"), 0, Undecided, &["too noisy"]);
    }

    #[test]
    fn one_alone_needs_no_measurement() {
        let found = conclude(&Elimination::new(1, 1.02), &names()[..1], Measure::Score, Some("too few".into()));
        assert_eq!((found.chosen, &*found.verdict.found), (0, "there is only core/connection"));
    }

    #[test]
    fn what_fails_is_not_chosen() {
        let mut race = race([1.0, 1.0, 1.0]);
        race.fail(0);
        let noisy = conclude(&race, &names(), Measure::RequestsPerSecond, Some("too noisy".into()));
        assert_eq!((noisy.chosen, noisy.verdict.word), (1, VerdictWord::Undecided));
        assert_eq!(conclude(&race, &names(), Measure::RequestsPerSecond, None).chosen, 1);
        race.fail(1);
        race.fail(2);
        let none = conclude(&race, &names(), Measure::RequestsPerSecond, None);
        assert_eq!(none.verdict.because.as_deref(), Some("none of them works"));
    }
}
