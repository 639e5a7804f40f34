//! The time that eBPF programs take, which the kernel counts while somebody asks for it.

use std::{io, os::fd::OwnedFd};

use aya::sys::{Stats, enable_stats};

/// While it is there, the kernel counts run time and runs of all programs of the host (BPF_ENABLE_STATS, Linux 5.8), which
/// costs each run some ten nanoseconds. It ends with its process at the latest: unlike the sysctl `kernel.bpf_stats_enabled`,
/// whoever is killed leaves nothing switched on.
#[derive(Debug)]
pub struct RunTime {
    _asked: OwnedFd,
}

impl RunTime {
    /// Has the kernel count. /proc/PID/fdinfo of a program's descriptor has what was counted, as `run_time_ns` and `run_cnt`.
    ///
    /// # Errors
    /// When bpf(2) is not permitted, or the kernel is older.
    pub fn count() -> io::Result<Self> {
        enable_stats(Stats::RunTime).map(|asked| Self { _asked: asked }).map_err(|error| error.io_error)
    }
}
