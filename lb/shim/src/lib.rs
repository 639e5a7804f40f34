//! What the shim and the agent's broker say to each other. Pure: touches no socket; the shim itself is the binary beside it.

pub mod hello;
