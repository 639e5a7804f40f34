//! What a run leaves: JSON with every sample, and a table to read; owns their form and concludes nothing itself.

use std::{
    env,
    error::Error,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub(crate) use self::table::number;
pub use self::{
    date::utc,
    findings::{Bins, FOREIGN, Findings, Series, Timeline},
    idle::{IdlePoint, IdleReport, IdleSlope, WhoseMemory},
    page::Page,
    progress::Progress,
    ranking::Tuning,
    stored::{AnyReport, FORMAT, Found, ReadError},
    table::Table,
};
use crate::{
    analysis::{Analysis, Evidence, Verdict, VerdictWord},
    contestant::Facts,
    measure::HostFacts,
    sample::Sample,
};

mod date;
mod findings;
mod html;
mod idle;
mod markdown;
pub(crate) mod page;
pub(crate) mod plot;
mod progress;
mod ranking;
mod stored;
mod table;
#[cfg(test)]
pub(crate) mod testing;
mod text;

/// All of a run.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// What it was run with and on.
    #[serde(flatten)]
    pub header: Header,
    /// What it says.
    pub analysis: Analysis,
    /// What was measured once.
    #[serde(flatten)]
    pub evidence: Evidence,
    /// Every measurement.
    pub samples: Vec<Sample>,
}

/// What a run was run with and on.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Header {
    /// Where it comes from.
    #[serde(flatten)]
    pub origin: Origin,
    /// UTC.
    pub started: String,
    /// All of it.
    pub took_seconds: f64,
    /// Where.
    pub host: HostFacts,
    /// How.
    pub settings: Settings,
    /// Who.
    pub contestants: Vec<Facts>,
    /// Who not.
    pub missing: Vec<Missing>,
    /// What a reader should know.
    pub remarks: Vec<String>,
}

/// Where a report comes from.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Origin {
    /// As typed.
    pub command_line: String,
    /// Of the working directory, with `+` when it has changes.
    pub commit: Option<String>,
}

/// How a comparison is run.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Settings {
    /// Blocks, each with two samples of every contestant under every load.
    pub pairs: usize,
    /// Each window.
    pub duration_seconds: f64,
    /// Before each window.
    pub warm_up_seconds: f64,
    /// Connections of the small loads.
    pub connections: usize,
    /// Their answers.
    pub answer_bytes: usize,
    /// The bulk load, where there is one.
    pub bulk: Option<Bulk>,
    /// The open loop's rate as a share of the slowest contestant's maximum.
    pub open_share: f64,
    /// Idle connections.
    pub idle_connections: usize,
    /// Of orders, arrivals and intervals.
    pub seed: u64,
    /// CPUs of contestants and shards: one thread and one shard on each.
    pub cpus: Vec<usize>,
    /// CPUs of the load: one thread on each.
    pub load_cpus: Vec<usize>,
}

/// A load of large answers.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub struct Bulk {
    /// At a time.
    pub connections: usize,
    /// Of each answer.
    pub answer_bytes: usize,
}

/// A contestant that did not take part.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Missing {
    /// Who.
    pub name: String,
    /// Why, and the command that changes it.
    pub why: String,
}

impl Missing {
    /// With the reason and its cause.
    pub fn of(name: &str, error: &dyn Error) -> Self {
        let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        Self { name: name.into(), why: format!("{error}{source}") }
    }
}

/// A report could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be written", path.display())]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// What a run leaves, whatever it was about.
pub trait Document: Serialize {
    /// What its file says it is. What [`AnyReport`] has no word for can't be read back by this program.
    const KIND: &'static str = "other";

    /// To be read in a terminal.
    fn text(&self) -> String;

    /// To be looked at; what has nothing but a text shows that.
    fn page(&self) -> Page {
        Page::of_text(self.text())
    }

    /// Writes `NAME.json`, `NAME.txt`, `NAME.md` and `NAME.html` into `directory`, each whole or not at all; gives the JSON's path.
    fn write(&self, directory: &Path, name: &str) -> Result<PathBuf, WriteError> {
        let json = directory.join(format!("{name}.json"));
        make_directory(directory)?;
        let values = serde_json::to_string_pretty(&Stored { format: FORMAT, kind: Self::KIND, document: self })
            .map_err(|error| WriteError { path: json.clone(), source: error.into() })?;
        write_whole(&json, &portable(&values))?;
        self.write_shown(directory, name)?;
        Ok(json)
    }

    /// What people read of it alone: `NAME.txt`, `NAME.md` and `NAME.html`.
    fn write_shown(&self, directory: &Path, name: &str) -> Result<(), WriteError> {
        let page = self.page();
        let forms = [("txt", self.text()), ("md", page.markdown()), ("html", page.html())];
        for (form, text) in forms {
            write_whole(&directory.join(format!("{name}.{form}")), &portable(&text))?;
        }
        Ok(())
    }
}

impl Document for Report {
    const KIND: &'static str = stored::COMPARISON;

    fn text(&self) -> String {
        Table(self).to_string()
    }

    fn page(&self) -> Page {
        page::comparison::page(self)
    }
}

impl Document for Findings {
    const KIND: &'static str = stored::TRIAL;

    fn text(&self) -> String {
        self.to_string()
    }

    fn page(&self) -> Page {
        page::trial::page(self)
    }
}

/// A document as its file has it.
#[derive(Serialize)]
struct Stored<'a, D: ?Sized> {
    format: u32,
    kind: &'static str,
    #[serde(flatten)]
    document: &'a D,
}

/// Without what is true of one person's machine only: paths below the working directory are relative, and those
/// below the home directory begin with `~`.
fn portable(text: &str) -> String {
    let without = |text: String, directory: Option<PathBuf>, instead: &str, end: &str| match directory {
        Some(directory) if directory.components().count() > 1 => {
            text.replace(&format!("{}{end}", directory.display()), instead)
        }
        _ => text,
    };
    let text = without(text.to_owned(), env::current_dir().ok(), "", "/");
    without(text, env::var_os("HOME").map(PathBuf::from), "~", "")
}

fn make_directory(directory: &Path) -> Result<(), WriteError> {
    fs::create_dir_all(directory).map_err(|source| WriteError { path: directory.to_owned(), source })
}

fn write_whole(path: &Path, text: &str) -> Result<(), WriteError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    fs::write(&partial, text)
        .and_then(|()| fs::rename(&partial, path))
        .map_err(|source| WriteError { path: path.to_owned(), source })
}

/// One line for each target.
fn show_verdicts(f: &mut fmt::Formatter<'_>, verdicts: &[Verdict]) -> fmt::Result {
    for verdict in verdicts {
        write!(f, "{:<10} {}", verdict.word, verdict.target)?;
        if !verdict.found.is_empty() {
            write!(f, ": {}", verdict.found)?;
        }
        if let (VerdictWord::Undecided, Some(because)) = (verdict.word, &verdict.because) {
            write!(f, " ({because})")?;
        }
        writeln!(f)?;
    }
    Ok(())
}
