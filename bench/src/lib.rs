#![doc = include_str!("method.md")]
#![forbid(unsafe_code)]

pub mod analysis;
pub mod compare;
pub mod contestant;
pub mod interrupt;
pub mod keeper;
pub mod load;
pub mod measure;
pub mod report;
pub mod sample;
pub mod scenario;
pub mod shard;
pub mod stats;
pub mod targets;
