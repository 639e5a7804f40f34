//! What a worker counts. Only the worker writes, everyone may read; the counters share no cache line with anything
//! another core writes.

use std::{
    collections::BTreeMap,
    fmt,
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A number with one writer: no locked instruction on the hot path, a load and a store.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(super) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
}

/// Why something went wrong, or a connection ended other than by both sides finishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The shard's address refused the connection.
    ConnectRefused,
    /// The shard's address did not answer within [`connect_timeout`](super::Limits::connect_timeout).
    ConnectTimeout,
    /// Connecting failed otherwise: no route, no source port left.
    ConnectFailed,
    /// A client waited longer than [`pending_timeout`](super::Limits::pending_timeout), and was reset.
    PendingTimeout,
    /// No port of the backend, or no room: a handed-over connection that had to be reset.
    Undeliverable,
    /// The client reset its connection, or was found dead by keepalive.
    ResetByClient,
    /// The shard reset the connection, or was found dead by keepalive.
    ResetByShard,
    /// Nothing was sent either way for [`idle_timeout`](super::Limits::idle_timeout).
    IdleTimeout,
    /// A drain's deadline came before the connection ended.
    DrainDeadline,
    /// The shard was removed with the connection still open.
    ShardGone,
    /// No descriptor or socket memory was left: accepting paused for a moment.
    DescriptorsExhausted,
    /// `accept` failed otherwise; the listener stays.
    AcceptFailed,
    /// Accepting stopped because connections and the pending queue were full; what comes waits in the kernel's queue.
    Limit,
}

impl Cause {
    /// Every cause, in the order of the counters.
    pub const ALL: [Cause; 13] = [
        Cause::ConnectRefused,
        Cause::ConnectTimeout,
        Cause::ConnectFailed,
        Cause::PendingTimeout,
        Cause::Undeliverable,
        Cause::ResetByClient,
        Cause::ResetByShard,
        Cause::IdleTimeout,
        Cause::DrainDeadline,
        Cause::ShardGone,
        Cause::DescriptorsExhausted,
        Cause::AcceptFailed,
        Cause::Limit,
    ];

    /// Its name as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Cause::ConnectRefused => "connect_refused",
            Cause::ConnectTimeout => "connect_timeout",
            Cause::ConnectFailed => "connect_failed",
            Cause::PendingTimeout => "pending_timeout",
            Cause::Undeliverable => "undeliverable",
            Cause::ResetByClient => "reset_by_client",
            Cause::ResetByShard => "reset_by_shard",
            Cause::IdleTimeout => "idle_timeout",
            Cause::DrainDeadline => "drain_deadline",
            Cause::ShardGone => "shard_gone",
            Cause::DescriptorsExhausted => "descriptors_exhausted",
            Cause::AcceptFailed => "accept_failed",
            Cause::Limit => "limit",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Upper bounds of the connect latency buckets, in microseconds; one more bucket holds what took longer.
pub const LATENCY_BOUNDS_MICROS: [u64; 14] =
    [25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 1_000_000, 5_000_000];

/// How long connecting to the shard took.
#[derive(Debug, Default)]
pub struct Latencies {
    buckets: [Counter; LATENCY_BOUNDS_MICROS.len() + 1],
    sum_micros: Counter,
}

impl Latencies {
    /// Observations in each bucket, not cumulative; the last is what was above every bound.
    pub fn buckets(&self) -> [u64; LATENCY_BOUNDS_MICROS.len() + 1] {
        std::array::from_fn(|bucket| self.buckets[bucket].get())
    }

    /// All observations added up, in microseconds.
    pub fn sum_micros(&self) -> u64 {
        self.sum_micros.get()
    }

    pub(super) fn observe(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].add(1);
        self.sum_micros.add(micros);
    }
}

/// Whether a worker can take a connection from a sibling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has no shard behind it, or drains.
    Absent = 0,
    /// It has a shard, but its connections and its pending queue are full.
    Full = 1,
    /// It takes connections.
    Open = 2,
}

