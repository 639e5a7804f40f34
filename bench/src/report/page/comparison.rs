//! What is shown of a comparison: what it says first, then the ratios, every sample, and what it stands on.

pub(in crate::report) use self::pictures::main_figure;
use super::{Cell, Column, Grid, Page, Part, Section, about, count, list, verdicts};
use crate::{
    analysis::{Median, Ratio, pairs},
    contestant::Facts,
    report::{
        Report,
        plot::{Forest, ForestGroup, ForestRow, Tone},
        table::{Table, interval, number},
    },
    sample::{Better, IdleMemory, Measure, Sample, SystemCalls},
};

pub(super) mod header;
mod pictures;
mod sentences;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{self, Plan};

    #[test]
    fn a_noisy_run_warns_and_concludes_nothing() {
        let noisy = testing::planned(&Plan { factor: 1.0, foreign_share: 0.3, blocks: 8, seed: 1 });
        let page = page(&noisy);
        assert!(page.warning.is_some_and(|warning| warning.starts_with("Too noisy")));
        assert!(page.conclusions.iter().skip(1).all(|conclusion| conclusion.tone == Tone::Doubtful));
    }
}
