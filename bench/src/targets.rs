//! Every target of the project and what the newest reports say of it: gathers verdicts, and judges nothing itself; pure.

use std::path::{Path, PathBuf};

use crate::{
    analysis::{Target, Verdict, VerdictWord},
    report::{
        AnyReport, Page,
        page::{Cell, Column, Conclusion, Grid, Part, Section},
        plot::Tone,
    },
    scenario::{direct, failover, relay, stall},
};

/// One target.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The scenario that measures it.
    pub scenario: String,
    /// In words.
    pub target: String,
    /// What the newest report of that scenario says; none where there is no such report, or where it doesn't judge it.
    pub answer: Option<Answer>,
}

/// What a report says of a target.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Figure, interval, answer.
    pub verdict: Verdict,
    /// The report's date.
    pub started: String,
    /// Its commit.
    pub commit: Option<String>,
}

/// The newest report of each scenario, in the order of their names.
pub fn newest(reports: &[(PathBuf, AnyReport)]) -> Vec<&(PathBuf, AnyReport)> {
    let mut sorted: Vec<&(PathBuf, AnyReport)> = reports.iter().collect();
    sorted.sort_by_key(|(_, report)| (report.scenario().to_owned(), std::cmp::Reverse(report.started().to_owned())));
    sorted.dedup_by_key(|(_, report)| report.scenario().to_owned());
    sorted
}

/// All targets: those that are known whether they were measured or not, and what else `reports` judge.
pub fn gather(reports: &[&(PathBuf, AnyReport)]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let planned = planned();
    for Planned { scenario, targets, exact } in &planned {
        let report = reports.iter().map(|(_, report)| report).find(|report| report.scenario() == *scenario);
        let judged = report.map(|report| report.verdicts()).unwrap_or_default();
        if *exact || judged.is_empty() {
            entries.extend(targets.iter().map(|target| {
                let verdict = judged.iter().find(|verdict| is_it(&target.begin, verdict));
                entry(scenario, &target.words, verdict.zip(report))
            }));
        }
        let others =
            judged.iter().filter(|verdict| !*exact || !targets.iter().any(|target| is_it(&target.begin, verdict)));
        entries.extend(others.map(|verdict| entry(scenario, &verdict.target, Some(verdict).zip(report))));
    }
    for (_, report) in
        reports.iter().filter(|(_, report)| !planned.iter().any(|plan| plan.scenario == report.scenario()))
    {
        let verdicts = report.verdicts().iter();
        entries.extend(verdicts.map(|verdict| entry(report.scenario(), &verdict.target, Some((verdict, report)))));
    }
    entries
}

/// Whether the verdict is on the target that begins so: it may say first on whom.
fn is_it(target: &str, verdict: &Verdict) -> bool {
    let of_somebody = verdict.target.split_once(": ").is_some_and(|(_, rest)| rest.starts_with(target));
    of_somebody || verdict.target.starts_with(target)
}

/// The table of all targets; for the index page of a `directory` also the newest reports, with links to the pages of those that are there.
pub fn page(reports: &[&(PathBuf, AnyReport)], directory: Option<&Path>) -> Page {
    let entries = gather(reports);
    let parts = vec![Part::Grid(Grid {
        columns: ["scenario", "target", "figure and interval", "answer", "why there is none", "commit and date"]
            .map(|title| Column::Words(title.into()))
            .into(),
        rows: entries.iter().map(row).collect(),
    })];
    let table = Section { title: "All targets".into(), says: String::new(), parts };
    Page {
        kicker: "sherd-bench targets".into(),
        title: "What sherd is to reach, and what it reaches".into(),
        about: "From the newest report of each scenario. A target is held only if its whole interval is on the right side; what a run \
                could not decide, and what was not measured, is not held."
            .into(),
        conclusions: vec![conclusion(&entries)],
        sections: [table].into_iter().chain(directory.map(|directory| listing(reports, directory))).collect(),
        ..Page::default()
    }
}

/// What a scenario's reports are to judge.
struct Planned {
    scenario: &'static str,
    targets: Vec<Wanted>,
    /// Whether verdicts begin as these say; else any verdicts of that scenario stand in their place.
    exact: bool,
}

