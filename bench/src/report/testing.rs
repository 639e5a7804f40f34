//! Reports made up for tests: every kind of content, and names that would break a page which doesn't escape them.

use std::collections::BTreeMap;

use super::{Bulk, Findings, Header, Missing, Origin, Report, Series, Settings, Timeline};
use crate::{
    analysis::{Bound, Cast, Evidence, Target, Verdict, VerdictWord, analyse},
    contestant::Facts,
    measure::HostFacts,
    sample::{IdleMemory, Latency, LoadKind, Measure, Sample, SystemCalls},
    stats::Random,
};

/// A contestant's name with everything in it that HTML, SVG and Markdown read as something else.
pub(crate) const AWKWARD: &str = "a<b>&\"c\"|d";

/// What the samples of a made-up comparison are drawn from.
pub(crate) struct Plan {
    /// How much dearer `sherd` is than it would be.
    pub(crate) factor: f64,
    /// How much of the host's CPU time others use.
    pub(crate) foreign_share: f64,
    pub(crate) blocks: usize,
    pub(crate) seed: u64,
}

/// A comparison in which `sherd` costs 80 % of the others.
pub(crate) fn report() -> Report {
    planned(&Plan { factor: 1.0, foreign_share: 0.0, blocks: 8, seed: 1 })
}

pub(crate) fn planned(plan: &Plan) -> Report {
    let names = ["sherd", AWKWARD, "direct"].map(str::to_owned);
    let samples = samples(plan);
    let measures = [Measure::CpuPerRequest, Measure::RequestsPerSecond, Measure::LatencyP99];
    let cast = Cast { subject: "sherd", control: ("sherd", "sherd again"), contestants: &names, measures: &measures };
    let targets = [
        Target::Peers { measure: Measure::CpuPerRequest, peers: &[AWKWARD], bound: Bound::AtMost(0.9) },
        Target::Peers { measure: Measure::RequestsPerSecond, peers: &[AWKWARD], bound: Bound::AtLeast(2.0) },
        Target::IdleBytes { at_most: 2048.0 },
        Target::NoMoreCalls { than: AWKWARD },
    ];
    let evidence = Evidence {
        idle: vec![IdleMemory {
            contestant: "sherd".into(),
            connections: 100,
            pss_before_bytes: Some(1000),
            pss_after_bytes: Some(13_345),
            slab_before_bytes: 0,
            slab_after_bytes: 123_400,
        }],
        calls: [("sherd", 1000), (AWKWARD, 2003)]
            .map(|(name, count)| SystemCalls {
                contestant: name.into(),
                repetitions: 1000,
                of_requests: [("read".to_owned(), count)].into(),
                of_connections: [("accept4".to_owned(), count)].into(),
            })
            .into(),
        bpf: Vec::new(),
    };
    let analysis = analyse(cast, &samples, &evidence, &targets, 2, 1);
    Report { scenario: "relay".into(), header: header(&names, plan), analysis, evidence, samples }
}

/// A trial with one target of each answer.
pub(crate) fn findings() -> Findings {
    let verdict = |target: &str, found: &str, word, because: Option<&str>| Verdict {
        target: target.into(),
        found: found.into(),
        word,
        because: because.map(str::to_owned),
    };
    Findings {
        scenario: "failover".into(),
        origin: origin(),
        started: "2026-11-22T12:34:56Z".into(),
        took_seconds: 61.0,
        host: host(),
        contestants: vec![facts("sherd-direct")],
        series: vec![
            Series::new("ms from <kill> to the last", vec![0.25, 1.75, 0.5]),
            Series::new("none & nothing", vec![]),
        ],
        timelines: vec![Timeline {
            title: "connections that failed <after>".into(),
            unit: "per ms".into(),
            points: (-5..10).map(|ms| (f64::from(ms) / 1000.0, f64::from((ms == 0) as u8) * 12.5)).collect(),
            marks: vec![(0.0, "kill(2) & co".into())],
        }],
        remarks: vec!["half load is <9000> connections/s".into()],
        verdicts: vec![
            verdict("ms to the last ≤ 1", "0.250", VerdictWord::Held, None),
            verdict("connections that fail ≤ 0", "3.000", VerdictWord::NotHeld, None),
            verdict("ms out ≤ 100", "120.5", VerdictWord::Undecided, Some("others used 9 % of the CPU time")),
        ],
    }
}

