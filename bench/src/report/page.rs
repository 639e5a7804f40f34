//! What a person is shown of a report, before it is HTML or Markdown: sentences, tables and pictures in their order; owns no form and
//! concludes nothing that its report doesn't.

use std::path::Path;

use super::{
    WriteError,
    plot::{Drawing, Tone},
};
use crate::analysis::{Verdict, VerdictWord};

pub(super) mod comparison;
pub(super) mod trial;

/// What a person is shown.
#[derive(Debug, Default)]
pub struct Page {
    /// Above the title: which command it is from.
    pub(crate) kicker: String,
    /// What was compared, or tried.
    pub(crate) title: String,
    /// What that means, in a sentence or two.
    pub(crate) about: String,
    /// When and on what, in one line.
    pub(crate) provenance: String,
    /// Why nothing is concluded, if so.
    pub(crate) warning: Option<String>,
    /// What it says, a sentence each.
    pub(crate) conclusions: Vec<Conclusion>,
    pub(crate) sections: Vec<Section>,
}

/// One sentence, and in a word what to think of it.
#[derive(Debug)]
pub(crate) struct Conclusion {
    pub(crate) tone: Tone,
    pub(crate) word: String,
    pub(crate) text: String,
}

/// A part of a page, with how to read it.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) says: String,
    pub(crate) parts: Vec<Part>,
}

#[derive(Debug)]
pub(crate) enum Part {
    Grid(Grid),
    /// Left out where there are no pictures; what they show is in a table as well.
    /// Drawings stand side by side where there is room.
    Figure {
        drawings: Vec<Drawing>,
        caption: String,
    },
    List(Vec<String>),
    /// Word for word. Only `open` ones are always seen.
    Verbatim {
        title: String,
        text: String,
        open: bool,
    },
}

/// A table. Its first column names the rows.
#[derive(Debug, Default)]
pub(crate) struct Grid {
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Vec<Cell>>,
}

#[derive(Debug)]
pub(crate) enum Column {
    Words(String),
    Figures(String),
}

#[derive(Debug, Default)]
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) tone: Tone,
    /// In the place of its text, where there are pictures.
    pub(crate) picture: Option<Drawing>,
    /// Where a click on it leads.
    pub(crate) link: Option<String>,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { tone, ..Self::new(text) }
    }
}

impl Column {
    pub(crate) fn title(&self) -> &str {
        let (Self::Words(title) | Self::Figures(title)) = self;
        title
    }
}

impl Page {
    /// With a part that is told word for word.
    #[must_use]
    pub(crate) fn with_text(mut self, title: &str, says: &str, text: String) -> Self {
        let parts = vec![Part::Verbatim { title: title.into(), text, open: true }];
        self.sections.push(Section { title: title.into(), says: says.into(), parts });
        self
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        super::text::text(self)
    }

    /// For a pull request.
    pub fn markdown(&self) -> String {
        super::markdown::markdown(self)
    }

    /// For a browser: one file that needs no other.
    pub fn html(&self) -> String {
        super::html::html(self)
    }

    /// Writes those into `directory`, each whole or not at all: `NAME.txt`, `NAME.md` and `PAGE.html`.
    pub fn write(&self, directory: &Path, name: &str, page: &str) -> Result<(), WriteError> {
        super::make_directory(directory)?;
        let forms = [(name, "txt", self.text()), (name, "md", self.markdown()), (page, "html", self.html())];
        for (name, form, text) in forms {
            super::write_whole(&directory.join(format!("{name}.{form}")), &super::portable(&text))?;
        }
        Ok(())
    }

    /// Of something that only has a text.
    pub(crate) fn of_text(text: String) -> Self {
        let title = text.lines().next().unwrap_or_default().to_owned();
        let verbatim = Part::Verbatim { title: "The report".into(), text, open: true };
        let section = Section { title: "Report".into(), says: String::new(), parts: vec![verbatim] };
        Self { kicker: "sherd-bench".into(), title, sections: vec![section], ..Self::default() }
    }
}

/// What a trial is called by who knows none of them.
fn title(scenario: &str) -> &str {
    match scenario {
        "stall" => "What a hung shard costs",
        "failover" => "What a shard's death costs",
        "rollout" => "What a new specification costs",
        "balance" => "How even the shards' load is",
        "steer" => "What steering costs",
        "graft" => "What listen(2) costs behind sherd",
        "plan" => "What planning costs",
        "chaos" => "What faults cost",
        "verify" => "Whether the benchmark measures right",
        other => other,
    }
}

