//! What is compared with what, under which loads; owns the order of a run.

pub mod relay;
