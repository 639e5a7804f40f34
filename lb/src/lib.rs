//! Connections to slots: steering tables and programs, listeners, relay workers, the descriptor holder.
//! Knows sockets and namespaces; knows no containers and no topology.

pub mod cells;
pub mod front;
pub mod graft;
pub mod guard;
pub mod heap;
pub mod holder;
mod lent;
pub mod netns;
pub mod pinning;
pub mod ready;
pub mod relay;
pub mod sockdiag;
pub mod stall;
mod sys;
pub mod table;
