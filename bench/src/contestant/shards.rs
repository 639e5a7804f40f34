//! Shards that the harness starts itself, one pinned to each CPU: what contestants stand in front of when sherd, which
//! would start them, doesn't take part.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use nix::unistd::Pid;

use super::{
    StartError,
    child::{Child, Launch},
};
use crate::shard::Announcement;

/// How long a shard may take to listen.
const DEADLINE: Duration = Duration::from_secs(10);

/// Running shards; dropping it ends them.
#[derive(Debug)]
pub struct Shards {
    announced: Vec<Announcement>,
    _children: Vec<Child>,
}

impl Shards {
    /// Starts one on each of `cpus`.
    pub fn start(scratch: &Path, cpus: &[usize]) -> Result<Self, StartError> {
        Self::start_burning("shard", 0, scratch, cpus)
    }

    /// Starts one on each of `cpus` each of whose answers costs so many rounds of work for nothing more. No others that are
    /// up have this name.
    pub fn start_burning(name: &str, rounds: u64, scratch: &Path, cpus: &[usize]) -> Result<Self, StartError> {
        let fail = |source| StartError::Failed { name: name.into(), action: "be started".into(), source };
        let directory = scratch.join(format!("{name}s"));
        fs::create_dir_all(&directory).map_err(fail)?;
        let program = std::env::current_exe().map_err(fail)?;
        let mut children = Vec::new();
        for cpu in cpus {
            children.push(Child::spawn(Launch {
                name: &format!("{name}-{cpu}"),
                program: program.as_os_str(),
                arguments: vec![
                    "shard".into(),
                    "--announce".into(),
                    directory.clone().into(),
                    "--burn".into(),
                    rounds.to_string().into(),
                ],
                environment: Vec::new(),
                cpus: &[*cpu],
                scratch,
            })?);
        }
        let mut announced = Vec::new();
        for child in &mut children {
            let pid = child.pid().as_raw();
            announced.push(child.wait_until("it announced itself", DEADLINE, || {
                Announcement::read_all(&directory).ok()?.into_iter().find(|announcement| announcement.pid == pid)
            })?);
        }
        Ok(Self { announced, _children: children })
    }

    /// Where they listen, in the order of their CPUs.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.announced.iter().map(|shard| shard.address).collect()
    }

    /// Their processes.
    pub fn processes(&self) -> Vec<Pid> {
        self.announced.iter().map(|shard| Pid::from_raw(shard.pid)).collect()
    }
}
