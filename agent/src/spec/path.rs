//! Which way a group's connections take to its shards. Knows the choice, not whether this host can do it.

/// Who accepts a group's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathChoice {
    /// As `Direct` where it can be had, else as `Relay`. Always `Relay` for processes.
    #[default]
    Auto,
    /// Shards accept their connections themselves; what they listen on is given to them by the shim before the program.
    /// Containers only.
    Direct,
    /// A worker of the agent accepts them and relays them to the shard.
    Relay,
}
