//! The `sherd` agent and command line as a library, so that tests reach what the binary is made of.

pub mod api;
pub mod cli;
pub mod client;
mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod fault;
pub mod health;
pub mod journal;
pub mod metrics;
pub mod reconcile;
pub mod rollout;
pub mod runtime;
pub mod shim;
pub mod spec;
pub mod status;
pub mod store;
pub mod systemd;
