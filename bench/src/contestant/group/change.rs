//! What a running group is changed to, as text of its specification; pure.

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// How many shards it is to have.
    pub shards: usize,
    /// Another one has every shard replaced.
    pub version: usize,
    /// How.
    pub order: Order,
}

/// Which of a slot's two shards comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The new one takes over from the one that serves.
    StartFirst,
    /// The one that serves ends before.
    StopFirst,
}

/// How long a new shard is on trial: it says nothing about losses, and is most of a rollout's time.
const MONITOR: &str = "300ms";
/// As long as kept connections are used, and some.
const DRAIN: &str = "10s";

impl Order {
    /// In specifications.
    pub const fn word(self) -> &'static str {
        match self {
            Self::StartFirst => "start-first",
            Self::StopFirst => "stop-first",
        }
    }
}

impl Change {
    /// The specification that `base`, one of ours for `of` shards, becomes.
    pub(super) fn over(self, base: &str, of: usize) -> String {
        let Self { shards, version, order } = self;
        let text = base.replacen(&format!("shards = {of}\n"), &format!("shards = {shards}\n"), 1).replacen(
            "drain = \"1s\"\n",
            &format!("drain = \"{DRAIN}\"\n"),
            1,
        );
        format!(
            "{text}\n[rollout]\norder = \"{}\"\nmonitor = \"{MONITOR}\"\nmin_healthy = \"{MONITOR}\"\n\n[environment]\nVERSION = \"{version}\"\n",
            order.word()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_is_another() {
        let base = "name = \"g\"\ndrain = \"1s\"\n\n[layout]\nshards = 2\n";
        let change = Change { shards: 1, version: 7, order: Order::StopFirst };
        let text = change.over(base, 2);
        assert!(text.starts_with("name = \"g\"\ndrain = \"10s\"\n\n[layout]\nshards = 1\n\n[rollout]\n"), "{text}");
        assert!(text.contains("order = \"stop-first\"") && text.ends_with("VERSION = \"7\"\n"), "{text}");
    }
}
