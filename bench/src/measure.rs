//! What is read from the kernel about processes, the host and the harness itself; owns no process and decides nothing.
//! Changes nothing but the caller's affinity and limits, and the kernel's switch for eBPF's run times.

pub use self::{
    bpf::{BpfPrograms, BpfStats, BpfTime},
    cpus::{CpuError, allowed_cpus, pin_this_thread, pin_thread},
    files::raise_open_files,
    host::{HostFacts, HostTime, slab_bytes},
    process::{ProcessError, Switches, cpu_time, pss_bytes},
};

pub mod bpf;
pub mod cpus;
mod files;
mod host;
mod process;
