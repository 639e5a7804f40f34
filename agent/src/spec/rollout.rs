//! How the shards of a group are replaced when what runs in them changes; Docker's `update_config` has the same words.

use std::time::Duration;

/// Which shard of a slot is there first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The new one starts beside the old one and takes over when it is ready, where there is memory for both; else as
    /// [`Order::StopFirst`].
    #[default]
    StartFirst,
    /// The old one ends before the new one starts: the other slots serve meanwhile.
    StopFirst,
}

/// What is done when a new shard fails, or is worse than its siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailureAction {
    /// Back to what ran before.
    #[default]
    Rollback,
    /// Nothing more is replaced until somebody says so.
    Pause,
    /// The slot is left to its restarts, and the others follow.
    Continue,
}

/// The `[rollout]` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutPolicy {
    /// Which shard of a slot is there first.
    pub order: Order,
    /// Slots that are replaced at once; at least 1.
    pub parallelism: u32,
    /// From one slot's end to the next one's beginning.
    pub delay: Duration,
    /// How long a new shard has to serve without failing.
    pub min_healthy: Duration,
    /// How long it is on trial once it serves, if that is longer: whatever fails it by then fails the rollout.
    pub monitor: Duration,
    /// How long the replacement of one slot may take, from its turn until its new shard counts as good; without the time that a
    /// former shard takes to finish its connections and to end.
    pub deadline: Duration,
    /// What is done when it doesn't.
    pub failure_action: FailureAction,
    /// What its traffic on trial has to be like.
    pub traffic: TrafficPolicy,
}

/// How much worse the connections of a new shard may be than those of shards that aren't being replaced, and than those of
/// the slot's former shard. Absent: as much as they like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// Connections that ended, below which nothing is compared.
    pub min_connections: u32,
    /// How many percentage points more of them may fail: can't be handed to it, or end without an answer.
    pub max_error_points: Option<u32>,
    /// How long its first answers may take in the mean, in percent of others'. Also a program that only has to warm up takes
    /// longer.
    pub max_latency_percent: Option<u32>,
    /// How much CPU time it may use for a connection, in percent of others'. Not for programs that work while nobody asks.
    pub max_cpu_percent: Option<u32>,
}

impl Default for TrafficPolicy {
    fn default() -> Self {
        Self { min_connections: 100, max_error_points: Some(1), max_latency_percent: None, max_cpu_percent: None }
    }
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        Self {
            order: Order::default(),
            parallelism: 1,
            delay: Duration::ZERO,
            min_healthy: Duration::from_secs(1),
            monitor: Duration::from_secs(5),
            deadline: Duration::from_secs(600),
            failure_action: FailureAction::default(),
            traffic: TrafficPolicy::default(),
        }
    }
}

impl RolloutPolicy {
    /// How long a new shard is on trial once it serves.
    pub fn trial(&self) -> Duration {
        self.min_healthy.max(self.monitor)
    }
}
