//! How far a group's change is, as the API tells it.

use serde::{Deserialize, Serialize};
use sherd_topology::plan::SlotId;
use utoipa::ToSchema;

/// How far a group's last change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutPhase {
    /// Shards are being replaced.
    Progressing,
    /// What was under way is brought to its end, and nothing more is replaced until somebody says so.
    Paused,
    /// A new shard failed, and what ran before is brought back.
    RollingBack,
    /// Every slot has a shard of the new specification.
    Completed,
    /// Every slot has a shard of what ran before.
    RolledBack,
    /// Slots whose new shard failed were left to their restarts; all others have the new specification.
    Failed,
}

impl RolloutPhase {
    /// Every phase, for tables and metrics.
    pub const ALL: [Self; 6] =
        [Self::Progressing, Self::Paused, Self::RollingBack, Self::Completed, Self::RolledBack, Self::Failed];

    /// Nothing more will be replaced.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::RolledBack | Self::Failed)
    }

    /// The phase's name, as in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Progressing => "progressing",
            Self::Paused => "paused",
            Self::RollingBack => "rolling-back",
            Self::Completed => "completed",
            Self::RolledBack => "rolled-back",
            Self::Failed => "failed",
        }
    }
}

impl std::fmt::Display for RolloutPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How far one slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RolloutStage {
    /// It has a shard of a former specification.
    Former,
    /// That one goes, and the new one comes.
    Replacing,
    /// The new one serves, and is looked at.
    Trial,
    /// It has a shard of the present specification.
    Present,
}

/// One slot of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutSlot {
    /// Its number.
    #[schema(value_type = u32)]
    pub slot: SlotId,
    /// How far it is.
    pub stage: RolloutStage,
    /// Why its shard ends before the new one starts, where the specification says start-first.
    pub stop_first: Option<String>,
}

/// A group's last change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutStatus {
    /// How far it is.
    pub phase: RolloutPhase,
    /// Why it is there, in one sentence, if that isn't plain.
    pub reason: Option<String>,
    /// When it began, seconds since 1970.
    pub started_unix_s: u64,
    /// When it came to its end, seconds since 1970.
    pub ended_unix_s: Option<u64>,
    /// Whether `undo` has something to go back to.
    pub can_undo: bool,
    /// Slots by number.
    pub slots: Vec<RolloutSlot>,
}

impl RolloutStatus {
    /// Slots that have a shard of the present specification which isn't on trial any more.
    pub fn done(&self) -> usize {
        self.slots.iter().filter(|slot| slot.stage == RolloutStage::Present).count()
    }
}
