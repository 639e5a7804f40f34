//! Steering against the kernel: each test publishes an address in a network namespace of its own, connects to it, and
//! holds the kernel to what `Front::choose` says. 10^4 connections in the short form, 10^5 with `SHERD_PROVE=1`.

mod adopting;
mod loads;
mod migrating;
mod models;
mod places;
mod taken;
mod traffic;
mod unready;
