//! What is shown of a comparison: what it says first, then the ratios, every sample, and what it stands on.

use super::{Cell, Column, Conclusion, Grid, Page, Part, Section, about, count, list, verdicts};
use crate::{
    analysis::{Bound, Median, Ratio, pairs},
    contestant::Facts,
    report::{
        Report,
        plot::{
            Cloud, Curve, Drawing, Forest, ForestGroup, ForestRow, Panel, Strip, Tone, percentiles, scatter, strips,
        },
        table::{Table, interval, number},
    },
    sample::{Better, IdleMemory, Latency, LoadKind, Measure, Sample, SystemCalls},
};

pub(super) mod header;

/// At which shares samples have latencies.
type Percentile = (f64, fn(&Latency) -> f64);
const PERCENTILES: [Percentile; 4] =
    [(0.5, |found| found.p50), (0.9, |found| found.p90), (0.99, |found| found.p99), (0.999, |found| found.p999)];
const COLUMNS: usize = 3;

/// All of it.
pub(in crate::report) fn page(report: &Report) -> Page {
    let view = View(report);
    let mut sections = vec![view.glance(), view.ratios()];
    sections.extend(view.latencies());
    sections.extend(view.throughput());
    if !report.analysis.verdicts.is_empty() {
        sections.insert(0, verdicts(&report.analysis.verdicts));
    }
    sections.push(view.figures());
    sections.push(view.trust());
    sections.push(header::section(&report.header));
    Page {
        kicker: format!("sherd-bench {}", report.scenario),
        title: view.title(),
        about: about(&report.scenario).into(),
        provenance: header::provenance(&report.header),
        warning: report.analysis.noise.complaint().map(|complaint| format!("Too noisy to conclude: {complaint}.")),
        conclusions: count(&report.analysis.verdicts).into_iter().chain(view.against_each()).collect(),
        sections,
    }
}

/// The picture that tells most: every sample of rates, costs and the tail, by contestant.
pub(in crate::report) fn main_figure(report: &Report) -> Drawing {
    let wanted = [
        Measure::RequestsPerSecond,
        Measure::ConnectionsPerSecond,
        Measure::GigabytesPerSecond,
        Measure::CpuPerRequest,
        Measure::WholeCpuPerRequest,
        Measure::CpuPerConnection,
        Measure::WholeCpuPerConnection,
        Measure::LatencyP99,
    ];
    let view = View(report);
    let there = wanted.into_iter().filter(|measure| report.analysis.measures.contains(measure));
    let panels: Vec<Panel> = there.take(2 * COLUMNS).map(|measure| view.panel(measure)).collect();
    strips(&panels, COLUMNS, &view.title())
}

struct View<'a>(&'a Report);