/// The counters of one worker. Aligned to two lines: the prefetcher of x86 fetches lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerStats {
    /// Connections accepted from this worker's listeners.
    pub accepted: Counter,
    /// Connections that others accepted and handed to this worker.
    pub adopted: Counter,
    /// Connections that this worker handed to a sibling, after a failed connect or from an anchor.
    pub handed_over: Counter,
    /// Connections that another worker gave up and this one went on with; neither accepted nor established here.
    pub resumed: Counter,
    /// Connections established to the shard, over time.
    pub established: Counter,
    /// Connections of which the shard has sent a first byte.
    pub answered: Counter,
    /// Connections that the shard ended before it had sent a byte, and before their client ended them.
    pub unanswered: Counter,
    /// Connections that have ended, whatever way, after they were established.
    pub closed: Counter,
    /// Connections being connected or relayed now.
    pub active: Counter,
    /// Clients that wait in the worker's own queue now.
    pub pending: Counter,
    /// Bytes from clients to the shard.
    pub bytes_in: Counter,
    /// Bytes from the shard to clients.
    pub bytes_out: Counter,
    /// Of both, the bytes that went through a pipe and not through memory of ours.
    pub bytes_spliced: Counter,
    /// Times the worker came back from waiting for events.
    pub wakeups: Counter,
    /// How long connecting took, of those that succeeded.
    pub connect_latency: Latencies,
    errors: [Counter; Cause::ALL.len()],
    standing: AtomicU8,
}

impl WorkerStats {
    /// How often `cause` was met.
    pub fn errors(&self, cause: Cause) -> u64 {
        self.errors[cause as usize].get()
    }

    /// Whether the worker takes connections now.
    pub fn standing(&self) -> Standing {
        match self.standing.load(Relaxed) {
            0 => Standing::Absent,
            1 => Standing::Full,
            _ => Standing::Open,
        }
    }

    /// All that only grows, by names that later versions may add to. What is open now is not part of it, nor what was resumed:
    /// that is of this worker.
    pub fn totals(&self) -> BTreeMap<String, u64> {
        self.lasting().map(|(name, counter)| (name, counter.get())).collect()
    }

    /// Those of a worker that goes on from a former one's totals. What isn't known is passed over.
    pub(super) fn going_on(totals: &BTreeMap<String, u64>) -> Self {
        let stats = Self::default();
        stats.lasting().for_each(|(name, counter)| counter.set(totals.get(&name).copied().unwrap_or(0)));
        stats
    }

    fn lasting(&self) -> impl Iterator<Item = (String, &Counter)> {
        let connections = [
            ("accepted", &self.accepted),
            ("adopted", &self.adopted),
            ("handed_over", &self.handed_over),
            ("established", &self.established),
            ("answered", &self.answered),
            ("unanswered", &self.unanswered),
            ("closed", &self.closed),
            ("bytes_in", &self.bytes_in),
            ("bytes_out", &self.bytes_out),
            ("bytes_spliced", &self.bytes_spliced),
            ("wakeups", &self.wakeups),
            ("connect_micros", &self.connect_latency.sum_micros),
        ];
        let connections = connections.into_iter().map(|(name, counter)| (name.to_owned(), counter));
        let errors = Cause::ALL.into_iter().map(|cause| (cause.label().to_owned(), &self.errors[cause as usize]));
        let bounds = LATENCY_BOUNDS_MICROS.iter().map(|bound| format!("connect_in_{bound}"));
        let buckets = bounds.chain(["connect_in_more".to_owned()]).zip(&self.connect_latency.buckets);
        connections.chain(errors).chain(buckets)
    }

    pub(super) fn count(&self, cause: Cause) {
        self.errors[cause as usize].add(1);
    }

    /// Stores only on a change: siblings read this line.
    pub(super) fn set_standing(&self, standing: Standing) {
        if self.standing() != standing {
            self.standing.store(standing as u8, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_in_counter_order() {
        for (position, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, position, "{cause}");
        }
    }

    #[test]
    fn counters_go_on_from_a_former_workers_totals() {
        let former = WorkerStats::default();
        former.lasting().zip(1..).for_each(|((_, counter), number)| counter.set(number));
        former.active.set(9);
        former.resumed.set(9);
        let totals = former.totals();
        assert_eq!(totals.len(), former.lasting().count(), "two have one name");
        let stats = WorkerStats::going_on(&totals);
        assert_eq!(stats.totals(), totals);
        assert_eq!((stats.active.get(), stats.resumed.get()), (0, 0));
        stats.connect_latency.observe(Duration::from_micros(25));
        assert_eq!(stats.totals()["connect_in_25"], totals["connect_in_25"] + 1);
        let unknown = [("of_a_later_version".to_owned(), 1)].into();
        assert_eq!(WorkerStats::going_on(&unknown).totals(), WorkerStats::default().totals());
    }

    #[test]
    fn a_latency_is_in_the_bucket_whose_bound_it_does_not_pass() {
        let check = |micros: u64, bucket: usize| {
            let latencies = Latencies::default();
            latencies.observe(Duration::from_micros(micros));
            assert_eq!(latencies.buckets().iter().position(|n| *n == 1), Some(bucket), "{micros} us");
        };
        check(0, 0);
        check(25, 0);
        check(26, 1);
        check(1_000, 5);
        check(5_000_000, 13);
        check(5_000_001, 14);
    }
}
