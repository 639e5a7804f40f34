//! Changes as a page: what got worse first, then every figure, those of others last.

use super::{Change, Changes, Word};
use crate::{
    report::{
        Page,
        page::{Cell, Column, Conclusion, Grid, Part, Section},
        plot::{Forest, ForestGroup, ForestRow, Tone},
    },
    stats::Estimate,
};

impl Word {
    fn text(self) -> &'static str {
        match self {
            Self::Regressed => "REGRESSED",
            Self::Improved => "improved",
            Self::Same => "no difference",
            Self::Undecided => "undecided",
            Self::Told => "",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Self::Regressed => Tone::Bad,
            Self::Improved => Tone::Good,
            Self::Undecided => Tone::Doubtful,
            Self::Same | Self::Told => Tone::Plain,
        }
    }
}

/// All scenarios that are in both, and what is to be known of the others.
pub fn page(all: &[Changes], notes: &[String]) -> Page {
    let mut sections: Vec<Section> = all.iter().map(section).collect();
    if !notes.is_empty() {
        let parts = vec![Part::List(notes.to_vec())];
        sections.push(Section { title: "Not compared".into(), says: String::new(), parts });
    }
    Page {
        kicker: "sherd-bench compare".into(),
        title: "What changed between two sets of reports".into(),
        about: "Where a scenario has programs that did not change, sherd's figures are judged in relation to theirs (“to the others”), \
                so that a host that is slower for all is no regression. A difference counts if its 95 % interval excludes 1 and it is \
                larger than what the runs find between a thing and itself."
            .into(),
        conclusions: all.iter().map(conclusion).collect(),
        sections,
        ..Page::default()
    }
}

fn conclusion(changes: &Changes) -> Conclusion {
    let (bad, good) = (changes.count(Word::Regressed), changes.count(Word::Improved));
    let (same, open) = (changes.count(Word::Same), changes.count(Word::Undecided));
    let word = match (bad, good, same) {
        (0, 0, 0) => Word::Undecided,
        (0, 0, _) => Word::Same,
        (0, ..) => Word::Improved,
        _ => Word::Regressed,
    };
    let text = format!(
        "{}: {bad} regressed, {good} improved, {same} without a difference beyond noise, {open} undecided.",
        changes.scenario
    );
    Conclusion { tone: word.tone(), word: word.text().into(), text }
}

fn section(changes: &Changes) -> Section {
    let columns = vec![
        Column::Words("figure".into()),
        Column::Words("whose".into()),
        Column::Figures("old".into()),
        Column::Figures("new".into()),
        Column::Figures("new ÷ old".into()),
        Column::Figures("to the others".into()),
        Column::Words("says".into()),
        Column::Words("because".into()),
    ];
    let order = |change: &&Change| match change.word {
        Word::Regressed => 0,
        Word::Improved => 1,
        Word::Undecided => 2,
        Word::Same => 3,
        Word::Told => 4,
    };
    let mut sorted: Vec<&Change> = changes.changes.iter().collect();
    sorted.sort_by_key(order);
    let grid = Grid { columns, rows: sorted.into_iter().map(row).collect() };
    let mut says = vec![format!("old: {}", changes.old), format!("new: {}", changes.new)];
    says.extend(changes.differences.iter().map(|difference| format!("DIFFERENT {difference}")));
    let mut parts = vec![Part::List(says)];
    parts.extend(figure(changes));
    parts.push(Part::Grid(grid));
    Section { title: changes.scenario.clone(), says: String::new(), parts }
}

/// What is judged, as intervals around no change; none where nothing has an interval.
fn figure(changes: &Changes) -> Option<Part> {
    let mut groups: Vec<ForestGroup> = Vec::new();
    for change in changes.changes.iter().filter(|change| change.word != Word::Told) {
        let Some(estimate) = change.relative.or(change.absolute) else { continue };
        // Figures of trials are nobody's, and their names long: each has a line for it.
        let (title, name) = match &*change.who {
            "" => (&change.what, ""),
            _ => (&change.who, &*change.what),
        };
        let row = ForestRow { name: name.into(), estimate, pairs: Vec::new(), tone: change.word.tone(), bound: None };
        match groups.iter_mut().find(|group| group.title == *title) {
            Some(group) => group.rows.push(row),
            None => groups.push(ForestGroup { title: title.clone(), control: None, rows: vec![row] }),
        }
    }
    let says = format!("what changed in {}, new by old", changes.scenario);
    let caption =
        "New ÷ old of what is judged, with 95 % intervals; green is better, red worse, whichever side that is.".into();
    let forest = Forest { says, sides: ("less than before", "more than before"), groups };
    (!forest.groups.is_empty()).then(|| Part::Figure { drawings: vec![forest.draw()], caption })
}

fn row(change: &Change) -> Vec<Cell> {
    let interval = |estimate: Option<Estimate>| match estimate {
        Some(Estimate { ratio, low, high, .. }) => format!("{ratio:.3} ({low:.2}–{high:.2})"),
        None => "–".into(),
    };
    vec![
        Cell::new(&*change.what),
        Cell::new(&*change.who),
        Cell::new(&*change.old),
        Cell::new(&*change.new),
        Cell::new(interval(change.absolute)),
        Cell::new(interval(change.relative)),
        Cell::toned(change.word.text(), change.word.tone()),
        Cell::new(&*change.because),
    ]
}
