//! The pictures of a comparison: every sample, ratios, latencies by percentile, throughput against CPU.

use super::{View, side};
use crate::{
    analysis::{Bound, Ratio, Sought, pairs},
    contestant::Facts,
    report::{
        Report,
        page::{Part, Section},
        plot::{Cloud, Curve, Drawing, ForestGroup, ForestRow, Panel, Strip, percentiles, scatter, strips},
    },
    sample::{Latency, LoadKind, Measure, Sample},
};

/// At which shares samples have latencies.
type Percentile = (f64, fn(&Latency) -> f64);
const PERCENTILES: [Percentile; 4] =
    [(0.5, |found| found.p50), (0.9, |found| found.p90), (0.99, |found| found.p99), (0.999, |found| found.p999)];
const COLUMNS: usize = 3;

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

impl View<'_> {
    pub(super) fn glance(&self) -> Section {
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

    pub(super) fn group(&self, measure: Measure) -> Option<ForestGroup> {
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
        let is_it = |sought: &&Sought| sought.measure == ratio.measure && sought.peers.contains(&ratio.to);
        let (Bound::AtMost(limit) | Bound::AtLeast(limit)) = self.0.analysis.sought.iter().find(is_it)?.bound;
        Some(limit)
    }

    pub(super) fn latencies(&self) -> Option<Section> {
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

    pub(super) fn throughput(&self) -> Option<Section> {
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
}
