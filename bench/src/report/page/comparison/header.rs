//! What a comparison was run with and on, as shown; also what trials have of it.

use super::super::{Cell, Column, Grid, Part, Section};
use crate::{
    contestant::Facts,
    measure::{HostFacts, cpus},
    report::{Header, Missing, Origin, Settings},
};

const GIBIBYTE: f64 = (1_u64 << 30) as f64;

/// When, where and of what, in one line.
pub(super) fn provenance(header: &Header) -> String {
    line(&header.started, header.took_seconds, &header.origin, &header.host)
}

/// The same for whatever has these.
pub(in crate::report::page) fn line(started: &str, took_seconds: f64, origin: &Origin, host: &HostFacts) -> String {
    let commit = origin.commit.as_deref().unwrap_or("unknown");
    let (cpus, took) = (host.cpus.len(), took_seconds.round());
    format!("{started}, {took} s · {}, {}, {cpus} × {} · commit {commit}", host.name, host.kernel, host.cpu)
}

pub(super) fn section(header: &Header) -> Section {
    let mut parts = vec![command(&header.origin), Part::Grid(contestants(&header.contestants, &header.missing))];
    parts.push(Part::List(
        [settings(&header.settings), host(&header.host)].into_iter().chain(header.remarks.clone()).collect(),
    ));
    parts.extend(configurations(&header.contestants));
    Section { title: "How it was run".into(), says: String::new(), parts }
}

pub(in crate::report::page) fn command(origin: &Origin) -> Part {
    Part::Verbatim { title: "Command".into(), text: origin.command_line.clone(), open: true }
}

pub(in crate::report::page) fn contestants(contestants: &[Facts], missing: &[Missing]) -> Grid {
    let program = |facts: &Facts| facts.program.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    let there = contestants.iter().map(|facts| [facts.name.clone(), facts.version.clone(), program(facts)]);
    let others = missing.iter().map(|missing| [missing.name.clone(), "missing".into(), missing.why.clone()]);
    Grid {
        columns: ["contestant", "version", "program"].map(|title| Column::Words(title.into())).into(),
        rows: there.chain(others).map(|words| words.map(Cell::new).into()).collect(),
    }
}

pub(in crate::report::page) fn configurations(contestants: &[Facts]) -> impl Iterator<Item = Part> {
    contestants.iter().filter(|facts| !facts.configuration.trim().is_empty()).map(|facts| Part::Verbatim {
        title: format!("Configuration of {}", facts.name),
        text: facts.configuration.clone(),
        open: false,
    })
}

pub(in crate::report::page) fn host(host: &HostFacts) -> String {
    let memory = host.memory_bytes as f64 / GIBIBYTE;
    let smt = host.smt.as_deref().unwrap_or("unknown");
    let mut governors: Vec<&str> = host.governors.values().map(String::as_str).collect();
    governors.sort_unstable();
    governors.dedup();
    let governors = if governors.is_empty() { "unknown".into() } else { governors.join(", ") };
    format!(
        "The host has {} CPUs online, {memory:.1} GiB of memory, SMT {smt}, frequency governor {governors}.",
        host.online
    )
}

fn settings(settings: &Settings) -> String {
    let bulk = settings.bulk.map(|bulk| format!(", of {} bytes on {}", bulk.answer_bytes, bulk.connections));
    format!(
        "{} pairs of {} s after {} s of warm-up; contestants and shards on CPUs {}, load on {}; answers of {} bytes on {} \
         connections{}; open loop at {} of the slowest one's maximum; seed {}.",
        settings.pairs,
        settings.duration_seconds,
        settings.warm_up_seconds,
        cpus::list(&settings.cpus),
        cpus::list(&settings.load_cpus),
        settings.answer_bytes,
        settings.connections,
        bulk.unwrap_or_default(),
        settings.open_share,
        settings.seed,
    )
}
