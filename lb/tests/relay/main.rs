//! The relay worker with real sockets, each test in a network namespace of its own.

mod ends;
mod limits;
mod moves;
mod namespaces;
mod rig;
mod transfer;
