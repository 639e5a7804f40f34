//! The report of a search for the best of many, as a person reads it in a terminal: one line for each; reads it and changes
//! nothing.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

use super::{Document, Report, table::number};
use crate::{analysis::Ratio, stats::Estimate};

/// A report whose contestants are candidates, more than a table has columns for.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Tuning(pub Report);

impl Document for Tuning {
    fn text(&self) -> String {
        Ranking(&self.0).to_string()
    }
}

struct Ranking<'a>(&'a Report);

const TITLE: usize = 28;
const CELL: usize = 24;
const RATIO: usize = 26;

impl fmt::Display for Ranking<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.header(f)?;
        self.lines(f)?;
        self.remarks(f)?;
        super::show_verdicts(f, &self.0.analysis.verdicts)
    }
}

impl Ranking<'_> {
    fn header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = &self.0.header;
        let (host, settings) = (&header.host, &header.settings);
        writeln!(f, "{}", header.origin.command_line)?;
        let commit = header.origin.commit.as_deref().unwrap_or("unknown");
        writeln!(f, "{}, {:.0} s, commit {commit}", header.started, header.took_seconds)?;
        writeln!(f, "{}, {}, {} × {}", host.name, host.kernel, host.cpus.len(), host.cpu)?;
        writeln!(
            f,
            "{} rounds of two measurements for each that is in; shards on CPUs {:?}, load on {:?}",
            settings.pairs, settings.cpus, settings.load_cpus,
        )
    }

    fn lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let analysis = &self.0.analysis;
        let chosen = analysis.ratios.first().map(|ratio| ratio.of.as_str());
        write!(f, "\n{:<TITLE$}{:>8}", "", "rounds")?;
        for measure in &analysis.measures {
            write!(f, "{:>CELL$}", measure.title())?;
        }
        let title = chosen.map(|chosen| format!("÷ {chosen}")).unwrap_or_default();
        writeln!(f, "{title:>RATIO$}")?;
        for facts in &self.0.header.contestants {
            let of_it = self.0.samples.iter().filter(|sample| sample.contestant == facts.name);
            let rounds: BTreeSet<usize> = of_it.map(|sample| sample.block).collect();
            write!(f, "{:<TITLE$}{:>8}", facts.name, rounds.len())?;
            for measure in &analysis.measures {
                let median = analysis
                    .medians
                    .iter()
                    .find(|median| median.measure == *measure && median.contestant == facts.name);
                write!(f, "{:>CELL$}", median.map_or_else(|| "–".into(), |median| number(median.value)))?;
            }
            let ratio = analysis.ratios.iter().find(|ratio| ratio.to == facts.name);
            let last = match (ratio, Some(facts.name.as_str()) == chosen) {
                (_, true) => "1".into(),
                (Some(ratio), _) => inverse(&ratio.estimate),
                (None, _) => "–".into(),
            };
            writeln!(f, "{last:>RATIO$}")?;
        }
        for Ratio { of, to, estimate, .. } in &analysis.control {
            let Estimate { ratio, low, high, .. } = estimate;
            writeln!(f, "control: {of} ÷ {to} = {ratio:.3} ({low:.3}–{high:.3})")?;
        }
        Ok(())
    }

    fn remarks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noise = &self.0.analysis.noise;
        writeln!(
            f,
            "\nnoise: {:.1} % of the CPU time stolen, {:.1} % used by others",
            noise.stolen_share * 100.0,
            noise.foreign_share * 100.0
        )?;
        if let Some(complaint) = noise.complaint() {
            writeln!(f, "TOO NOISY TO CONCLUDE: {complaint}")?;
        }
        for missing in &self.0.header.missing {
            writeln!(f, "not tried: {}: {}", missing.name, missing.why)?;
        }
        for remark in &self.0.header.remarks {
            writeln!(f, "note: {remark}")?;
        }
        Ok(())
    }
}

/// A ratio of the chosen one to another, seen from that.
fn inverse(estimate: &Estimate) -> String {
    format!("{:.3} ({:.2}–{:.2})", 1.0 / estimate.ratio, 1.0 / estimate.high, 1.0 / estimate.low)
}