/// What scenarios are about, for who knows none of them.
fn about(scenario: &str) -> &'static str {
    match scenario {
        "relay" => {
            "All of them take connections for the same shards (a small HTTP server, one pinned process on each CPU), with one pinned \
             thread on each CPU. “direct” is nobody in between: what the path itself costs."
        }
        "direct" => {
            "Containers that accept their connections themselves behind sherd, the same containers sharing a port with nobody in \
             front (bare), and behind HAProxy: all of one image, one pinned to each CPU."
        }
        "peers" => "Everything that could stand in front of the same shards on this host, under every load.",
        "sharding" => "One program, run unsharded and as pinned shards of several sizes, under the same load.",
        "memory" => "What connections cost in memory that have had an answer and are idle since.",
        "stall" => {
            "A shard that is stopped (SIGSTOP) under half load: how long it still gets connections, who serves those, and whether \
             shards that are only busy are taken for hung."
        }
        "failover" => {
            "A shard that is killed (SIGKILL) under half load, with the agent there and with the agent stopped: which connections \
             fail, and for how long."
        }
        "rollout" => "A group that gets a new specification under load, shard by shard: which connections fail.",
        "balance" => "How evenly connections are spread over the shards, and what it costs the slowest.",
        "steer" => {
            "What steering a connection costs, and how soon a change of the table holds, by the number of slots."
        }
        "graft" => "How long a program's listen(2) waits until it has its listener.",
        "verify" => {
            "Latencies that were planted, a difference that was planted and one that wasn't, and the maxima that other generators find."
        }
        "plan" => "How long planning takes, from one core to 4,096.",
        "chaos" => "Faults on a running group, on a schedule or at random from a seed, and every loss counted.",
        _ => "",
    }
}

fn tone(word: VerdictWord) -> Tone {
    match word {
        VerdictWord::Held => Tone::Good,
        VerdictWord::NotHeld => Tone::Bad,
        VerdictWord::Undecided => Tone::Doubtful,
    }
}

/// How many hold, in one sentence; none without targets.
fn count(verdicts: &[Verdict]) -> Option<Conclusion> {
    let of = |word| verdicts.iter().filter(|verdict| verdict.word == word).count();
    let (held, missed, open) = (of(VerdictWord::Held), of(VerdictWord::NotHeld), of(VerdictWord::Undecided));
    let (tone, word) = match (missed, open) {
        _ if verdicts.is_empty() => return None,
        (0, 0) => (Tone::Good, "held"),
        (0, _) => (Tone::Doubtful, "undecided"),
        _ => (Tone::Bad, "NOT held"),
    };
    let parts = [(held, "held"), (missed, "not held"), (open, "that this run can't decide")];
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, words)| format!("{count} {words}")).collect();
    let targets = if verdicts.len() == 1 { "target" } else { "targets" };
    Some(Conclusion { tone, word: word.into(), text: format!("{} {targets}: {}.", verdicts.len(), list(&parts)) })
}

fn verdicts(verdicts: &[Verdict]) -> Section {
    let row = |verdict: &Verdict| {
        vec![
            Cell::new(&*verdict.target),
            Cell::new(&*verdict.found),
            Cell::toned(verdict.word.to_string(), tone(verdict.word)),
            Cell::new(verdict.because.as_deref().unwrap_or_default()),
        ]
    };
    let grid = Grid {
        columns: ["target", "found", "answer", "why there is none"].map(|title| Column::Words(title.into())).into(),
        rows: verdicts.iter().map(row).collect(),
    };
    Section {
        title: "Targets".into(),
        says: "A target holds when the whole interval is on its right side; where the interval lies across, where the control is not \
               1, or where the host was too busy, nothing is concluded."
            .into(),
        parts: vec![Part::Grid(grid)],
    }
}

/// `a, b and c`.
fn list(words: &[impl AsRef<str>]) -> String {
    match words {
        [] => String::new(),
        [one] => one.as_ref().into(),
        [all @ .., last] => {
            let all: Vec<&str> = all.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", all.join(", "), last.as_ref())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_english() {
        for (words, expected) in
            [(vec![], ""), (vec!["a"], "a"), (vec!["a", "b"], "a and b"), (vec!["a", "b", "c"], "a, b and c")]
        {
            assert_eq!(list(&words), expected);
        }
    }

    #[test]
    fn one_that_is_missed_decides_the_tone() {
        let verdict = |word| Verdict { target: String::new(), found: String::new(), word, because: None };
        let check = |words: &[VerdictWord], expected: Option<Tone>| {
            let verdicts: Vec<Verdict> = words.iter().map(|word| verdict(*word)).collect();
            assert_eq!(count(&verdicts).map(|conclusion| conclusion.tone), expected, "{words:?}");
        };
        let (held, missed, open) = (VerdictWord::Held, VerdictWord::NotHeld, VerdictWord::Undecided);
        check(&[], None);
        check(&[held, held], Some(Tone::Good));
        check(&[held, open], Some(Tone::Doubtful));
        check(&[held, open, missed], Some(Tone::Bad));
    }
}
