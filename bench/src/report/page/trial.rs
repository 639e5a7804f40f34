//! What is shown of a trial: whether its targets hold, what happened when, and every figure.

use super::{Cell, Column, Conclusion, Grid, Page, Part, Section, about, comparison::header, count, title, tone};
use crate::{
    analysis::Verdict,
    report::{
        Findings, Series,
        plot::{sparkline, timeline},
        table::number,
    },
    stats::quantile,
};

const SHARES: [(&str, f64); 4] = [("min", 0.0), ("p50", 0.5), ("p99", 0.99), ("max", 1.0)];

/// All of it.
pub(in crate::report) fn page(findings: &Findings) -> Page {
    let mut sections = Vec::new();
    sections.extend(timelines(findings));
    sections.push(figures(&findings.series));
    sections.push(conditions(findings));
    Page {
        kicker: format!("sherd-bench {}", findings.scenario),
        title: title(&findings.scenario).into(),
        about: about(&findings.scenario).into(),
        provenance: header::line(&findings.started, findings.took_seconds, &findings.origin, &findings.host),
        warning: None,
        conclusions: count(&findings.verdicts).into_iter().chain(findings.verdicts.iter().map(sentence)).collect(),
        sections,
    }
}

fn sentence(verdict: &Verdict) -> Conclusion {
    let because = verdict.because.as_deref().map(|because| format!(", because {because}")).unwrap_or_default();
    let found = if verdict.found.is_empty() { String::new() } else { format!(": {}", verdict.found) };
    Conclusion {
        tone: tone(verdict.word),
        word: verdict.word.to_string(),
        text: format!("{}{found}{because}.", verdict.target),
    }
}

fn timelines(findings: &Findings) -> Option<Section> {
    let figure =
        |line: &crate::report::Timeline| Part::Figure { drawings: vec![timeline(line)], caption: String::new() };
    let parts: Vec<Part> = findings.timelines.iter().map(figure).collect();
    (!parts.is_empty()).then(|| Section { title: "What happened when".into(), says: String::new(), parts })
}

fn figures(series: &[Series]) -> Section {
    let row = |series: &Series| {
        let value = |share: f64| quantile(&series.samples, share).map_or_else(|| "–".into(), number);
        let picture = Cell { picture: Some(sparkline(&series.samples, &series.title)), ..Cell::default() };
        [Cell::new(series.title.trim()), Cell::new(series.samples.len().to_string())]
            .into_iter()
            .chain(SHARES.map(|(_, share)| Cell::new(value(share))))
            .chain([picture])
            .collect()
    };
    let figures =
        ["count"].into_iter().chain(SHARES.map(|(title, _)| title)).map(|title| Column::Figures(title.into()));
    let columns = [Column::Words("figure".into())]
        .into_iter()
        .chain(figures)
        .chain([Column::Words("every one".into())])
        .collect();
    Section {
        title: "Figures".into(),
        says: "On the right each figure is a point, from 0 or the least to the most; the line is the median.".into(),
        parts: vec![Part::Grid(Grid { columns, rows: series.iter().map(row).collect() })],
    }
}

fn conditions(findings: &Findings) -> Section {
    let mut parts =
        vec![header::command(&findings.origin), Part::Grid(header::contestants(&findings.contestants, &[]))];
    parts.push(Part::List([header::host(&findings.host)].into_iter().chain(findings.remarks.clone()).collect()));
    parts.extend(header::configurations(&findings.contestants));
    Section { title: "How it was run".into(), says: String::new(), parts }
}
