//! CPU time, memory and context switches of other processes, as the kernel counts them.
//!
//! CPU time is the process's CPU clock (clock_getcpuclockid(3)): nanoseconds over all its threads, those that have ended
//! too. On loopback, receiving happens in the sender's system call, so a balancer is charged for delivering what it
//! sends, and its peers for delivering to it: the same for all contestants. (A kernel with IRQ_TIME_ACCOUNTING charges
//! that work to nobody; a sample's CPU time of the whole host has it either way.)

use std::{collections::BTreeMap, fs, io, time::Duration};

use nix::{time::clock_getcpuclockid, unistd::Pid};

/// A process could not be measured; most often it is gone.
#[derive(Debug, thiserror::Error)]
#[error("process {pid} cannot be measured; if it has ended, its log says why")]
pub struct ProcessError {
    pid: Pid,
    source: io::Error,
}

/// CPU time that `processes` have used since they began.
pub fn cpu_time(processes: &[Pid]) -> Result<Duration, ProcessError> {
    let one = |pid: &Pid| {
        let used = clock_getcpuclockid(*pid).and_then(|clock| clock.now());
        used.map(Duration::from).map_err(|errno| ProcessError { pid: *pid, source: errno.into() })
    };
    processes.iter().map(one).sum()
}

/// Context switches of threads, since each began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Switches(BTreeMap<Pid, u64>);

impl Switches {
    /// Of all threads that `processes` have now.
    pub fn read(processes: &[Pid]) -> Result<Self, ProcessError> {
        let mut switches = BTreeMap::new();
        for pid in processes {
            let fail = |source| ProcessError { pid: *pid, source };
            for thread in fs::read_dir(format!("/proc/{pid}/task")).map_err(fail)? {
                let thread = thread.map_err(fail)?;
                // A thread may end between the listing and this; so does what it would have told.
                let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
                let number = thread.file_name().to_str().and_then(|name| name.parse().ok());
                let malformed = || fail(io::Error::new(io::ErrorKind::InvalidData, "a thread without its switches"));
                let (thread, count) = number.zip(switches_of(&status)).ok_or_else(malformed)?;
                switches.insert(Pid::from_raw(thread), count);
            }
        }
        Ok(Self(switches))
    }

    /// How many there were since `earlier`. What threads did that began and ended in between is not seen.
    pub fn since(&self, earlier: &Self) -> u64 {
        let before = |thread| earlier.0.get(thread).copied().unwrap_or(0);
        self.0.iter().map(|(thread, count)| count.saturating_sub(before(thread))).sum()
    }
}

/// Waits (voluntary) and preemptions (nonvoluntary) alike (proc_pid_status(5)).
fn switches_of(status: &str) -> Option<u64> {
    let count =
        |name: &str| -> Option<u64> { status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok() };
    Some(count("voluntary_ctxt_switches:")? + count("nonvoluntary_ctxt_switches:")?)
}

/// Proportional set size of `processes`: memory they share among each other counts once.
pub fn pss_bytes(processes: &[Pid]) -> Result<u64, ProcessError> {
    let one = |pid: &Pid| {
        fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .and_then(|text| {
                pss_of(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "smaps_rollup without Pss"))
            })
            .map_err(|source| ProcessError { pid: *pid, source })
    };
    processes.iter().map(one).sum()
}

fn pss_of(smaps_rollup: &str) -> Option<u64> {
    let line = smaps_rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn pss() {
        let text = "55d0-7ffe ---p 0 00:00 0    [rollup]\nRss:    4000 kB\nPss:    1234 kB\nPss_Dirty:  9 kB\n";
        assert_eq!(pss_of(text), Some(1234 << 10));
        assert_eq!(pss_of("Rss: 1 kB\n"), None);
        assert!(pss_bytes(&[Pid::this()]).expect("we are here") > 100 << 10);
    }

    #[test]
    fn a_thread_that_waits_switches() {
        assert_eq!(switches_of("Name:\ta\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n"), Some(15));
        assert_eq!(switches_of("Name:\ta\n"), None);
        let before = Switches::read(&[Pid::this()]).expect("we are here");
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let after = Switches::read(&[Pid::this()]).expect("we are here");
        assert!(after.since(&before) >= 5, "{before:?} {after:?}");
    }

    #[test]
    fn work_shows_in_cpu_time_also_of_threads_that_ended() {
        let before = cpu_time(&[Pid::this()]).expect("we are here");
        let busy = Duration::from_millis(30);
        std::thread::spawn(move || {
            let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
            let start = Instant::now();
            while Duration::from(clock.now().expect("own clock")) < busy {
                assert!(start.elapsed() < Duration::from_secs(20), "a thread gets 30 ms of CPU in 20 s");
            }
        })
        .join()
        .expect("no panic");
        assert!(cpu_time(&[Pid::this()]).expect("we are here") - before >= busy);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().expect("true exists");
        let pid = Pid::from_raw(child.id() as i32);
        child.wait().expect("it ends");
        assert!(cpu_time(&[pid]).is_err() && pss_bytes(&[pid]).is_err());
    }
}
