//! What the agent itself needs of its host, looked at with everything else: room in its directories, descriptors, and a
//! clock that nobody sets. Reads; what follows is told and changes nothing that runs.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::{
        resource::{Resource, getrlimit},
        statvfs::statvfs,
    },
    time::{ClockId, clock_gettime},
};

use super::{cause::DriftCause, notes::Whose};
use crate::reconcile::Reconciler;

/// Less room than this is none: a specification and its record fit.
const ROOM: u64 = 512 * 1024;
/// Less than this between two looks is what a clock is slewed by.
const JUMP: Duration = Duration::from_secs(2);

/// What was read.
#[derive(Debug)]
pub(in crate::reconcile) struct Reading {
    /// The directories, and how much room there is, or why that isn't known.
    directories: Vec<(PathBuf, io::Result<Room>)>,
    /// The wall clock's time at boot, as it would be now.
    boot: Option<Duration>,
}

/// What is free where a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    bytes: u64,
    /// Files; absent where the file system makes them as they are needed.
    files: Option<u64>,
}

impl Reading {
    pub(in crate::reconcile) fn of(directories: &[PathBuf]) -> Self {
        let room = |path: &PathBuf| (path.clone(), room(path));
        Self { directories: directories.iter().map(room).collect(), boot: boot() }
    }
}

/// The agent may take what is reserved for root.
fn room(path: &Path) -> io::Result<Room> {
    let found = statvfs(path)?;
    let bytes = found.blocks_free().saturating_mul(found.fragment_size());
    Ok(Room { bytes, files: (found.files() > 0).then(|| found.files_free()) })
}

fn boot() -> Option<Duration> {
    let of = |clock| clock_gettime(clock).ok().map(Duration::from);
    of(ClockId::CLOCK_REALTIME)?.checked_sub(of(ClockId::CLOCK_BOOTTIME)?)
}

/// What is wrong with so much room, if anything.
fn lack(room: Room) -> Option<String> {
    match room {
        Room { files: Some(0), .. } => Some("no file can be made there".to_owned()),
        Room { bytes, .. } if bytes < ROOM => Some(format!("{} KiB are free", bytes / 1024)),
        Room { .. } => None,
    }
}

/// By how much the clock was set, if it was.
fn jump(before: Duration, now: Duration) -> Option<String> {
    let (forwards, backwards) = (now.saturating_sub(before), before.saturating_sub(now));
    if forwards.max(backwards) < JUMP {
        return None;
    }
    let (by, how) = if now > before { (forwards, "forwards") } else { (backwards, "backwards") };
    Some(format!("somebody set the clock {:.1} s {how}; what runs does not go by it", by.as_secs_f64()))
}

/// Which limit it is that leaves no descriptors.
fn exhausted(error: &io::Error) -> Option<String> {
    match error.raw_os_error()? {
        libc::EMFILE => {
            let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
            Some(format!(
                "the agent has all {limit} descriptors that RLIMIT_NOFILE allows: raise LimitNOFILE= of its unit; \
                 connections go on, new ones wait to be accepted"
            ))
        }
        libc::ENFILE => Some("the host has all descriptors that fs.file-max allows: raise it".to_owned()),
        _ => None,
    }
}

impl Reconciler {
    pub(in crate::reconcile) fn note_resources(&mut self, reading: Reading) {
        for (path, room) in reading.directories {
            let (subject, lack) = (path.display().to_string(), room.ok().and_then(lack));
            match lack {
                Some(lack) => {
                    let reason = format!(
                        "{subject} is full ({lack}): no specification can be taken in until there is room; what runs goes on"
                    );
                    self.begin_standing(Whose::Agent, DriftCause::Disk, &subject, &reason);
                }
                None => self.end_standing(DriftCause::Disk, &subject),
            }
        }
        let before = std::mem::replace(&mut self.drift.boot, reading.boot);
        if let Some(reason) = before.zip(reading.boot).and_then(|(before, now)| jump(before, now)) {
            self.note_drift(&Whose::Agent, DriftCause::Clock, &reason);
        }
    }

    /// `looked`: whether what was to be read of the host could be.
    pub(in crate::reconcile) fn note_descriptors<T>(&mut self, looked: &io::Result<T>) {
        const SUBJECT: &str = "agent";
        match looked.as_ref().err().and_then(exhausted) {
            Some(reason) => self.begin_standing(Whose::Agent, DriftCause::Descriptors, SUBJECT, &reason),
            None => self.end_standing(DriftCause::Descriptors, SUBJECT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bytes_and_files() {
        let check = |bytes, files, expected: Option<&str>| {
            assert_eq!(lack(Room { bytes, files }).as_deref(), expected, "{bytes} {files:?}");
        };
        check(ROOM, Some(1), None);
        check(ROOM, None, None);
        check(ROOM - 1024, Some(1), Some("511 KiB are free"));
        check(0, None, Some("0 KiB are free"));
        check(u64::MAX, Some(0), Some("no file can be made there"));
        assert!(room(Path::new("/proc/self")).is_ok() && room(Path::new("/no/such/directory")).is_err());
    }

    #[test]
    fn a_clock_that_is_slewed_is_not_set() {
        let (base, second) = (Duration::from_secs(1_700_000_000), Duration::from_secs(1));
        let check = |before, now, expected: Option<&str>| {
            let found = jump(before, now);
            assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
            assert!(expected.is_none_or(|text| found.is_some_and(|found| found.contains(text))));
        };
        check(base, base, None);
        check(base, base + second, None);
        check(base + second, base, None);
        check(base, base + 3600 * second, Some("3600.0 s forwards"));
        check(base, base - 5 * second, Some("5.0 s backwards"));
    }

    #[test]
    fn only_a_lack_of_descriptors_is_one() {
        let of = |code| exhausted(&io::Error::from_raw_os_error(code));
        assert!(of(libc::EMFILE).is_some_and(|reason| reason.contains("RLIMIT_NOFILE")));
        assert!(of(libc::ENFILE).is_some_and(|reason| reason.contains("fs.file-max")));
        assert_eq!(of(libc::ENOENT), None);
    }
}
