//! JSON of the API beside [`status`](crate::status): what server and client both spell.

use serde::{Deserialize, Serialize};
use sherd_topology::plan::SlotId;
use utoipa::ToSchema;

use crate::spec::SpecFault;

/// The body of every answer that isn't a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// A word for programs, for example `port-taken`.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// Faults of a specification, each with its line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<SpecFault>,
}

/// Specifications to plan with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanBody {
    /// They replace running groups of the same name.
    pub specs: Vec<PlanText>,
}

/// One specification to plan with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanText {
    /// Names it in faults.
    pub file: String,
    /// Its TOML.
    pub text: String,
}

/// Answer to a stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stopped {
    /// The group.
    pub group: String,
    /// Whether its specification is gone too.
    pub purged: bool,
}

/// One line of the log stream; a line with `error` ends its slot's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogRecord {
    /// Whose.
    #[schema(value_type = u32)]
    pub slot: SlotId,
    /// `stdout` or `stderr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Why there are no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
