//! What a trial leaves: series of figures with what they are of, and whether targets hold; owns its form and concludes nothing
//! itself.

use std::fmt;

use serde::Serialize;

use super::{Origin, show_verdicts, table::number};
use crate::{analysis::Verdict, contestant::Facts, measure::HostFacts, stats::quantile};

/// All of a trial.
#[derive(Debug, Clone, Serialize)]
pub struct Findings {
    /// The scenario's name.
    pub scenario: &'static str,
    /// Where it comes from.
    #[serde(flatten)]
    pub origin: Origin,
    /// UTC.
    pub started: String,
    /// All of it.
    pub took_seconds: f64,
    /// Where.
    pub host: HostFacts,
    /// What was tried.
    pub contestants: Vec<Facts>,
    /// Every figure.
    pub series: Vec<Series>,
    /// What a reader should know.
    pub remarks: Vec<String>,
    /// Whether the targets hold.
    pub verdicts: Vec<Verdict>,
}

/// Figures of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// Of what, with their unit.
    pub title: String,
    /// In the order in which they were found.
    pub samples: Vec<f64>,
}

impl Series {
    /// Those figures.
    pub fn new(title: impl Into<String>, samples: Vec<f64>) -> Self {
        Self { title: title.into(), samples }
    }

    /// The largest; none without any.
    pub fn max(&self) -> Option<f64> {
        quantile(&self.samples, 1.0)
    }
}

const TITLE: usize = 72;

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.origin.command_line)?;
        let commit = self.origin.commit.as_deref().unwrap_or("unknown");
        writeln!(f, "{}, {:.0} s, commit {commit}", self.started, self.took_seconds)?;
        writeln!(f, "{}, {}, {} × {}", self.host.name, self.host.kernel, self.host.cpus.len(), self.host.cpu)?;
        write!(f, "\n{:<TITLE$}{:>8}", "", "count")?;
        for title in ["min", "p50", "p99", "max"] {
            write!(f, "{title:>10}")?;
        }
        writeln!(f)?;
        for series in &self.series {
            write!(f, "{:<TITLE$}{:>8}", series.title, series.samples.len())?;
            for share in [0.0, 0.5, 0.99, 1.0] {
                write!(f, "{:>10}", quantile(&series.samples, share).map_or_else(|| "–".into(), number))?;
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        for remark in &self.remarks {
            writeln!(f, "note: {remark}")?;
        }
        show_verdicts(f, &self.verdicts)
    }
}
