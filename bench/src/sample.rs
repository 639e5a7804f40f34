//! One measurement and what can be told from it; plain values, and the arithmetic from counters to measures.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::measure::BpfTime;

/// The loads of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadKind {
    /// Closed loop, kept connections, small answers.
    KeepAlive,
    /// Closed loop, a connection for each request.
    Connections,
    /// Closed loop, kept connections, large answers.
    Bulk,
    /// Open loop at one rate for all contestants.
    Open,
    /// Closed loop, kept connections, raw bytes there and back.
    Echo,
    /// Connections with bytes both ways without a pause, each byte checked.
    Streams,
    /// A command of somebody's, which tells a number.
    Command,
}

/// A word is no load's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no load {word:?}: choose from {}", LoadKind::ALL.map(LoadKind::word).join(", "))]
pub struct LoadKindError {
    word: String,
}

impl FromStr for LoadKind {
    type Err = LoadKindError;

    fn from_str(word: &str) -> Result<Self, LoadKindError> {
        Self::ALL.into_iter().find(|kind| kind.word() == word).ok_or_else(|| LoadKindError { word: word.to_owned() })
    }
}

impl LoadKind {
    /// All.
    pub const ALL: [Self; 6] = [Self::KeepAlive, Self::Connections, Self::Bulk, Self::Open, Self::Echo, Self::Streams];

    /// Its name on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            other => other.name(),
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::Connections => "connections",
            Self::Bulk => "bulk",
            Self::Open => "open loop",
            Self::Echo => "echo",
            Self::Streams => "streams",
            Self::Command => "command",
        }
    }
}

/// One load on one contestant once.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Sample {
    /// Which.
    pub load: LoadKind,
    /// On whom; the control has a name of its own.
    pub contestant: String,
    /// Samples of one block are near each other in time and make pairs.
    pub block: usize,
    /// How long the window was.
    pub seconds: f64,
    /// Answered requests.
    pub requests: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// Failed requests by cause.
    pub errors: BTreeMap<String, u64>,
    /// CPU time of the balancer's processes; none where there is no balancer.
    pub balancer_cpu_seconds: Option<f64>,
    /// CPU time of the shards.
    pub shard_cpu_seconds: f64,
    /// Context switches of all threads of balancer and shards; none in samples of before they were counted.
    pub context_switches: Option<u64>,
    /// CPU time of the load generator.
    pub load_cpu_seconds: f64,
    /// CPU time of everything on the host.
    pub host_cpu_seconds: f64,
    /// CPU time the hypervisor gave to others.
    pub stolen_seconds: f64,
    /// Latencies in microseconds, by percentile.
    pub latency_micros: Latency,
    /// What a command told; none under a load of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

/// Latencies in microseconds. From when a request was due, in an open loop; from when it was sent, in a closed one.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Latency {
    /// Half are below.
    pub p50: f64,
    /// 90 % are below.
    pub p90: f64,
    /// 99 % are below.
    pub p99: f64,
    /// 99.9 % are below.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// Memory that idle connections cost.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct IdleMemory {
    /// Whose.
    pub contestant: String,
    /// How many connections.
    pub connections: usize,
    /// Proportional set size of the balancer before; none where there is no balancer.
    pub pss_before_bytes: Option<u64>,
    /// And with them open.
    pub pss_after_bytes: Option<u64>,
    /// The kernel's slab memory, whole host, before: sockets of the client and the shards are in it as well.
    pub slab_before_bytes: u64,
    /// And with them open.
    pub slab_after_bytes: u64,
}

impl IdleMemory {
    /// The balancer's own memory for one connection.
    pub fn bytes_per_connection(&self) -> Option<f64> {
        let (before, after) = (self.pss_before_bytes?, self.pss_after_bytes?);
        Some(after.saturating_sub(before) as f64 / self.connections as f64)
    }

    /// The kernel's memory for one connection, from client to shard.
    pub fn slab_bytes_per_connection(&self) -> f64 {
        self.slab_after_bytes.saturating_sub(self.slab_before_bytes) as f64 / self.connections as f64
    }
}

