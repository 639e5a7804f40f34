//! Gives maps that exist already to a program that is being loaded. aya takes them by path alone, so they are pinned for
//! that moment in a bpffs that is mounted nowhere and ends with its descriptor (Linux 5.2).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use aya::EbpfLoader;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::sys;

/// Keep it until the program is loaded.
#[derive(Debug)]
pub(crate) struct LentMaps {
    /// The file system's only reference.
    mount: OwnedFd,
}

impl LentMaps {
    /// # Errors
    /// When there is no bpffs, or a descriptor is no map.
    pub(crate) fn lend<'a>(loader: &mut EbpfLoader<'a>, maps: &[(&'a str, BorrowedFd<'_>)]) -> io::Result<Self> {
        let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let lent = Self { mount };
        for (name, map) in maps {
            let path = lent.path(name);
            sys::bpf::pin(*map, &path)?;
            loader.map_pin_path(name, path);
        }
        Ok(lent)
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.mount.as_raw_fd()))
    }
}