struct Wanted {
    words: String,
    /// With what a verdict on it begins.
    begin: String,
}

fn planned() -> Vec<Planned> {
    let of = |target: &Target| Wanted { words: target.in_words(), begin: target.title() };
    let as_said = |words: String| Wanted { begin: words.clone(), words };
    let titles = |targets: &[Target]| targets.iter().map(of).collect();
    let exact = |scenario, targets| Planned { scenario, targets, exact: true };
    let words = |scenario, targets: &[&str]| {
        let targets = targets.iter().map(|target| as_said((*target).to_owned())).collect();
        Planned { scenario, targets, exact: false }
    };
    vec![
        exact("relay", titles(&relay::TARGETS)),
        exact("direct", titles(&direct::TARGETS)),
        exact("stall", stall::targets().into_iter().map(as_said).collect()),
        exact("failover", failover::targets().into_iter().map(as_said).collect()),
        words("rollout", &["connections that fail in a rollout ≤ 0"]),
        words("balance", &["excess of the busiest shard's connections ≤ 2"]),
        words(
            "steer",
            &[
                "µs from a table update to the next SYN that obeys it < 50, p99",
                "steering cost, 256 slots against 1 ≤ 1.05",
            ],
        ),
        words("graft", &["ms that listen(2) is held < 1, p99"]),
    ]
}

fn entry(scenario: &str, target: &str, found: Option<(&Verdict, &AnyReport)>) -> Entry {
    let answer = found.map(|(verdict, report)| Answer {
        verdict: verdict.clone(),
        started: report.started().into(),
        commit: report.origin().commit.clone(),
    });
    let target = answer.as_ref().map_or(target, |answer| &answer.verdict.target).to_owned();
    Entry { scenario: scenario.into(), target, answer }
}

fn row(entry: &Entry) -> Vec<Cell> {
    let Some(Answer { verdict, started, commit }) = &entry.answer else {
        let how = format!("sherd-bench {} measures it", entry.scenario);
        return vec![
            Cell::new(&*entry.scenario),
            Cell::new(&*entry.target),
            Cell::new(""),
            Cell::toned("not measured", Tone::Doubtful),
            Cell::new(how),
            Cell::new(""),
        ];
    };
    let tone = match verdict.word {
        VerdictWord::Held => Tone::Good,
        VerdictWord::NotHeld => Tone::Bad,
        VerdictWord::Undecided => Tone::Doubtful,
    };
    vec![
        Cell::new(&*entry.scenario),
        Cell::new(&*entry.target),
        Cell::new(&*verdict.found),
        Cell::toned(verdict.word.to_string(), tone),
        Cell::new(verdict.because.as_deref().unwrap_or_default()),
        Cell::new(format!("{}, {started}", commit.as_deref().unwrap_or("unknown"))),
    ]
}

fn conclusion(entries: &[Entry]) -> Conclusion {
    let of = |word: VerdictWord| {
        let is_it = |entry: &&Entry| entry.answer.as_ref().is_some_and(|answer| answer.verdict.word == word);
        entries.iter().filter(is_it).count()
    };
    let (held, missed, open) = (of(VerdictWord::Held), of(VerdictWord::NotHeld), of(VerdictWord::Undecided));
    let unmeasured = entries.len() - held - missed - open;
    let (tone, word) = match (missed, open + unmeasured) {
        (0, 0) => (Tone::Good, "held"),
        (0, _) => (Tone::Doubtful, "open"),
        _ => (Tone::Bad, "NOT held"),
    };
    let text = format!(
        "{} targets: {held} held, {missed} not held, {open} undecided, {unmeasured} not measured.",
        entries.len()
    );
    Conclusion { tone, word: word.into(), text }
}

