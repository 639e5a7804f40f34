//! What is read from the kernel about processes, the host and the harness itself; owns no process and decides nothing.

pub use self::{
    cpus::{CpuError, allowed_cpus, pin_this_thread, pin_thread},
    files::raise_open_files,
    host::{HostFacts, HostTime, slab_bytes},
    process::{ProcessError, Switches, cpu_time, pss_bytes},
};

pub mod cpus;
mod files;
mod host;
mod process;
