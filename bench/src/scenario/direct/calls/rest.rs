//! Whether shards have nothing left to do: each sleeps, which it does only where it waits for events; reads /proc only.

use std::{
    fs, io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Pid;

use crate::load::Moment;

/// How long a traced shard may take for one request.
const DEADLINE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_micros(50);

/// Shards, of one thread each, that had no connection when this was made.
pub(super) struct Rest {
    shards: Vec<PathBuf>,
    descriptors: usize,
}

impl Rest {
    pub(super) fn of(shards: &[Pid]) -> io::Result<Self> {
        let shards = shards.iter().map(|shard| PathBuf::from(format!("/proc/{shard}"))).collect();
        let mut rest = Self { shards, descriptors: 0 };
        rest.descriptors = rest.count_descriptors()?;
        Ok(rest)
    }

    /// Waits until what brought about `moment` has been dealt with. An answer shows that the shard was awake; that a new
    /// connection has woken it shows in one more descriptor only.
    pub(super) fn wait(&self, moment: Moment) -> io::Result<()> {
        let start = Instant::now();
        while !(self.has_noticed(moment)? && self.all_sleep()?) {
            if start.elapsed() > DEADLINE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the shards don't come to rest"));
            }
            thread::sleep(STEP);
        }
        Ok(())
    }

    fn has_noticed(&self, moment: Moment) -> io::Result<bool> {
        Ok(moment != Moment::Connected || self.count_descriptors()? > self.descriptors)
    }

    /// State `S`; stopped by its tracer, it is in `t` (proc_pid_stat(5)).
    fn all_sleep(&self) -> io::Result<bool> {
        for shard in &self.shards {
            let stat = fs::read_to_string(shard.join("stat"))?;
            // The name before it is in parentheses and may hold anything.
            if !stat.rsplit_once(')').is_some_and(|(_, after)| after.starts_with(" S ")) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn count_descriptors(&self) -> io::Result<usize> {
        self.shards.iter().map(|shard| Ok(fs::read_dir(shard.join("fd"))?.count())).sum()
    }
}
