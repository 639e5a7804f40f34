//! A report as a person reads it in a terminal; reads it and changes nothing.

use std::fmt;

use super::Report;
use crate::{
    analysis::Ratio,
    sample::{BpfLoad, BpfRuns, IdleMemory, SystemCalls},
};

/// Shows a report as text.
#[derive(Debug)]
pub struct Table<'a>(pub &'a Report);

const TITLE: usize = 24;
const CELL: usize = 16;
const RATIO: usize = 19;

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.header(f)?;
        self.medians(f)?;
        self.ratios(f)?;
        self.remarks(f)?;
        super::show_verdicts(f, &self.0.analysis.verdicts)
    }
}

impl Table<'_> {
    fn header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = &self.0.header;
        let (host, settings) = (&header.host, &header.settings);
        writeln!(f, "{}", header.origin.command_line)?;
        let commit = header.origin.commit.as_deref().unwrap_or("unknown");
        writeln!(f, "{}, {:.0} s, commit {commit}", header.started, header.took_seconds)?;
        writeln!(f, "{}, {}, {} × {}", host.name, host.kernel, host.cpus.len(), host.cpu)?;
        write!(
            f,
            "{} pairs of {} s; contestants and shards on CPUs {:?}, load on {:?}; answers of {} bytes on {} connections",
            settings.pairs,
            settings.duration_seconds,
            settings.cpus,
            settings.load_cpus,
            settings.answer_bytes,
            settings.connections,
        )?;
        if let Some(bulk) = settings.bulk {
            write!(f, ", {} on {}", bulk.answer_bytes, bulk.connections)?;
        }
        writeln!(f)?;
        for facts in &header.contestants {
            let program = facts.program.as_deref().map(|program| program.display().to_string()).unwrap_or_default();
            writeln!(f, "  {:<16}{:<22}{program}", facts.name, facts.version)?;
        }
        for missing in &header.missing {
            writeln!(f, "  {:<16}missing: {}", missing.name, missing.why)?;
        }
        Ok(())
    }

    fn medians(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contestants = &self.0.header.contestants;
        let cell = |value: Option<f64>| value.map_or_else(|| "–".into(), number);
        write!(f, "\n{:<TITLE$}", "medians")?;
        for facts in contestants {
            write!(f, "{:>CELL$}", facts.name)?;
        }
        writeln!(f)?;
        for &measure in &self.0.analysis.measures {
            write!(f, "{:<TITLE$}", measure.title())?;
            for facts in contestants {
                let of_it =
                    |median: &&crate::analysis::Median| median.measure == measure && median.contestant == facts.name;
                write!(f, "{:>CELL$}", cell(self.0.analysis.medians.iter().find(of_it).map(|median| median.value)))?;
            }
            writeln!(f)?;
        }
        self.calls(f)?;
        self.bpf(f)?;
        self.idle(f)
    }

    fn calls(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = &self.0.evidence.calls;
        if calls.is_empty() {
            return Ok(());
        }
        for (title, value) in [
            ("system calls/request", SystemCalls::per_request as fn(&SystemCalls) -> f64),
            ("system calls/connection", SystemCalls::per_connection),
        ] {
            write!(f, "{title:<TITLE$}")?;
            for facts in &self.0.header.contestants {
                let of_it = calls.iter().find(|calls| calls.contestant == facts.name);
                write!(f, "{:>CELL$}", of_it.map_or_else(|| "–".into(), |calls| format!("{:.3}", value(calls))))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn bpf(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bpf = &self.0.evidence.bpf;
        if bpf.is_empty() {
            return Ok(());
        }
        for (title, load) in [
            ("eBPF ns/request", (|runs| &runs.of_requests) as fn(&BpfRuns) -> &BpfLoad),
            ("eBPF ns/connection", |runs| &runs.of_connections),
        ] {
            write!(f, "{title:<TITLE$}")?;
            for facts in &self.0.header.contestants {
                let of_it = bpf.iter().find(|runs| runs.contestant == facts.name);
                let nanos = of_it.and_then(|runs| load(runs).nanos_per_request());
                write!(f, "{:>CELL$}", nanos.map_or_else(|| "–".into(), number))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn idle(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contestants = &self.0.header.contestants;
        if self.0.evidence.idle.is_empty() {
            return Ok(());
        }
        let cell = |value: Option<f64>| value.map_or_else(|| "–".into(), number);
        let idle = |name: &str| self.0.evidence.idle.iter().find(|memory| memory.contestant == name);
        for (title, value) in [
            ("bytes/idle connection", IdleMemory::bytes_per_connection as fn(&IdleMemory) -> Option<f64>),
            ("  kernel's, whole path", |memory| Some(memory.slab_bytes_per_connection())),
        ] {
            write!(f, "{title:<TITLE$}")?;
            for facts in contestants {
                write!(f, "{:>CELL$}", cell(idle(&facts.name).and_then(value)))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn ratios(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for subject in distinct(self.0.analysis.ratios.iter().map(|ratio| &*ratio.of)) {
            self.ratios_of(f, subject)?;
        }
        Ok(())
    }

    fn ratios_of(&self, f: &mut fmt::Formatter<'_>, subject: &str) -> fmt::Result {
        let analysis = &self.0.analysis;
        let of_it = || analysis.ratios.iter().filter(|ratio| ratio.of == subject);
        let others = distinct(of_it().map(|ratio| &*ratio.to));
        let title = format!("{subject} ÷");
        write!(f, "\n{title:<TITLE$}")?;
        for other in &others {
            write!(f, "{other:>RATIO$}")?;
        }
        writeln!(f, "{:>RATIO$}", format!("({})", self.control()))?;
        for &measure in analysis.measures.iter().filter(|measure| measure.is_compared()) {
            let to = |other: &str| of_it().find(|ratio| ratio.measure == measure && ratio.to == other);
            let itself = analysis.control.iter().find(|ratio| ratio.measure == measure);
            write!(f, "{:<TITLE$}", measure.title())?;
            for found in others.iter().map(|other| to(other)).chain([itself]) {
                write!(f, "{:>RATIO$}", found.map_or_else(|| "–".into(), interval))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    /// What was compared with itself.
    pub(super) fn control(&self) -> String {
        let control = &self.0.analysis.control;
        let Some(ratio) = control.first() else { return "control".into() };
        let is_another = |other: &Ratio| other.of != ratio.of;
        if ratio.to.starts_with(&format!("{} ", ratio.of)) || control.iter().any(is_another) {
            "control".into()
        } else {
            format!("{} ÷ {}", ratio.of, ratio.to)
        }
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
        for remark in &self.0.header.remarks {
            writeln!(f, "note: {remark}")?;
        }
        Ok(())
    }
}

/// Each once, in the order in which they come first.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

pub(super) fn interval(ratio: &Ratio) -> String {
    let estimate = ratio.estimate;
    if estimate.high >= 10.0 {
        // As wide as the others.
        return format!("{} ({}–{})", number(estimate.ratio), number(estimate.low), number(estimate.high));
    }
    format!("{:.3} ({:.2}–{:.2})", estimate.ratio, estimate.low, estimate.high)
}

/// Three or more significant digits.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        for (value, expected) in
            [(31_245.7, "31246"), (23.46, "23.5"), (1.234, "1.23"), (0.1234, "0.123"), (0.0, "0.000")]
        {
            assert_eq!(number(value), expected);
        }
    }
}
