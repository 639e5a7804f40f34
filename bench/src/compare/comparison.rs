//! Changes between two comparisons of one scenario; pure.

use std::collections::BTreeMap;

use super::{Change, MIN_SAMPLES, SEED, Word};
use crate::{
    analysis::{Analysis, Median, block_means},
    report::{Report, number},
    sample::{Better, Measure},
    stats::{Estimate, unpaired},
};

/// Programs that aren't sherd's, by the begin of their names: what they do differently is the host's doing.
const OTHERS: [&str; 6] = ["bare", "direct", "docker", "envoy", "haproxy", "nginx"];
/// As for targets: fewer than one in so many repetitions is the tracer's coming and going.
const CALLS: f64 = 0.01;

pub(super) fn changes(old: &Report, new: &Report) -> Vec<Change> {
    let pair = Pair { old, new };
    let both = |name: &&str| old.header.contestants.iter().any(|facts| facts.name == **name);
    let names: Vec<&str> = new.header.contestants.iter().map(|facts| &*facts.name).filter(both).collect();
    let measures = new.analysis.measures.iter().copied().filter(|measure| measure.is_compared());
    let timed = measures.flat_map(|measure| names.iter().map(move |name| (measure, *name)));
    let timed = timed.filter_map(|(measure, name)| pair.change(measure, name));
    timed.chain(names.iter().flat_map(|name| pair.counted(name))).collect()
}

struct Pair<'a> {
    old: &'a Report,
    new: &'a Report,
}

impl Pair<'_> {
    fn change(&self, measure: Measure, name: &str) -> Option<Change> {
        let values = |report: &Report| block_means(&report.samples, measure, name);
        let (old, new) = (values(self.old), values(self.new));
        let (then, now) = (median(&self.old.analysis, measure, name)?, median(&self.new.analysis, measure, name)?);
        let absolute = unpaired(&logs(&new), &logs(&old), SEED)?;
        let relative = (!is_other(name)).then(|| self.relative(measure, name)).flatten();
        let (word, because) = match is_other(name) {
            true => (Word::Told, String::new()),
            false => self.judge(measure, &relative.unwrap_or(absolute)),
        };
        Some(Change {
            what: measure.title().trim().into(),
            who: name.into(),
            old: number(then),
            new: number(now),
            absolute: Some(absolute),
            relative,
            word,
            because,
        })
    }

    /// What became of its relation to those that did not change; none without such.
    fn relative(&self, measure: Measure, name: &str) -> Option<Estimate> {
        let version = |report: &Report, other: &str| {
            report.header.contestants.iter().find(|facts| facts.name == other).map(|facts| facts.version.clone())
        };
        let unchanged: Vec<&str> = self
            .new
            .header
            .contestants
            .iter()
            .map(|facts| &*facts.name)
            .filter(|other| is_other(other) && version(self.old, other) == version(self.new, other))
            .filter(|other| !block_means(&self.new.samples, measure, other).is_empty())
            .collect();
        let relation = |report: &Report| -> Vec<f64> {
            let others: Vec<BTreeMap<usize, f64>> =
                unchanged.iter().map(|other| block_means(&report.samples, measure, other)).collect();
            let of_block = |(block, value): (&usize, &f64)| {
                let others: Vec<f64> = others.iter().filter_map(|means| Some(means.get(block)?.ln())).collect();
                let mean = others.iter().sum::<f64>() / others.len() as f64;
                Some(value.ln() - mean).filter(|relation| relation.is_finite())
            };
            block_means(&report.samples, measure, name).iter().filter_map(of_block).collect()
        };
        unpaired(&relation(self.new), &relation(self.old), SEED)
    }

    fn judge(&self, measure: Measure, found: &Estimate) -> (Word, String) {
        let obstacle = [("then", &self.old.analysis), ("now", &self.new.analysis)]
            .into_iter()
            .find_map(|(when, analysis)| obstacle(analysis, measure).map(|obstacle| format!("{when}, {obstacle}")));
        if let Some(obstacle) = obstacle {
            return (Word::Undecided, obstacle);
        }
        if found.pairs < MIN_SAMPLES {
            return (Word::Undecided, format!("{} blocks are too few, {MIN_SAMPLES} would do", found.pairs));
        }
        let width = width(&self.old.analysis, measure).max(width(&self.new.analysis, measure));
        if found.includes(1.0) {
            (Word::Same, String::new())
        } else if found.ratio.ln().abs() <= width.ln() {
            (Word::Same, format!("the control alone is ±{:.1} % wide", (width - 1.0) * 100.0))
        } else if (found.ratio > 1.0) == (measure.better() == Better::More) {
            (Word::Improved, String::new())
        } else {
            (Word::Regressed, String::new())
        }
    }

    /// What was counted once: system calls are judged, they are exact; one figure of memory has no interval.
    fn counted(&self, name: &str) -> Vec<Change> {
        let calls = |report: &Report| report.evidence.calls.iter().find(|calls| calls.contestant == name).cloned();
        let idle = |report: &Report| {
            report.evidence.idle.iter().find(|memory| memory.contestant == name)?.bytes_per_connection()
        };
        let change = |what: &str, digits: usize, then: f64, now: f64, word: Word| Change {
            what: what.into(),
            who: name.into(),
            old: format!("{then:.digits$}"),
            new: format!("{now:.digits$}"),
            absolute: None,
            relative: None,
            word: if is_other(name) { Word::Told } else { word },
            because: String::new(),
        };
        let counted = |then: f64, now: f64| match now - then {
            CALLS.. => Word::Regressed,
            less if less <= -CALLS => Word::Improved,
            _ => Word::Same,
        };
        let mut changes = Vec::new();
        if let (Some(then), Some(now)) = (calls(self.old), calls(self.new)) {
            let (was, is) = (then.per_request(), now.per_request());
            changes.push(change("system calls/request", 3, was, is, counted(was, is)));
            let (was, is) = (then.per_connection(), now.per_connection());
            changes.push(change("system calls/connection", 3, was, is, counted(was, is)));
        }
        if let (Some(then), Some(now)) = (idle(self.old), idle(self.new)) {
            let told = change("bytes/idle connection", 0, then, now, Word::Told);
            changes.push(Change { because: "measured once, without an interval".into(), ..told });
        }
        changes
    }
}

fn is_other(name: &str) -> bool {
    OTHERS.iter().any(|other| name.starts_with(other))
}

fn logs(values: &BTreeMap<usize, f64>) -> Vec<f64> {
    values.values().filter(|value| value.is_finite() && **value > 0.0).map(|value| value.ln()).collect()
}

/// As the report's own tables have it.
fn median(analysis: &Analysis, measure: Measure, name: &str) -> Option<f64> {
    let is_it = |median: &&Median| median.measure == measure && median.contestant == name;
    analysis.medians.iter().find(is_it).map(|median| median.value)
}

/// Why nothing can be concluded from a run about `measure`.
fn obstacle(analysis: &Analysis, measure: Measure) -> Option<String> {
    let control = analysis.control.iter().find(|ratio| ratio.measure == measure)?.estimate;
    let off = (!control.includes(1.0)).then(|| format!("the control was {:.3}–{:.3}", control.low, control.high));
    analysis.noise.complaint().or(off)
}

/// Half the width of the control's interval, as a factor; 1 without a control.
fn width(analysis: &Analysis, measure: Measure) -> f64 {
    let control = analysis.control.iter().find(|ratio| ratio.measure == measure);
    control.map_or(1.0, |ratio| (ratio.estimate.high / ratio.estimate.low).sqrt())
}
