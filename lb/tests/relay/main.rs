//! The relay worker with real sockets, each test in a network namespace of its own.

mod counted;
mod direct;
mod ends;
mod handing;
mod limits;
mod moves;
mod namespaces;
mod published;
mod rig;
mod transfer;
