//! Where one connection goes, and why: the JSON of `sherd explain`; plain values only.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use sherd_topology::plan::{GroupName, SlotId};
use utoipa::ToSchema;

use super::{Path, Steering};

/// Where a connection goes, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The group.
    #[schema(value_type = String, example = "web")]
    pub group: GroupName,
    /// Where the connection comes from.
    #[schema(value_type = String, example = "192.0.2.1:51234")]
    pub client: SocketAddr,
    /// Where it goes to; with the policy `connection` the hash is of both ends.
    #[schema(value_type = String, example = "192.0.2.9:8080")]
    pub server: SocketAddr,
    /// Nobody said at which of the host's addresses the client connects: it was guessed.
    pub server_guessed: bool,
    /// The published address that takes it.
    #[schema(value_type = String, example = "[::]:8080")]
    pub published: SocketAddr,
    /// `connection`, `client`, `local` or `balanced`.
    pub policy: String,
    /// Who chooses.
    pub steering: Steering,
    /// The connection's hash, in hexadecimal; absent with classic steering.
    pub hash: Option<String>,
    /// The place in the table; absent with `local` and with classic steering.
    pub entry: Option<u32>,
    /// Places in the table.
    pub table_len: u32,
    /// The slot that the table names, in service or not; absent as `entry` is.
    #[schema(value_type = Option<u32>)]
    pub first_choice: Option<SlotId>,
    /// Slots in service.
    #[schema(value_type = Vec<u32>)]
    pub in_service: Vec<SlotId>,
    /// Where it goes; absent where the CPU decides that receives it.
    pub goes: Option<Destination>,
    /// Where it would go were that slot out of service; absent where it goes to no slot, and with classic steering.
    pub otherwise: Option<Destination>,
    /// Where it goes by the CPU that receives it; with `local` alone.
    pub by_cpu: Vec<CpuDestination>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Destination {
    /// What becomes of it.
    pub outcome: Outcome,
    /// The slot that gets it.
    #[schema(value_type = Option<u32>)]
    pub slot: Option<SlotId>,
    /// How bytes reach that slot's shard.
    pub path: Option<Path>,
    /// How near the slot is to the first choice; absent with classic steering.
    pub level: Option<Level>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// A slot gets it.
    Slot,
    /// It waits until a slot is in service.
    Waits,
    /// It is refused, because no slot is in service.
    Refused,
}

/// How near a slot is to the first choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It is the first choice.
    First,
    /// Another that the hash names, because it has less to do.
    Lighter,
    /// In the same L3.
    L3,
    /// On the same NUMA node.
    Node,
    /// In the same package.
    Package,
    /// Anywhere.
    Any,
}

/// Where a connection goes that a CPU receives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpuDestination {
    /// The CPU.
    pub cpu: u32,
    /// Where it goes.
    pub goes: Destination,
}
