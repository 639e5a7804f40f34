//! Loads the guard's programs and attaches them to its cgroup, which keeps them.

use std::{
    collections::BTreeSet,
    error::Error,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Map, MapError, SkStorage},
    programs::{Program, ProgramError, ProgramFd},
};

use super::{GuardError, marks::Marks, places::Places};
use crate::{
    cells::Cells,
    lent::LentMaps,
    sys::{
        self,
        bpf::{self, Below},
    },
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard.o"));
static ACCOUNT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/account.o"));

/// The programs, which are named as their hooks, and the kernel's `enum bpf_attach_type`.
const HOOKS: [(&str, u32); 7] = [
    ("bind4", 8),
    ("bind6", 9),
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("setsockopt", 22),
];

/// The program that accounts, its hook, and the kernel's number of it.
pub(super) const ACCOUNT_HOOK: (&str, u32) = ("sock_ops", 3);

/// Lines of the verifier's log that an error has.
const LOG_LINES: usize = 8;

pub(super) fn attach(
    cgroup: BorrowedFd<'_>,
    cgroup_id: u64,
    cells: Option<&Cells>,
) -> Result<(Marks, Places), GuardError> {
    let mut object = parse(EbpfLoader::new().btf(None), OBJECT)?;
    let inside = map_of(&mut object, "inside")?;
    inside.update(&cgroup_id.to_ne_bytes(), 1).map_err(|error| GuardError::Load(Box::new(error)))?;
    for (hook, attach_type) in HOOKS {
        let program = load(&mut object, hook)?;
        bpf::attach_to_cgroup(cgroup, program.as_fd(), attach_type, Below::Beside)
            .map_err(|source| not_attached(hook, source))?;
    }
    attach_account(cgroup, cells, inside)
}

/// Counts connections, and contains what listens without a mark. Below the guard's cgroup it is attached again, with a
/// cell: there it runs only once.
fn attach_account(
    cgroup: BorrowedFd<'_>,
    cells: Option<&Cells>,
    inside: bpf::Map,
) -> Result<(Marks, Places), GuardError> {
    let mut loader = EbpfLoader::new();
    let there: Vec<_> = cells.map(|cells| ("cells", cells.descriptor())).into_iter().collect();
    if cells.is_none() {
        // One that nobody uses.
        loader.map_max_entries("cells", 1);
    }
    let lent = LentMaps::lend(&mut loader, &there).map_err(|error| GuardError::Load(Box::new(error)))?;
    let mut object = parse(&mut loader, ACCOUNT)?;
    drop((loader, lent));
    let (hook, attach_type) = ACCOUNT_HOOK;
    let program = load(&mut object, "account")?;
    bpf::attach_to_cgroup(cgroup, program.as_fd(), attach_type, Below::Instead)
        .map_err(|source| not_attached(hook, source))?;
    let account = program.as_fd().try_clone_to_owned().map_err(|error| GuardError::Load(Box::new(error)))?;
    let marks = object.take_map("marks").ok_or_else(|| MapError::InvalidName { name: "marks".into() });
    let marks = marks.and_then(SkStorage::try_from).map_err(|error| GuardError::Load(Box::new(error)))?;
    let cells = map_of(&mut object, "places")?;
    Ok((Marks(marks), Places { account, cells, inside, made: BTreeSet::new() }))
}

fn parse(loader: &mut EbpfLoader<'_>, object: &[u8]) -> Result<Ebpf, GuardError> {
    let loaded = loader.load(object);
    // aya reads all of the kernel's BTF, whether asked to or not: some 20 MB that nobody needs again.
    sys::heap::return_free_memory();
    loaded.map_err(not_loaded)
}

/// A map with values of 8 bytes, for as long as the guard is used.
fn map_of(object: &mut Ebpf, name: &str) -> Result<bpf::Map, GuardError> {
    let Some(Map::HashMap(map) | Map::CgroupStorage(map)) = object.map_mut(name) else {
        return Err(GuardError::Load(format!("no map {name} in the object").into()));
    };
    let map = map.fd().as_fd().try_clone_to_owned().and_then(|fd| bpf::Map::new(fd, 1));
    map.map_err(|error| GuardError::Load(Box::new(error)))
}

fn load<'a>(object: &'a mut Ebpf, hook: &'static str) -> Result<&'a ProgramFd, GuardError> {
    let refused = |error| refused(hook, error);
    match object.program_mut(hook) {
        Some(Program::CgroupSockAddr(program)) => program.load().and_then(|()| program.fd()).map_err(refused),
        Some(Program::SockOps(program)) => program.load().and_then(|()| program.fd()).map_err(refused),
        Some(Program::CgroupSockopt(program)) => program.load().and_then(|()| program.fd()).map_err(refused),
        _ => Err(GuardError::Load(format!("no program {hook} in the object").into())),
    }
}

/// The map comes first, so this is where a lack of privilege shows.
fn not_loaded(error: aya::EbpfError) -> GuardError {
    match os_error(&error) {
        Some(source) if source.kind() == io::ErrorKind::PermissionDenied => GuardError::NotPermitted(copy(source)),
        _ => GuardError::Load(Box::new(error)),
    }
}

fn refused(hook: &'static str, error: ProgramError) -> GuardError {
    let ProgramError::LoadError { io_error: source, verifier_log } = error else {
        return GuardError::Load(Box::new(error));
    };
    let log = verifier_log.to_string();
    let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    match source.kind() {
        io::ErrorKind::PermissionDenied if lines.is_empty() => GuardError::NotPermitted(source),
        // An unknown expected_attach_type, or program type, is refused before the verifier has said a word.
        io::ErrorKind::InvalidInput if lines.is_empty() => GuardError::TooOld { hook, source },
        _ => GuardError::Verifier { hook, log: lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"), source },
    }
}

fn not_attached(hook: &'static str, source: io::Error) -> GuardError {
    match source.raw_os_error() {
        // `hierarchy_allows_attach`; it loaded, so it is not for want of a capability.
        Some(libc::EPERM) => GuardError::Occupied { hook, source },
        Some(libc::EINVAL) => GuardError::TooOld { hook, source },
        _ => GuardError::Attach { hook, source },
    }
}

fn os_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    error.downcast_ref().or_else(|| os_error(error.source()?))
}

fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}
