//! What was counted of a slot, at one moment. Plain values.

/// Upper bounds of the buckets of round-trip times, in microseconds; one more holds what took longer.
pub const RTT_BOUNDS_MICROS: [u64; 19] = bounds(5, 1);

/// Upper bounds of the buckets of durations, in microseconds; one more holds what took longer.
pub const DURATION_BOUNDS_MICROS: [u64; 24] = bounds(11, 1);

/// Upper bounds of the buckets of times to the first answer, in microseconds; one more holds what took longer.
pub const ANSWER_BOUNDS_MICROS: [u64; 6] = bounds(8, 2);

/// Every so many-th power of two, as bpf/cells.h has them.
const fn bounds<const N: usize>(first_bits: u32, step_bits: u32) -> [u64; N] {
    let mut bounds = [0; N];
    let mut at = 0;
    while at < N {
        bounds[at] = 1 << (first_bits + step_bits * at as u32);
        at += 1;
    }
    bounds
}

/// Observations by buckets; see the bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<const BUCKETS: usize> {
    /// Not cumulative.
    pub buckets: [u64; BUCKETS],
    /// In microseconds.
    pub sum_micros: u64,
}

impl<const BUCKETS: usize> Default for Histogram<BUCKETS> {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum_micros: 0 }
    }
}

impl<const BUCKETS: usize> Histogram<BUCKETS> {
    pub(super) fn read(sum_micros: u64, bucket: impl FnMut(usize) -> u64) -> Self {
        Self { buckets: std::array::from_fn(bucket), sum_micros }
    }
}

/// A slot's connections since its address was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Connections that were steered to it.
    pub picked: u64,
    /// Connections whose handshake was completed, or that its worker accepted.
    pub established: u64,
    /// Of these, those that have ended.
    pub closed: u64,
    /// Connections that were picked and never established, as far as was found out.
    pub lost: i64,
}

/// What was counted of a slot since its address was opened. Only of connections that shards accept themselves: bytes,
/// retransmits, round-trip times and durations, each counted when a connection closes; relay workers have their own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CellReading {
    /// Its connections.
    pub counts: Counts,
    /// Connections that came from a closed listener.
    pub migrated: u64,
    /// From clients.
    pub bytes_received: u64,
    /// To clients, and acknowledged by them.
    pub bytes_sent: u64,
    /// Segments that were sent again.
    pub retransmits: u64,
    /// Connections that ended before the shard had sent anything that was acknowledged: also those of clients that asked
    /// nothing. An answer of a single byte is not told from an end, and counts as none.
    pub unanswered: u64,
    /// Of these, those whose client had sent more than a byte: it asked, and had no answer.
    pub ignored: u64,
    /// From the handshake to the acknowledgement of the first answer, of those that were timed: with the time until the client
    /// asked, and a round-trip time. What took longer than 67 s counts as that.
    pub first_answer: Histogram<{ ANSWER_BOUNDS_MICROS.len() + 1 }>,
    /// The sum of the squares of these, in square microseconds; wraps.
    pub first_answer_squares: u64,
    /// Smoothed round-trip times at the connections' end.
    pub rtt: Histogram<{ RTT_BOUNDS_MICROS.len() + 1 }>,
    /// From the handshake to the end, of those that were timed: at most one of each slot in 4 ms.
    pub duration: Histogram<{ DURATION_BOUNDS_MICROS.len() + 1 }>,
}

impl Counts {
    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.established.saturating_sub(self.closed)
    }

    /// Connections that were steered to it and whose handshake is not complete.
    pub fn pending(&self) -> i64 {
        self.picked.wrapping_sub(self.established).cast_signed() - self.lost
    }
}