/// System calls of a contestant's shards, counted while nothing else was measured.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct SystemCalls {
    /// Whose.
    pub contestant: String,
    /// How many requests were sent, one after the other on one connection, and how many connections made.
    pub repetitions: u64,
    /// By name, over all requests.
    pub of_requests: BTreeMap<String, u64>,
    /// By name, over all connections with one request each.
    pub of_connections: BTreeMap<String, u64>,
}

impl SystemCalls {
    /// For one request.
    pub fn per_request(&self) -> f64 {
        self.of_requests.values().sum::<u64>() as f64 / self.repetitions as f64
    }

    /// For one connection with one request.
    pub fn per_connection(&self) -> f64 {
        self.of_connections.values().sum::<u64>() as f64 / self.repetitions as f64
    }
}

/// What a contestant's eBPF programs ran for, counted while nothing else was measured.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct BpfRuns {
    /// Whose.
    pub contestant: String,
    /// Under kept connections.
    pub of_requests: BpfLoad,
    /// Under a connection for each request.
    pub of_connections: BpfLoad,
}

/// What programs ran for under one load.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct BpfLoad {
    /// Answered requests.
    pub requests: u64,
    /// By the program's name.
    pub programs: BTreeMap<String, BpfTime>,
}

impl BpfLoad {
    /// Of all programs for one request; none where nothing was answered.
    pub fn nanos_per_request(&self) -> Option<f64> {
        let nanos: u64 = self.programs.values().map(|time| time.nanos).sum();
        (self.requests > 0).then(|| nanos as f64 / self.requests as f64)
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Microseconds of the balancer's CPU per request, at the maximum.
    CpuPerRequest,
    /// The maximum.
    RequestsPerSecond,
    /// Microseconds of the balancer's CPU per connection with one request.
    CpuPerConnection,
    /// The maximum.
    ConnectionsPerSecond,
    /// Seconds of the balancer's CPU per 10^9 bytes.
    CpuPerGigabyte,
    /// The maximum.
    GigabytesPerSecond,
    /// Microseconds of the balancer's CPU per request, at a rate all can bear.
    CpuPerRequestAtRate,
    /// Microseconds of CPU per request of balancer and shards together, at the maximum.
    WholeCpuPerRequest,
    /// Microseconds of CPU per connection with one request, of balancer and shards together.
    WholeCpuPerConnection,
    /// Seconds of CPU per 10^9 bytes, of balancer and shards together.
    WholeCpuPerGigabyte,
    /// Microseconds of CPU per request of balancer and shards together, at a rate all can bear.
    WholeCpuPerRequestAtRate,
    /// Context switches per request, of balancer and shards together, at the maximum.
    SwitchesPerRequest,
    /// Context switches per connection with one request, of balancer and shards together.
    SwitchesPerConnection,
    /// Percent of one CPU that the balancer uses while requests are at their maximum.
    BalancerShare,
    /// Percent of one CPU that the balancer uses while connections are at their maximum.
    BalancerShareOfConnections,
    /// Microseconds of the balancer's CPU per exchange of raw bytes.
    CpuPerEcho,
    /// The maximum.
    EchoesPerSecond,
    /// Seconds of the balancer's CPU per 10^9 bytes that went both ways.
    CpuPerStreamGigabyte,
    /// The maximum, one way.
    StreamGigabytesPerSecond,
    /// Microseconds, at that rate.
    LatencyP50,
    /// Microseconds, at that rate.
    LatencyP99,
    /// What somebody's command tells.
    Score,
}

/// Which side of 1 is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// As with costs and times.
    Less,
    /// As with rates.
    More,
}

impl Measure {
    /// The load it is measured under.
    pub fn load(self) -> LoadKind {
        match self {
            Self::CpuPerRequest
            | Self::RequestsPerSecond
            | Self::WholeCpuPerRequest
            | Self::SwitchesPerRequest
            | Self::BalancerShare => LoadKind::KeepAlive,
            Self::CpuPerConnection
            | Self::ConnectionsPerSecond
            | Self::WholeCpuPerConnection
            | Self::SwitchesPerConnection
            | Self::BalancerShareOfConnections => LoadKind::Connections,
            Self::CpuPerGigabyte | Self::WholeCpuPerGigabyte | Self::GigabytesPerSecond => LoadKind::Bulk,
            Self::CpuPerRequestAtRate | Self::WholeCpuPerRequestAtRate | Self::LatencyP50 | Self::LatencyP99 => {
                LoadKind::Open
            }
            Self::CpuPerEcho | Self::EchoesPerSecond => LoadKind::Echo,
            Self::CpuPerStreamGigabyte | Self::StreamGigabytesPerSecond => LoadKind::Streams,
            Self::Score => LoadKind::Command,
        }
    }

