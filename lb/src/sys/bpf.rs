//! bpf(2) where aya has no way: a map of which only a descriptor is left, as after a restart (aya's sockarray holds values
//! that can't be read back, its other types take no bare descriptor), and a program that its cgroup keeps (aya makes links,
//! which end with their descriptor). A thin layer; what maps and programs mean is `front`'s and `guard`'s business.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

const BPF_F_ALLOW_OVERRIDE: u32 = 1 << 0;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;

/// What becomes of a program on a cgroup where a cgroup below it has another of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// Both run.
    Beside,
    /// The other alone runs.
    Instead,
}

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PERCPU_ARRAY: u32 = 6;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// A map with values of whole u64s.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    pub(crate) info: MapInfo,
    /// What a lookup writes.
    lookup_words: usize,
}

/// The beginning of the kernel's `struct bpf_map_info`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MapInfo {
    pub(crate) map_type: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    map_flags: u32,
}

/// The part of `union bpf_attr` that the element commands use.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that BPF_OBJ_GET_INFO_BY_FD uses.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    info_len: u32,
    info: u64,
}

/// The part of `union bpf_attr` that BPF_PROG_ATTACH uses.
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// The part of `union bpf_attr` that BPF_MAP_CREATE uses.
#[repr(C)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The part of `union bpf_attr` that BPF_OBJ_PIN uses.
#[repr(C)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// An array that can be mapped, with values of `value_size` bytes.
pub(crate) fn create_array(value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    let attr =
        CreateAttr { map_type: BPF_MAP_TYPE_ARRAY, key_size: 4, value_size, max_entries, map_flags: BPF_F_MMAPABLE };
    let fd = bpf(BPF_MAP_CREATE, &attr)?;
    // SAFETY: the kernel has just given us this descriptor (close-on-exec, as all of bpf(2)), and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives a map or a program a name in a bpffs.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(BPF_OBJ_PIN, &PinAttr { path: path.as_ptr() as u64, fd: raw(object)?, flags: 0 }).map(drop)
}

/// Attaches a program to a cgroup, for as long as there is the cgroup or a socket of it.
pub(crate) fn attach_to_cgroup(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    attach_type: u32,
    below: Below,
) -> io::Result<()> {
    let (target_fd, attach_bpf_fd) = (raw(cgroup)?, raw(program)?);
    let attach_flags = match below {
        Below::Beside => BPF_F_ALLOW_MULTI,
        Below::Instead => BPF_F_ALLOW_OVERRIDE,
    };
    bpf(BPF_PROG_ATTACH, &AttachAttr { target_fd, attach_bpf_fd, attach_type, attach_flags }).map(drop)
}

impl Map {
    /// # Errors
    /// EINVAL when the descriptor is no map, or one of another shape.
    pub(crate) fn new(fd: OwnedFd, possible_cpus: usize) -> io::Result<Self> {
        let info = info(fd.as_fd())?;
        // Per-CPU maps have the same sizes; a program's info is longer than what is asked for, so its type tells nothing.
        let is_map =
            std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?.as_os_str() == "anon_inode:bpf-map";
        if !is_map || !info.value_size.is_multiple_of(8) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let copies = if info.map_type == BPF_MAP_TYPE_PERCPU_ARRAY { possible_cpus } else { 1 };
        Ok(Self { fd, info, lookup_words: info.value_size as usize / 8 * copies })
    }

    /// The element `key`; of a per-CPU map, that of every possible CPU one after the other.
    pub(crate) fn lookup(&self, key: u32) -> io::Result<Vec<u64>> {
        let mut value = vec![0; self.lookup_words];
        self.element(BPF_MAP_LOOKUP_ELEM, &key.to_ne_bytes(), value.as_mut_ptr() as u64)?;
        Ok(value)
    }

    /// Sets the element `key`, whose value is 8 bytes.
    pub(crate) fn update(&self, key: &[u8], value: u64) -> io::Result<()> {
        assert!(self.lookup_words == 1, "the value is 8 bytes");
        self.element(BPF_MAP_UPDATE_ELEM, key, &raw const value as u64)
    }

    /// Deletes the element `key`.
    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.element(BPF_MAP_DELETE_ELEM, key, 0)
    }

    /// Deletes every element of a hash; what is added meanwhile may stay.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let mut key = vec![0; self.info.key_size as usize];
        for _ in 0..self.info.max_entries {
            // Without a key to follow, the kernel gives the first.
            let attr = ElementAttr {
                map_fd: raw(self.fd.as_fd())?,
                padding: 0,
                key: 0,
                value: key.as_mut_ptr() as u64,
                flags: 0,
            };
            match bpf(BPF_MAP_GET_NEXT_KEY, &attr) {
                Ok(_) => self.delete(&key)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn element(&self, command: libc::c_int, key: &[u8], value: u64) -> io::Result<()> {
        assert!(key.len() == self.info.key_size as usize, "a key of {} bytes", key.len());
        let attr = ElementAttr { map_fd: raw(self.fd.as_fd())?, padding: 0, key: key.as_ptr() as u64, value, flags: 0 };
        bpf(command, &attr).map(drop)
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(crate) fn info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let attr = InfoAttr { fd: raw(fd)?, info_len: size_of::<MapInfo>() as u32, info: &raw mut info as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    Ok(info)
}

fn raw(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is a prefix of union bpf_attr whose length is passed. What it points to lives in the callers above
    // and is as long as the kernel reads or writes: keys of `key_size` bytes (checked in `element`, made so in `clear`), values of
    // `lookup_words` words (from the kernel's own sizes), an info of the length given, and a path that ends
    // with 0.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { libc::c_int::try_from(result).map_err(io::Error::other) }
}