fn listing(reports: &[&(PathBuf, AnyReport)], directory: &Path) -> Section {
    let row = |(path, report): &(PathBuf, AnyReport)| {
        let page = path.with_extension("html");
        let beside = page.file_name().filter(|_| path.parent() == Some(directory));
        let link = beside.map(|name| name.to_string_lossy().into_owned());
        vec![
            Cell { link, ..Cell::new(report.scenario()) },
            Cell::new(report.started()),
            Cell::new(report.origin().commit.as_deref().unwrap_or("unknown")),
            Cell::new(format!("{}, {}, {} CPUs", report.host().name, report.host().kernel, report.host().cpus.len())),
            Cell::new(&*report.origin().command_line),
        ]
    };
    let columns = ["report", "started", "commit", "host", "command"].map(|title| Column::Words(title.into())).into();
    let grid = Grid { columns, rows: reports.iter().map(|report| row(report)).collect() };
    Section { title: "Reports".into(), says: String::new(), parts: vec![Part::Grid(grid)] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing;

    fn at(started: &str, mut report: AnyReport) -> (PathBuf, AnyReport) {
        match &mut report {
            AnyReport::Comparison(report) => report.header.started = started.into(),
            AnyReport::Trial(findings) => findings.started = started.into(),
        }
        (PathBuf::from(format!("results/{}-{started}.json", report.scenario())), report)
    }

    fn trial(scenario: &str, targets: &[(&str, VerdictWord)]) -> AnyReport {
        let mut findings = testing::findings();
        findings.scenario = scenario.into();
        let verdict = |(target, word): &(&str, VerdictWord)| Verdict {
            target: (*target).into(),
            found: "7".into(),
            word: *word,
            because: None,
        };
        findings.verdicts = targets.iter().map(verdict).collect();
        AnyReport::Trial(Box::new(findings))
    }

    #[test]
    fn the_newest_report_of_each_scenario_counts() {
        let held = [("ms to the last connection that fails, agent alive, all of them ≤ 1", VerdictWord::Held)];
        let missed = held.map(|(target, _)| (target, VerdictWord::NotHeld));
        let reports = [at("2026-01-02", trial("failover", &missed)), at("2026-01-01", trial("failover", &held))];
        let newest = newest(&reports);
        assert_eq!(newest.len(), 1);
        let entries = gather(&newest);
        let of_failover: Vec<&Entry> = entries.iter().filter(|entry| entry.scenario == "failover").collect();
        let words: Vec<_> =
            of_failover.iter().map(|entry| entry.answer.as_ref().map(|answer| answer.verdict.word)).collect();
        assert_eq!(words, [Some(VerdictWord::NotHeld), None], "the second target was not judged");
    }

    #[test]
    fn what_was_not_measured_is_listed_and_what_nobody_planned_too() {
        let short = ("no shard is found hung in 20 s at the maximum", VerdictWord::Held);
        let reports = [
            at("2026-01-01", trial("stall", &[short])),
            at("2026-01-01", trial("steer", &[("p99 µs of an update < 50", VerdictWord::Held)])),
            at("2026-01-01", trial("balance", &[])),
            at("2026-01-01", trial("new", &[("something", VerdictWord::Held)])),
            at("2026-01-01", AnyReport::Comparison(Box::new(testing::report()))),
        ];
        let entries = gather(&newest(&reports));
        let find = |target: &str| {
            let is_it = |entry: &&Entry| entry.target.trim_start_matches("sherd: ").starts_with(target);
            let found = entries.iter().find(is_it);
            found.unwrap_or_else(|| panic!("{target} in {entries:#?}")).answer.is_some()
        };
        assert!(!find("no shard is found hung in 600 s") && find("no shard is found hung in 20 s"));
        assert!(find("p99 µs of an update") && !entries.iter().any(|entry| entry.target.starts_with("steering cost")));
        assert!(!find("excess of the busiest") && find("something") && !find("ms that listen(2)"));
        assert!(find("CPU µs/request ≤ 0.9 × the best") && !find("connections/s ≥ 0.97 × the best"));
    }

    #[test]
    fn verdicts_begin_with_their_targets_titles() {
        let report = testing::report();
        for target in [&relay::TARGETS[0], &relay::TARGETS[4]] {
            let found = report.analysis.verdicts.iter().any(|verdict| is_it(&target.title(), verdict));
            assert!(found, "{} in {:?}", target.title(), report.analysis.verdicts);
        }
    }
}