    /// Its name and unit in tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::CpuPerRequest => "CPU µs/request",
            Self::RequestsPerSecond => "requests/s",
            Self::CpuPerConnection => "CPU µs/connection",
            Self::ConnectionsPerSecond => "connections/s",
            Self::CpuPerGigabyte => "CPU s/GB",
            Self::GigabytesPerSecond => "GB/s",
            Self::CpuPerRequestAtRate => "CPU µs/request at rate",
            Self::WholeCpuPerRequest => "all CPU µs/request",
            Self::WholeCpuPerConnection => "all CPU µs/connection",
            Self::WholeCpuPerGigabyte => "all CPU s/GB",
            Self::WholeCpuPerRequestAtRate => "all CPU µs/req. at rate",
            Self::SwitchesPerRequest => "switches/request",
            Self::SwitchesPerConnection => "switches/connection",
            Self::BalancerShare => "balancer's % of a CPU",
            Self::BalancerShareOfConnections => "  while connecting",
            Self::CpuPerEcho => "CPU µs/echo",
            Self::EchoesPerSecond => "echoes/s",
            Self::CpuPerStreamGigabyte => "CPU s/GB of streams",
            Self::StreamGigabytesPerSecond => "GB/s of streams",
            Self::LatencyP50 => "p50 µs at rate",
            Self::LatencyP99 => "p99 µs at rate",
            Self::Score => "score",
        }
    }

    /// Which way it is to go.
    pub fn better(self) -> Better {
        match self {
            Self::RequestsPerSecond
            | Self::ConnectionsPerSecond
            | Self::GigabytesPerSecond
            | Self::EchoesPerSecond
            | Self::StreamGigabytesPerSecond
            // What a command says unless somebody says otherwise.
            | Self::Score => Better::More,
            Self::CpuPerRequest
            | Self::CpuPerConnection
            | Self::CpuPerGigabyte
            | Self::CpuPerRequestAtRate
            | Self::CpuPerEcho
            | Self::CpuPerStreamGigabyte
            | Self::WholeCpuPerRequest
            | Self::WholeCpuPerConnection
            | Self::WholeCpuPerGigabyte
            | Self::WholeCpuPerRequestAtRate
            | Self::SwitchesPerRequest
            | Self::SwitchesPerConnection
            | Self::BalancerShare
            | Self::BalancerShareOfConnections
            | Self::LatencyP50
            | Self::LatencyP99 => Better::Less,
        }
    }

    /// Whether ratios of it say something; else it is told for itself.
    pub fn is_compared(self) -> bool {
        !matches!(self, Self::BalancerShare | Self::BalancerShareOfConnections)
    }

    /// Its value in `sample`; None when the sample is of another load, or has no balancer, or nothing was answered.
    pub fn of(self, sample: &Sample) -> Option<f64> {
        const GIGABYTE: f64 = 1e9;
        if self == Self::Score {
            return sample.score;
        }
        if sample.load != self.load() || sample.requests == 0 {
            return None;
        }
        let requests = sample.requests as f64;
        let gigabytes = sample.body_bytes as f64 / GIGABYTE;
        let cpu_micros = sample.balancer_cpu_seconds.map(|seconds| seconds * 1e6);
        let whole_cpu_seconds = sample.balancer_cpu_seconds.unwrap_or(0.0) + sample.shard_cpu_seconds;
        match self {
            Self::CpuPerRequest | Self::CpuPerConnection | Self::CpuPerRequestAtRate | Self::CpuPerEcho => {
                Some(cpu_micros? / requests)
            }
            Self::RequestsPerSecond | Self::ConnectionsPerSecond | Self::EchoesPerSecond => {
                Some(requests / sample.seconds)
            }
            Self::WholeCpuPerRequest | Self::WholeCpuPerConnection | Self::WholeCpuPerRequestAtRate => {
                Some(whole_cpu_seconds * 1e6 / requests)
            }
            Self::WholeCpuPerGigabyte => Some(whole_cpu_seconds / gigabytes),
            Self::SwitchesPerRequest | Self::SwitchesPerConnection => Some(sample.context_switches? as f64 / requests),
            Self::BalancerShare | Self::BalancerShareOfConnections => {
                Some(sample.balancer_cpu_seconds? / sample.seconds * 100.0)
            }
            Self::CpuPerGigabyte | Self::CpuPerStreamGigabyte => Some(sample.balancer_cpu_seconds? / gigabytes),
            Self::GigabytesPerSecond | Self::StreamGigabytesPerSecond => Some(gigabytes / sample.seconds),
            Self::LatencyP50 => Some(sample.latency_micros.p50),
            Self::LatencyP99 => Some(sample.latency_micros.p99),
            Self::Score => None,
        }
    }
}

