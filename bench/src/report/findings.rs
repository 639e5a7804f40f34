//! What a trial leaves: series of figures with what they are of, and whether targets hold; owns its form and concludes nothing
//! itself.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Origin, show_verdicts, table::number};
use crate::{analysis::Verdict, contestant::Facts, measure::HostFacts, sample::Better, stats::quantile};

/// All of a trial.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Findings {
    /// The scenario's name.
    pub scenario: String,
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
    /// What happened when.
    #[serde(default)]
    pub timelines: Vec<Timeline>,
    /// What a reader should know.
    pub remarks: Vec<String>,
    /// Whether the targets hold.
    pub verdicts: Vec<Verdict>,
}

/// Figures of one kind.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Series {
    /// Of what, with their unit.
    pub title: String,
    /// In the order in which they were found.
    pub samples: Vec<f64>,
    /// Which way they are to go; none of those that only say how things were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub better: Option<Better>,
}

/// The title of the series that says how much of the host was not the trial's, before each part of it.
pub const FOREIGN: &str = "% of the CPU time used by others before";

impl Series {
    /// Those figures.
    pub fn new(title: impl Into<String>, samples: Vec<f64>) -> Self {
        Self { title: title.into(), samples, better: None }
    }

    /// Those that are the better the smaller they are: costs, losses, times.
    #[must_use]
    pub fn less_is_better(self) -> Self {
        Self { better: Some(Better::Less), ..self }
    }

    /// The largest; none without any.
    pub fn max(&self) -> Option<f64> {
        quantile(&self.samples, 1.0)
    }
}

/// One figure over time.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Timeline {
    /// Of what.
    pub title: String,
    /// What the values are in.
    pub unit: String,
    /// Seconds since an event that the title names, and the value then; seconds ascend.
    pub points: Vec<(f64, f64)>,
    /// Seconds since that event, and what happened then.
    pub marks: Vec<(f64, String)>,
}

/// Equal parts of a span of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bins {
    /// Where the first begins, in seconds.
    pub from: f64,
    /// How long each is, in seconds; more than 0.
    pub width: f64,
    /// How many.
    pub count: usize,
}

impl Timeline {
    /// How many of `moments` (seconds) are in each of the bins.
    pub fn counts(title: impl Into<String>, unit: &str, bins: Bins, moments: impl IntoIterator<Item = f64>) -> Self {
        let mut counts = vec![0_u64; bins.count];
        for bin in moments.into_iter().filter_map(|moment| bins.of(moment)) {
            counts[bin] += 1;
        }
        let points = counts.into_iter().enumerate().map(|(bin, count)| (bins.begin(bin), count as f64)).collect();
        Self { title: title.into(), unit: unit.into(), points, marks: Vec::new() }
    }

    /// The largest value in each of the bins, from `points` of (seconds, value) in any order; bins without any are left out.
    pub fn largest(
        title: impl Into<String>,
        unit: &str,
        bins: Bins,
        points: impl IntoIterator<Item = (f64, f64)>,
    ) -> Self {
        let mut largest: Vec<Option<f64>> = vec![None; bins.count];
        for (moment, value) in points {
            if let Some(bin) = bins.of(moment) {
                largest[bin] = Some(largest[bin].map_or(value, |most| most.max(value)));
            }
        }
        let point = |(bin, value): (usize, Option<f64>)| Some((bins.begin(bin), value?));
        let points = largest.into_iter().enumerate().filter_map(point).collect();
        Self { title: title.into(), unit: unit.into(), points, marks: Vec::new() }
    }

    /// With something that happened at `seconds`.
    #[must_use]
    pub fn mark(mut self, seconds: f64, text: impl Into<String>) -> Self {
        self.marks.push((seconds, text.into()));
        self
    }
}

impl Bins {
    fn of(self, moment: f64) -> Option<usize> {
        let bin = ((moment - self.from) / self.width).floor();
        (bin >= 0.0 && bin < self.count as f64).then_some(bin as usize)
    }

    fn begin(self, bin: usize) -> f64 {
        self.from + bin as f64 * self.width
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

#[cfg(test)]
mod tests {
    use super::*;

    const BINS: Bins = Bins { from: -1.0, width: 0.5, count: 4 };

    #[test]
    fn bins_hold_what_begins_in_them() {
        let points = |timeline: Timeline| timeline.points;
        let counted = Timeline::counts("", "", BINS, [-1.0, -0.6, -0.5, 0.99, 1.0, -1.1, f64::NAN]);
        assert_eq!(points(counted), [(-1.0, 2.0), (-0.5, 1.0), (0.0, 0.0), (0.5, 1.0)]);
        let largest = Timeline::largest("", "", BINS, [(0.2, 3.0), (0.1, 7.0), (-0.9, 1.0), (5.0, 9.0)]);
        assert_eq!(points(largest), [(-1.0, 1.0), (0.0, 7.0)]);
    }
}
