//! What somebody else can change, by name: one word for each in events and metrics. PURE.

/// What is found to be otherwise than planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriftCause {
    /// A shard's cgroup has other CPUs: by hand, by the engine's `update`, by systemd, or by a cgroup further out.
    Cpuset,
    /// A shard's cgroup has other memory nodes.
    Mems,
    /// A thread may run elsewhere.
    Affinity,
    /// A thread may take memory from elsewhere.
    MemoryPolicy,
    /// The host has fewer CPUs than before, or more, or others are the agent's.
    Host,
    /// A shard is paused: by `docker pause`, or a process by SIGSTOP.
    Paused,
    /// Somebody had the engine stop or kill a shard.
    Stopped,
    /// A shard ended by a signal that came from elsewhere.
    Killed,
    /// A shard was removed.
    Removed,
    /// The kernel killed a shard for want of memory.
    OutOfMemory,
    /// A shard's container has another name.
    Renamed,
    /// A shard's image is gone, and it has to be made again.
    Image,
    /// A container bears our label and isn't ours.
    Foreign,
    /// An engine doesn't answer, or answers nonsense.
    Engine,
    /// A directory that the agent writes to is full.
    Disk,
    /// The agent, or the whole host, has no descriptors left.
    Descriptors,
    /// Somebody set the clock.
    Clock,
}

impl DriftCause {
    /// As in events and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpuset => "cpuset",
            Self::Mems => "mems",
            Self::Affinity => "affinity",
            Self::MemoryPolicy => "memory-policy",
            Self::Host => "host",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::Removed => "removed",
            Self::OutOfMemory => "oom",
            Self::Renamed => "renamed",
            Self::Image => "image",
            Self::Foreign => "foreign",
            Self::Engine => "engine",
            Self::Disk => "disk",
            Self::Descriptors => "descriptors",
            Self::Clock => "clock",
        }
    }

    /// Repaired when the shard is where it should be; other drifts of a slot are when it serves again.
    pub(in crate::reconcile) fn is_of_place(self) -> bool {
        matches!(self, Self::Cpuset | Self::Mems | Self::Affinity | Self::MemoryPolicy)
    }

    /// Whoever did it said so to the engine, so it tells nothing of the program.
    pub(in crate::reconcile) fn is_asked_for(self) -> bool {
        matches!(self, Self::Stopped | Self::Removed | Self::Engine)
    }
}
