//! Where a worker's thread lives, and where it connects from. Changes the namespace of the calling thread only; never
//! changes a setting of the namespace the thread was born in.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::stat::fstat,
};

use super::{Target, dialer::Dialer, socket::Dialed};

/// The network namespace of the calling thread, and the one it came from.
#[derive(Debug)]
pub(super) struct Namespace {
    home: File,
    home_inode: u64,
    home_dialer: Dialer,
    shard: Option<Shard>,
    here: Place,
}

/// The shard's namespace, where it isn't home.
#[derive(Debug)]
struct Shard {
    /// The way back from home. Keeps the namespace alive no longer than the thread's living there does.
    netns: OwnedFd,
    dialer: Dialer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Home,
    Shard,
}

impl Namespace {
    /// The calling thread's is home.
    pub(super) fn of_this_thread() -> io::Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")?;
        let home_inode = fstat(&home)?.st_ino;
        Ok(Self { home, home_inode, home_dialer: Dialer::of_this_thread(), shard: None, here: Place::Home })
    }

    /// Moves the calling thread, which is home.
    pub(super) fn enter(&mut self, netns: OwnedFd) -> io::Result<()> {
        if fstat(&netns)?.st_ino == self.home_inode {
            return Ok(());
        }
        setns(&netns, CloneFlags::CLONE_NEWNET)?;
        reuse_time_wait();
        self.here = Place::Shard;
        self.shard = Some(Shard { netns, dialer: Dialer::of_this_thread() });
        Ok(())
    }

    /// Takes the calling thread home, for good.
    pub(super) fn leave(&mut self) -> io::Result<()> {
        setns(&self.home, CloneFlags::CLONE_NEWNET)?;
        self.here = Place::Home;
        self.shard = None;
        self.home_dialer = Dialer::of_this_thread();
        Ok(())
    }

    /// A socket that is on its way to `target`: from home if it is forced, else from where the shard is. The thread
    /// stays there, so that only who has targets of both kinds pays for moving.
    pub(super) fn dial(&mut self, target: &Target) -> io::Result<Dialed> {
        match &mut self.shard {
            Some(shard) if target.force.is_none() => {
                if self.here != Place::Shard {
                    setns(&shard.netns, CloneFlags::CLONE_NEWNET)?;
                    self.here = Place::Shard;
                }
                shard.dialer.dial(target)
            }
            _ => {
                if self.here != Place::Home {
                    setns(&self.home, CloneFlags::CLONE_NEWNET)?;
                    self.here = Place::Home;
                }
                self.home_dialer.dial(target)
            }
        }
    }
}

/// A client that closes first leaves the relay's port towards the shard in TIME_WAIT for a minute, and one address
/// has 28,000 ports: some 470 such connections a second would use them up. The default (2) lets connect take such a
/// port after a second on loopback addresses only. Best effort: /proc/sys may be read-only.
fn reuse_time_wait() {
    let _ = fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1");
}
