//! Loads the guard's programs and attaches them to its cgroup. Owns nothing afterwards: the cgroup keeps them.

use std::{
    error::Error,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, MapError, SkStorage},
    programs::{Program, ProgramError, ProgramFd},
};

use super::{GuardError, marks::Marks};
use crate::{cells::Cells, lent::LentMaps, sys};

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
const ACCOUNT_HOOK: (&str, u32) = ("sock_ops", 3);

/// Lines of the verifier's log that an error has.
const LOG_LINES: usize = 8;

pub(super) fn attach(cgroup: BorrowedFd<'_>, cgroup_id: u64, cells: Option<&Cells>) -> Result<Marks, GuardError> {
    let mut object = parse(EbpfLoader::new().btf(None), OBJECT)?;
    set_cgroup(&mut object, cgroup_id).map_err(|error| GuardError::Load(Box::new(error)))?;
    for (hook, attach_type) in HOOKS {
        let program = load(&mut object, hook)?;
        sys::bpf::attach_to_cgroup(cgroup, program.as_fd(), attach_type)
            .map_err(|source| not_attached(hook, source))?;
    }
    attach_account(cgroup, cells)
}

/// Counts connections, and contains what listens without a mark.
fn attach_account(cgroup: BorrowedFd<'_>, cells: Option<&Cells>) -> Result<Marks, GuardError> {
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
    sys::bpf::attach_to_cgroup(cgroup, program.as_fd(), attach_type).map_err(|source| not_attached(hook, source))?;
    let accounts = object.take_map("accounts").ok_or_else(|| MapError::InvalidName { name: "accounts".into() });
    let accounts = accounts.and_then(SkStorage::try_from).map_err(|error| GuardError::Load(Box::new(error)))?;
    Ok(Marks(accounts))
}

fn parse(loader: &mut EbpfLoader<'_>, object: &[u8]) -> Result<Ebpf, GuardError> {
    let loaded = loader.load(object);
    // aya reads all of the kernel's BTF, whether asked to or not: some 20 MB that nobody needs again.
    sys::heap::return_free_memory();
    loaded.map_err(not_loaded)
}

fn set_cgroup(object: &mut Ebpf, id: u64) -> Result<(), MapError> {
    let map = object.map_mut("guard").ok_or_else(|| MapError::InvalidName { name: "guard".into() })?;
    Array::<_, u64>::try_from(map)?.set(0, id, 0)
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