impl View<'_> {
    fn subject(&self) -> Option<&str> {
        self.0.analysis.ratios.first().map(|ratio| &*ratio.of)
    }

    /// Those that it is compared with, in the order of tables.
    fn others(&self) -> Vec<&str> {
        let mut others: Vec<&str> = Vec::new();
        for ratio in &self.0.analysis.ratios {
            if !others.contains(&&*ratio.to) {
                others.push(&ratio.to);
            }
        }
        others
    }

    fn contestants(&self) -> &[Facts] {
        &self.0.header.contestants
    }

    fn compared(&self) -> impl Iterator<Item = Measure> + '_ {
        self.0.analysis.measures.iter().copied().filter(|measure| measure.is_compared())
    }

    fn title(&self) -> String {
        let names: Vec<&str> = self.contestants().iter().map(|facts| &*facts.name).collect();
        match self.subject() {
            Some(subject) => format!("{subject} against {}", list(&self.others())),
            None => list(&names),
        }
    }

    fn control(&self, measure: Measure) -> Option<&Ratio> {
        self.0.analysis.control.iter().find(|ratio| ratio.measure == measure)
    }

    /// Whether the control of `measure` allows anything to be said.
    fn is_told_apart(&self, measure: Measure) -> bool {
        self.control(measure).is_none_or(|control| control.estimate.includes(1.0))
    }

    fn tone(&self, ratio: &Ratio) -> Tone {
        let estimate = ratio.estimate;
        if self.0.analysis.noise.complaint().is_some() || !self.is_told_apart(ratio.measure) {
            Tone::Doubtful
        } else if estimate.includes(1.0) {
            Tone::Plain
        } else if (estimate.ratio < 1.0) == (ratio.measure.better() == Better::Less) {
            Tone::Good
        } else {
            Tone::Bad
        }
    }

    fn against_each(&self) -> impl Iterator<Item = Conclusion> + '_ {
        self.others().into_iter().map(|other| self.against(other))
    }

    /// One sentence.
    fn against(&self, other: &str) -> Conclusion {
        let ratios: Vec<&Ratio> = self.0.analysis.ratios.iter().filter(|ratio| ratio.to == other).collect();
        let of = |tone: Tone| -> Vec<String> {
            let words = |ratio: &&&Ratio| match tone {
                Tone::Good | Tone::Bad => format!("{} {}", ratio.measure.title(), percent(ratio.estimate.ratio)),
                _ => ratio.measure.title().to_owned(),
            };
            ratios.iter().filter(|ratio| self.tone(ratio) == tone).map(|ratio| words(&ratio)).collect()
        };
        let parts: Vec<String> = [
            (Tone::Good, "better in"),
            (Tone::Bad, "worse in"),
            (Tone::Plain, "no measurable difference in"),
            (Tone::Doubtful, "not concluded:"),
        ]
        .into_iter()
        .filter_map(|(tone, words)| {
            let found = of(tone);
            (!found.is_empty()).then(|| format!("{words} {}", list(&found)))
        })
        .collect();
        let (good, bad) = (!of(Tone::Good).is_empty(), !of(Tone::Bad).is_empty());
        let (tone, word) = match (good, bad) {
            (true, false) => (Tone::Good, "better"),
            (false, true) => (Tone::Bad, "worse"),
            (true, true) => (Tone::Plain, "mixed"),
            (false, false) => (Tone::Doubtful, "open"),
        };
        let subject = self.subject().unwrap_or_default();
        Conclusion { tone, word: word.into(), text: format!("{subject} against {other}: {}.", parts.join("; ")) }
    }

    fn glance(&self) -> Section {
        let panels: Vec<Panel> = self.compared().map(|measure| self.panel(measure)).collect();
        let drawing = strips(&panels, COLUMNS, "every sample of every contestant, by measure");
        let caption =
            "Each point is one sample, the line is their median. Samples of all contestants were taken in turn.";
        Section {
            title: "Every sample".into(),
            says: String::new(),
            parts: vec![Part::Figure { drawings: vec![drawing], caption: caption.into() }],
        }
    }

    fn panel(&self, measure: Measure) -> Panel {
        let strip = |(colour, facts): (usize, &Facts)| {
            let values = self.samples_of(&facts.name).filter_map(|sample| measure.of(sample)).collect();
            Strip { name: facts.name.clone(), colour, values }
        };
        let log = matches!(measure, Measure::LatencyP50 | Measure::LatencyP99);
        let scale = if log { ", log scale" } else { "" };
        Panel {
            title: measure.title().trim().into(),
            note: format!("{}{scale}", side(measure.better())),
            log,
            strips: self.contestants().iter().enumerate().map(strip).collect(),
        }
    }

    fn samples_of<'s>(&'s self, contestant: &'s str) -> impl Iterator<Item = &'s Sample> {
        self.0.samples.iter().filter(move |sample| sample.contestant == contestant)
    }

    fn ratios(&self) -> Section {
        let subject = self.subject().unwrap_or("nobody");
        let mut parts = Vec::new();
        for (better, sides) in [(Better::Less, ("better", "worse")), (Better::More, ("worse", "better"))] {
            let groups: Vec<ForestGroup> = self
                .compared()
                .filter(|measure| measure.better() == better)
                .filter_map(|measure| self.group(measure))
                .collect();
            if !groups.is_empty() {
                let says = format!("ratios of {subject} to each other contestant, where {}", side(better));
                let drawing = Forest { says, sides, groups }.draw();
                let caption = format!("{subject} ÷ each other, where {}.", side(better));
                parts.push(Part::Figure { drawings: vec![drawing], caption });
            }
        }
        parts.push(Part::Grid(self.ratio_grid()));
        Section {
            title: "Ratios".into(),
            says: format!(
                "{subject} divided by each other contestant, within pairs of neighbouring samples. Large points are medians, bars hold them \
                 with 95 % confidence, faint points are single pairs; the grey shade is the control (something against itself), which \
                 no difference smaller than it can be told from; broken lines are targets."
            ),
            parts,
        }
    }

    fn group(&self, measure: Measure) -> Option<ForestGroup> {
        let row = |ratio: &Ratio| ForestRow {
            name: ratio.to.clone(),
            estimate: ratio.estimate,
            pairs: pairs(&self.0.samples, measure, &ratio.of, &ratio.to).iter().map(|(of, to)| of / to).collect(),
            tone: self.tone(ratio),
            bound: self.bound(ratio),
        };
        let ratios = self.0.analysis.ratios.iter().filter(|ratio| ratio.measure == measure);
        let rows: Vec<ForestRow> = ratios.map(row).collect();
        let control = self.control(measure).map(|control| control.estimate);
        (!rows.is_empty()).then(|| ForestGroup { title: measure.title().trim().into(), control, rows })
    }

    fn bound(&self, ratio: &Ratio) -> Option<f64> {
        let is_it =
            |sought: &&crate::analysis::Sought| sought.measure == ratio.measure && sought.peers.contains(&ratio.to);
        let (Bound::AtMost(limit) | Bound::AtLeast(limit)) = self.0.analysis.sought.iter().find(is_it)?.bound;
        Some(limit)
    }

    fn ratio_grid(&self) -> Grid {
        let others = self.others();
        let columns = others.iter().map(|other| Column::Figures((*other).to_owned()));
        let first = Column::Words(format!("{} ÷", self.subject().unwrap_or_default()));
        let control = Column::Figures(format!("({})", Table(self.0).control()));
        let row = |measure: Measure| {
            let find =
                |to: &&str| self.0.analysis.ratios.iter().find(|ratio| ratio.measure == measure && ratio.to == **to);
            let cell = |ratio: Option<&Ratio>| match ratio {
                Some(ratio) => Cell::toned(interval(ratio), self.tone(ratio)),
                None => Cell::new("–"),
            };
            let control = self.control(measure).map_or_else(
                || Cell::new("–"),
                |control| {
                    let tone = if control.estimate.includes(1.0) { Tone::Plain } else { Tone::Doubtful };
                    Cell::toned(interval(control), tone)
                },
            );
            [Cell::new(measure.title())]
                .into_iter()
                .chain(others.iter().map(|to| cell(find(to))))
                .chain([control])
                .collect()
        };
        Grid {
            columns: [first].into_iter().chain(columns).chain([control]).collect(),
            rows: self.compared().map(row).collect(),
        }
    }

    fn latencies(&self) -> Option<Section> {
        let curve = |(colour, facts): (usize, &Facts)| {
            let samples: Vec<&Sample> =
                self.samples_of(&facts.name).filter(|sample| sample.load == LoadKind::Open).collect();
            let at =
                |(share, of): Percentile| (share, samples.iter().map(|sample| of(&sample.latency_micros)).collect());
            (!samples.is_empty()).then(|| Curve {
                name: facts.name.clone(),
                colour,
                points: PERCENTILES.map(at).into(),
            })
        };
        let curves: Vec<Curve> = self.contestants().iter().enumerate().filter_map(curve).collect();
        if curves.is_empty() {
            return None;
        }
        let drawing = percentiles(&curves, "latency in microseconds by percentile, for each contestant");
        let caption = "Medians over all samples; the thin lines go from quartile to quartile of them.";
        Some(Section {
            title: "Latency".into(),
            says: "An open loop at one rate for all: requests are sent when they are due, whatever became of those before, and their \
                   latency counts from when they were due."
                .into(),
            parts: vec![Part::Figure { drawings: vec![drawing], caption: caption.into() }],
        })
    }

    fn throughput(&self) -> Option<Section> {
        let loads = [
            (LoadKind::KeepAlive, "requests/s", Measure::RequestsPerSecond, Measure::WholeCpuPerRequest),
            (LoadKind::Connections, "connections/s", Measure::ConnectionsPerSecond, Measure::WholeCpuPerConnection),
        ];
        let mut drawings = Vec::new();
        for (load, title, across, up) in loads {
            let cloud = |(colour, facts): (usize, &Facts)| {
                let point = |sample: &Sample| Some((across.of(sample)?, up.of(sample)?));
                let points: Vec<(f64, f64)> = self.samples_of(&facts.name).filter_map(point).collect();
                (!points.is_empty()).then(|| Cloud { name: facts.name.clone(), colour, points })
            };
            let clouds: Vec<Cloud> = self.contestants().iter().enumerate().filter_map(cloud).collect();
            if !clouds.is_empty() {
                let unit = if load == LoadKind::Connections { "CPU µs per connection" } else { "CPU µs per request" };
                drawings.push(scatter(&clouds, title, unit, &format!("{title} against {unit}, for each contestant")));
            }
        }
        let caption = "To the right and down is better. Small points are samples, large ones their medians.";
        (!drawings.is_empty()).then(|| Section {
            title: "Throughput against CPU".into(),
            says: "CPU time is that of contestant and shards together, so that those without a balancer can be shown beside the others."
                .into(),
            parts: vec![Part::Figure { drawings, caption: caption.into() }],
        })
    }

    /// The medians, what was measured once, and how many samples there are.
    fn figures(&self) -> Section {
        let analysis = &self.0.analysis;
        let contestants = self.contestants();
        let median = |measure: Measure, name: &str| {
            let of_it = |median: &&Median| median.measure == measure && median.contestant == name;
            analysis.medians.iter().find(of_it).map(|median| number(median.value))
        };
        let row = |title: &str, value: &dyn Fn(&str) -> Option<String>| -> Vec<Cell> {
            let cells = contestants.iter().map(|facts| Cell::new(value(&facts.name).unwrap_or_else(|| "–".into())));
            [Cell::new(title.trim())].into_iter().chain(cells).collect()
        };
        let mut rows: Vec<Vec<Cell>> =
            analysis.measures.iter().map(|measure| row(measure.title(), &|name| median(*measure, name))).collect();
        if !self.0.evidence.calls.is_empty() {
            let calls = |name: &str| self.0.evidence.calls.iter().find(|calls| calls.contestant == name);
            let of = |value: fn(&SystemCalls) -> f64| move |name: &str| Some(format!("{:.3}", value(calls(name)?)));
            rows.push(row("system calls/request", &of(SystemCalls::per_request)));
            rows.push(row("system calls/connection", &of(SystemCalls::per_connection)));
        }
        if !self.0.evidence.idle.is_empty() {
            let idle = |name: &str| self.0.evidence.idle.iter().find(|memory| memory.contestant == name);
            let own = |name: &str| idle(name)?.bytes_per_connection().map(number);
            let slab = |name: &str| idle(name).map(IdleMemory::slab_bytes_per_connection).map(number);
            rows.push(row("bytes/idle connection", &own));
            rows.push(row("kernel's bytes/idle connection, whole path", &slab));
        }
        let titles = contestants.iter().map(|facts| Column::Figures(facts.name.clone()));
        let columns = [Column::Words("medians".into())].into_iter().chain(titles).collect();
        Section {
            title: "Figures".into(),
            says: format!("Medians of {} samples in {} pairs.", self.0.samples.len(), self.0.header.settings.pairs),
            parts: vec![Part::Grid(Grid { columns, rows })],
        }
    }

    /// Noise and control.
    fn trust(&self) -> Section {
        let noise = &self.0.analysis.noise;
        let steal = format!(
            "Of the host's CPU time {:.1} % was stolen (above 1 % nothing is concluded), {:.1} % was used by others (above 5 %).",
            noise.stolen_share * 100.0,
            noise.foreign_share * 100.0
        );
        let off: Vec<&str> =
            self.compared().filter(|measure| !self.is_told_apart(*measure)).map(Measure::title).collect();
        let control = if off.is_empty() {
            format!("The control ({}) includes 1 in every measure.", self.control_words())
        } else {
            let (control, off) = (self.control_words(), list(&off));
            format!("The control ({control}) is not 1 in {off}: nothing is concluded about that.")
        };
        let failed: u64 = self.0.samples.iter().flat_map(|sample| sample.errors.values()).sum();
        let tone = |estimate: crate::stats::Estimate| if estimate.includes(1.0) { Tone::Plain } else { Tone::Doubtful };
        let rows = self.compared().filter_map(|measure| self.control(measure)).map(|control| ForestRow {
            name: control.measure.title().trim().into(),
            estimate: control.estimate,
            pairs: pairs(&self.0.samples, control.measure, &control.of, &control.to)
                .iter()
                .map(|(a, b)| a / b)
                .collect(),
            tone: tone(control.estimate),
            bound: None,
        });
        let groups = vec![ForestGroup { title: String::new(), control: None, rows: rows.collect() }];
        let drawing = Forest { says: "the control, by measure".into(), sides: ("less", "more"), groups }.draw();
        let caption = format!("The control: {}. Every bar should include 1.", self.control_words());
        Section {
            title: "Can this run tell?".into(),
            says: String::new(),
            parts: vec![
                Part::List(vec![steal, control, format!("{failed} requests failed.")]),
                Part::Figure { drawings: vec![drawing], caption },
            ],
        }
    }

    fn control_words(&self) -> String {
        self.0.analysis.control.first().map_or_else(|| "none".into(), |ratio| format!("{} ÷ {}", ratio.of, ratio.to))
    }
}