impl Sample {
    /// The share of the host's CPU time that neither contestant nor shards nor load account for. /proc/stat counts in
    /// steps of 10 ms, so one short sample says little; the median of many does.
    pub fn foreign_share(&self, host_cpus: usize) -> f64 {
        let ours = self.balancer_cpu_seconds.unwrap_or(0.0) + self.shard_cpu_seconds + self.load_cpu_seconds;
        (self.host_cpu_seconds - ours) / (self.seconds * host_cpus as f64)
    }

    /// The share of the host's CPU time that was stolen.
    pub fn stolen_share(&self, host_cpus: usize) -> f64 {
        self.stolen_seconds / (self.seconds * host_cpus as f64)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(load: LoadKind, contestant: &str, block: usize) -> Sample {
        Sample {
            load,
            contestant: contestant.into(),
            block,
            seconds: 2.0,
            requests: 1000,
            body_bytes: 4_000_000_000,
            errors: BTreeMap::new(),
            balancer_cpu_seconds: Some(0.5),
            shard_cpu_seconds: 0.5,
            context_switches: Some(3000),
            load_cpu_seconds: 1.0,
            host_cpu_seconds: 2.2,
            stolen_seconds: 0.04,
            latency_micros: Latency { p50: 10.0, p90: 20.0, p99: 30.0, p999: 40.0, max: 50.0 },
            score: None,
        }
    }

    #[test]
    fn measures_by_hand() {
        for (measure, expected) in [
            (Measure::CpuPerRequest, 500.0),
            (Measure::RequestsPerSecond, 500.0),
            (Measure::CpuPerConnection, 500.0),
            (Measure::CpuPerGigabyte, 0.125),
            (Measure::GigabytesPerSecond, 2.0),
            (Measure::CpuPerEcho, 500.0),
            (Measure::StreamGigabytesPerSecond, 2.0),
            (Measure::LatencyP99, 30.0),
            (Measure::WholeCpuPerRequest, 1000.0),
            (Measure::WholeCpuPerGigabyte, 0.25),
            (Measure::WholeCpuPerRequestAtRate, 1000.0),
            (Measure::SwitchesPerConnection, 3.0),
            (Measure::BalancerShareOfConnections, 25.0),
        ] {
            assert_eq!(measure.of(&sample(measure.load(), "a", 0)), Some(expected), "{measure:?}");
        }
    }

    #[test]
    fn no_value_where_there_is_none() {
        let direct = Sample { balancer_cpu_seconds: None, ..sample(LoadKind::KeepAlive, "direct", 0) };
        assert_eq!(Measure::CpuPerRequest.of(&direct), None);
        assert_eq!(Measure::BalancerShare.of(&direct), None);
        assert_eq!(Measure::WholeCpuPerRequest.of(&direct), Some(500.0), "the shards' alone");
        assert_eq!(Measure::LatencyP50.of(&direct), None, "another load");
        assert_eq!(Measure::RequestsPerSecond.of(&Sample { requests: 0, ..direct }), None);
    }

    #[test]
    fn words_lead_back_to_their_load() {
        for kind in LoadKind::ALL {
            assert_eq!(kind.word().parse(), Ok(kind));
        }
        assert!("closed".parse::<LoadKind>().is_err());
    }

    #[test]
    fn shares_of_the_host() {
        let sample = sample(LoadKind::Open, "a", 0);
        assert!((sample.foreign_share(2) - 0.05).abs() < 1e-9 && (sample.stolen_share(2) - 0.01).abs() < 1e-9);
    }
}