/// Each contestant twice in each block, sherd under its second name too.
fn samples(plan: &Plan) -> Vec<Sample> {
    let mut random = Random::new(plan.seed);
    let mut samples = Vec::new();
    for block in 0..plan.blocks {
        for load in [LoadKind::KeepAlive, LoadKind::Open] {
            for name in ["sherd", "sherd again", AWKWARD, "direct", "direct", AWKWARD, "sherd again", "sherd"] {
                let noise = 1.0 + 0.01 * (2.0 * random.unit() - 1.0);
                let cost = noise * if name.starts_with("sherd") { 0.8 * plan.factor } else { 1.0 };
                samples.push(sample(load, name, block, cost, plan.foreign_share));
            }
        }
    }
    samples
}

fn sample(load: LoadKind, name: &str, block: usize, cost: f64, foreign_share: f64) -> Sample {
    let requests = if load == LoadKind::Open { 5000.0 } else { 10_000.0 / cost };
    let cpu = 20e-6 * cost * requests;
    let used = 0.2 + 0.2 + cpu;
    Sample {
        load,
        contestant: name.into(),
        block,
        seconds: 0.5,
        requests: requests as u64,
        body_bytes: requests as u64 * 128,
        errors: BTreeMap::new(),
        balancer_cpu_seconds: (name != "direct").then_some(cpu),
        shard_cpu_seconds: 0.2,
        load_cpu_seconds: 0.2,
        host_cpu_seconds: if name == "direct" { used - cpu } else { used } + foreign_share,
        stolen_seconds: 0.0,
        context_switches: None,
        score: None,
        latency_micros: Latency { p50: 100.0 * cost, p90: 200.0 * cost, p99: 500.0 * cost, p999: 2000.0, max: 9000.0 },
    }
}

fn header(names: &[String; 3], plan: &Plan) -> Header {
    let settings = Settings {
        pairs: plan.blocks,
        duration_seconds: 0.5,
        warm_up_seconds: 0.1,
        connections: 64,
        answer_bytes: 128,
        bulk: Some(Bulk { connections: 16, answer_bytes: 1 << 20 }),
        open_share: 0.5,
        idle_connections: 100,
        seed: 1,
        cpus: vec![0, 1],
        load_cpus: vec![0, 1],
    };
    Header {
        origin: origin(),
        started: "2026-11-22T12:34:56Z".into(),
        took_seconds: 42.0,
        host: host(),
        settings,
        contestants: names.iter().map(|name| facts(name)).collect(),
        missing: vec![Missing { name: "nginx".into(), why: "there is no <nginx>".into() }],
        remarks: vec!["the open loop's rate is 24426 requests/s".into()],
    }
}

fn origin() -> Origin {
    Origin { command_line: "sherd-bench relay --note '<&>'".into(), commit: Some("0123456789ab".into()) }
}

fn facts(name: &str) -> Facts {
    Facts { name: name.into(), version: "1.2.3".into(), program: None, configuration: "a < b && c".into() }
}

fn host() -> HostFacts {
    HostFacts {
        name: "vm".into(),
        kernel: "Linux 6.18".into(),
        cpu: "A <CPU>".into(),
        cpus: vec![0, 1],
        online: 2,
        memory_bytes: 1 << 34,
        governors: [(10, "performance".to_owned()), (9, "schedutil".to_owned())].into(),
        smt: None,
    }
}
