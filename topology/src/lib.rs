//! The machine as a value: what it has (`model`), who gets which part of it (`plan`), how that looks (`draw`) and
//! where the value comes from (`discover`). Knows nothing of sockets, containers or the agent.
//!
//! `model`, `plan` and `draw` are pure: the same inputs give the same result, and nothing outside is read or written.
//! Only `discover` touches the host, and only it knows hwloc.

pub mod discover;
pub mod draw;
pub mod model;
pub mod plan;