fn side(better: Better) -> &'static str {
    match better {
        Better::Less => "less is better",
        Better::More => "more is better",
    }
}

/// `−20 %`, or from twice on `× 2.1`.
fn percent(ratio: f64) -> String {
    if !(0.5..2.0).contains(&ratio) {
        return format!("× {ratio:.2}");
    }
    format!("{:+.0} %", (ratio - 1.0) * 100.0).replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{self, AWKWARD, Plan};

    #[test]
    fn percents_are_signed() {
        for (ratio, expected) in [(0.8, "−20 %"), (1.22, "+22 %"), (2.5, "× 2.50"), (0.4, "× 0.40")] {
            assert_eq!(percent(ratio), expected);
        }
    }

    #[test]
    fn what_is_better_is_said_and_what_is_not_told_apart_is_not() {
        let report = testing::report();
        let sentence = View(&report).against(AWKWARD);
        assert!(sentence.tone == Tone::Good && sentence.text.contains("CPU µs/request −20 %"), "{}", sentence.text);
        let mut off = report.clone();
        for control in &mut off.analysis.control {
            control.estimate.low = 1.01;
            control.estimate.high = 1.02;
        }
        let sentence = View(&off).against(AWKWARD);
        assert!(sentence.tone == Tone::Doubtful && sentence.text.contains("not concluded"), "{}", sentence.text);
    }

    #[test]
    fn a_noisy_run_warns_and_concludes_nothing() {
        let noisy = testing::planned(&Plan { factor: 1.0, foreign_share: 0.3, blocks: 8, seed: 1 });
        let page = page(&noisy);
        assert!(page.warning.is_some_and(|warning| warning.starts_with("Too noisy")));
        assert!(page.conclusions.iter().skip(1).all(|conclusion| conclusion.tone == Tone::Doubtful));
    }
}
