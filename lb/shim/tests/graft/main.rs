//! Unmodified programs behind the shim, and the broker that grafts listeners of a steered address into them. Each test
//! in a network namespace of its own.

#[path = "../shim/broker.rs"]
#[allow(dead_code, unreachable_pub)]
mod broker;
mod exchange;
mod programs;
mod rig;
mod storm;
mod taking_over;
