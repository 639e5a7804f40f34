//! From a shard order to what the shim needs to know: program, user, working directory and environment, all looked up
//! before anything is made.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::{
    leftovers::MARK,
    record::{Account, Order},
};
use crate::{
    runtime::{RuntimeError, ShardOrder, environment},
    spec::{GroupSpec, ProcessSpec, RuntimeSpec},
};

/// For an agent that has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The specification, if it is for this runtime.
pub(super) fn of(spec: &GroupSpec) -> Result<&ProcessSpec, RuntimeError> {
    match &spec.runtime {
        RuntimeSpec::Process(process) => Ok(process),
        RuntimeSpec::Docker(_) => Err(RuntimeError::WrongRuntime { group: spec.name.to_string(), runtime: "process" }),
    }
}

/// Whether it can be run at all.
pub(super) fn check(spec: &GroupSpec) -> Result<(), RuntimeError> {
    let process = of(spec)?;
    let account = process.user.as_deref().map(account).transpose()?;
    let directory = working_dir(process)?;
    let environment = base_environment(account.as_ref(), &spec.environment);
    let program = process.command.first().map_or("", String::as_str);
    find(program, &directory, environment.get("PATH").map_or("", String::as_str)).map(drop)
}

/// The record of the order. `mark` tells its processes from all others.
pub(super) fn order(order: &ShardOrder, instance: &str, mark: &str) -> Result<Order, RuntimeError> {
    check(&order.spec)?;
    let process = of(&order.spec)?;
    let account = process.user.as_deref().map(account).transpose()?;
    let mut environment = base_environment(account.as_ref(), &BTreeMap::new());
    let limit = order.slot.memory_limit_bytes;
    environment.extend(environment::variables(order, &order.spec.environment, &BTreeMap::new(), limit));
    environment.insert(MARK.to_owned(), mark.to_owned());
    Ok(Order {
        instance: instance.to_owned(),
        key: order.key.clone(),
        spec: order.spec.hash(),
        generation: order.generation,
        slot: order.slot.clone(),
        command: process.command.clone(),
        working_dir: working_dir(process)?,
        user: account.map(|found| found.account),
        environment,
        process_ports: order.process_ports.clone(),
    })
}

struct Found {
    account: Account,
    user: Option<User>,
}

/// The agent's environment is none of the shard's business, except for PATH.
fn base_environment(found: Option<&Found>, user: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
    let mut environment = BTreeMap::from([("PATH".to_owned(), path)]);
    let me = User::from_uid(Uid::effective()).ok().flatten();
    if let Some(user) = found.map_or(me.as_ref(), |found| found.user.as_ref()) {
        environment.insert("USER".to_owned(), user.name.clone());
        environment.insert("LOGNAME".to_owned(), user.name.clone());
        environment.insert("HOME".to_owned(), user.dir.display().to_string());
    }
    environment.extend(user.clone());
    environment
}

fn working_dir(process: &ProcessSpec) -> Result<PathBuf, RuntimeError> {
    let path = PathBuf::from(process.working_dir.as_deref().unwrap_or("/"));
    let bad = |source| RuntimeError::BadWorkingDirectory { path: path.clone(), source };
    if !fs::metadata(&path).map_err(bad)?.is_dir() {
        return Err(bad(io::ErrorKind::NotADirectory.into()));
    }
    Ok(path)
}

/// As execvp(3) finds it.
fn find(program: &str, directory: &Path, path: &str) -> Result<PathBuf, RuntimeError> {
    let bad = |reason: &str| RuntimeError::NoSuchProgram { program: program.to_owned(), reason: reason.to_owned() };
    if program.is_empty() {
        return Err(bad("it has no name"));
    }
    if program.contains('/') {
        let path = directory.join(program);
        return match fs::metadata(&path) {
            Err(error) => Err(bad(&error.to_string())),
            Ok(found) if !found.is_file() => Err(bad("it is no file")),
            Ok(found) if found.permissions().mode() & 0o111 == 0 => Err(bad("it is not executable (chmod +x)")),
            Ok(_) => Ok(path),
        };
    }
    let candidates = path.split(':').map(|folder| directory.join(folder).join(program));
    let executable = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    candidates.into_iter().find(executable).ok_or_else(|| bad(&format!("it is not in PATH ({path})")))
}

/// `USER[:GROUP]`, names or numbers.
fn account(text: &str) -> Result<Found, RuntimeError> {
    look_up(text).ok_or_else(|| RuntimeError::NoSuchUser { user: text.to_owned() })
}

fn look_up(text: &str) -> Option<Found> {
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let user = match name.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)).ok()?,
        Err(_) => Some(User::from_name(name).ok()??),
    };
    let uid = user.as_ref().map(|user| user.uid.as_raw()).or_else(|| name.parse().ok())?;
    let gid = match group {
        Some(group) => group.parse().ok().or_else(|| Some(Group::from_name(group).ok()??.gid.as_raw()))?,
        // A number that nobody has says nothing of a group.
        None => user.as_ref()?.gid.as_raw(),
    };
    let groups = match &user {
        Some(user) if group.is_none() => {
            let name = CString::new(user.name.as_str()).ok()?;
            getgrouplist(&name, Gid::from_raw(gid)).ok()?.into_iter().map(Gid::as_raw).collect()
        }
        _ => vec![gid],
    };
    Some(Found { account: Account { uid, gid, groups }, user })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_names_or_numbers() {
        let check = |text: &str, expected: Option<(u32, u32)>| {
            let found = look_up(text).map(|found| (found.account.uid, found.account.gid));
            assert_eq!(found, expected, "{text}");
        };
        check("root", Some((0, 0)));
        check("0", Some((0, 0)));
        check("root:0", Some((0, 0)));
        check("1234567:42", Some((1_234_567, 42)));
        check("1234567", None);
        check("no-such-user", None);
        check("root:no-such-group", None);
        check("", None);
    }

    #[test]
    fn programs_are_found_as_exec_finds_them() {
        let check = |program: &str, directory: &str, path: &str, expected: Option<&str>| {
            let found = find(program, Path::new(directory), path).ok();
            assert_eq!(found, expected.map(PathBuf::from), "{program}");
        };
        check("/bin/sh", "/", "", Some("/bin/sh"));
        check("./sh", "/bin", "", Some("/bin/./sh"));
        check("sh", "/", "/nowhere:/bin", Some("/bin/sh"));
        check("sh", "/", "/nowhere", None);
        check("/etc/passwd", "/", "", None);
        check("/etc", "/", "", None);
        check("/nowhere/sh", "/", "", None);
        check("", "/", "/bin", None);
    }
}
