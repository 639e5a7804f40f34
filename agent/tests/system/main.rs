//! The real binary on a real kernel, and real engines: what the README promises, from the outside.
//!
//! Each test runs an agent of its own, with its own instance, directories and network namespace.

mod adopting;
mod bad_input;
mod closing;
mod containers;
mod cpu_time;
mod crash_points;
mod direct;
mod direct_changes;
mod direct_kills;
mod drift;
mod explaining;
mod handover;
mod health;
mod holders;
mod hostile;
mod hung;
mod images;
mod kills;
mod leaks;
mod listen_storm;
mod metrics;
mod ports;
mod programs;
mod refused_listeners;
mod rollouts;
mod scaling;
mod start_first;
mod traffic;
mod walkthrough;
mod world;
mod worse;
