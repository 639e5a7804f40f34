//! How a shard has ended, and whether somebody else ended it: from what the engine says of it now, and from what was
//! heard before. PURE.

use std::time::{Duration, Instant};

use super::cause::DriftCause;
use crate::runtime::ShardState;

/// Signals that end a program which doesn't mind them, and that it doesn't send to itself when it fails.
const ENDING: [(i32, &str); 5] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGTERM, "SIGTERM"),
];
/// An end that comes later than this is not what was asked for then: a signal may only have it read its settings again.
const HOLDS: Duration = Duration::from_secs(60);

/// What somebody had the engine do to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reconcile) enum Act {
    /// Send it this signal, as `docker stop` and `docker kill` do.
    Signal(i32),
    /// Stop it.
    Stop,
}

/// An [`Act`], and when it was heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reconcile) struct HeardAct {
    pub(in crate::reconcile) act: Act,
    pub(in crate::reconcile) at: Instant,
}

/// How a shard has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::reconcile) struct End {
    /// Who did it, unless it was the program itself.
    pub(in crate::reconcile) cause: Option<DriftCause>,
    /// One clause, for the operator.
    pub(in crate::reconcile) text: String,
}

/// What is known beside the shard's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reconcile) struct Circumstances {
    /// What was last heard of it.
    pub(in crate::reconcile) heard: Option<HeardAct>,
    /// Its engine did not answer until now.
    pub(in crate::reconcile) engine_was_away: bool,
    pub(in crate::reconcile) now: Instant,
}

/// How a shard in this state has ended, if it has; `None` for the state: it is no more.
pub(in crate::reconcile) fn end_of(state: Option<ShardState>, known: Circumstances) -> Option<End> {
    let by = |cause, text: String| Some(End { cause: Some(cause), text });
    let (code, oom) = match state {
        Some(ShardState::Running { .. } | ShardState::Paused { .. }) => return None,
        Some(ShardState::Removing) | None => return by(DriftCause::Removed, "somebody removed it".to_owned()),
        Some(ShardState::Exited { code, oom }) => (code, oom),
        Some(ShardState::Dead | ShardState::Created) => (None, false),
    };
    let how = code.map_or_else(|| "it ended".to_owned(), |code| format!("it exited with code {code}"));
    if oom {
        return by(DriftCause::OutOfMemory, "the kernel killed it for want of memory".to_owned());
    }
    match known.heard.filter(|heard| known.now.duration_since(heard.at) < HOLDS).map(|heard| heard.act) {
        Some(Act::Signal(signal)) if name_of(signal).is_some() => {
            let name = name_of(signal).unwrap_or_default();
            return by(DriftCause::Stopped, format!("somebody had the engine send it {name}: {how}"));
        }
        Some(Act::Stop) => return by(DriftCause::Stopped, format!("somebody had the engine stop it: {how}")),
        Some(Act::Signal(_)) | None => {}
    }
    if known.engine_was_away {
        return by(DriftCause::Engine, format!("{how} while the engine was away"));
    }
    match code.and_then(|code| name_of(code - 128)) {
        Some(name) => by(DriftCause::Killed, format!("{how}: {name}, which somebody sent it")),
        None => Some(End { cause: None, text: how }),
    }
}

fn name_of(signal: i32) -> Option<&'static str> {
    ENDING.iter().find(|(number, _)| *number == signal).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: (Option<Act>, bool) = (None, false);

    fn check(state: Option<ShardState>, (act, engine_was_away): (Option<Act>, bool), expected: (&str, &str)) {
        let now = Instant::now();
        let heard = act.map(|act| HeardAct { act, at: now });
        let end = end_of(state, Circumstances { heard, engine_was_away, now }).expect("it has ended");
        let cause = end.cause.map_or("", DriftCause::name);
        assert_eq!((cause, end.text.as_str()), expected, "{state:?} {act:?} {engine_was_away}");
    }

    fn exited(code: i32) -> Option<ShardState> {
        Some(ShardState::Exited { code: Some(code), oom: false })
    }

    #[test]
    fn ends_are_named() {
        check(exited(3), NOTHING, ("", "it exited with code 3"));
        check(exited(0), NOTHING, ("", "it exited with code 0"));
        check(exited(139), NOTHING, ("", "it exited with code 139"));
        check(exited(137), NOTHING, ("killed", "it exited with code 137: SIGKILL, which somebody sent it"));
        check(exited(143), NOTHING, ("killed", "it exited with code 143: SIGTERM, which somebody sent it"));
        check(Some(ShardState::Dead), NOTHING, ("", "it ended"));
        check(Some(ShardState::Exited { code: None, oom: false }), NOTHING, ("", "it ended"));
        check(None, NOTHING, ("removed", "somebody removed it"));
        check(Some(ShardState::Removing), NOTHING, ("removed", "somebody removed it"));
    }

    #[test]
    fn what_was_heard_says_who() {
        let (term, hup) = (Act::Signal(libc::SIGTERM), Act::Signal(libc::SIGUSR1));
        check(
            exited(0),
            (Some(term), false),
            ("stopped", "somebody had the engine send it SIGTERM: it exited with code 0"),
        );
        check(
            exited(0),
            (Some(Act::Stop), true),
            ("stopped", "somebody had the engine stop it: it exited with code 0"),
        );
        check(exited(0), (Some(hup), false), ("", "it exited with code 0"));
        check(exited(137), (None, true), ("engine", "it exited with code 137 while the engine was away"));
        let oom = Some(ShardState::Exited { code: Some(137), oom: true });
        check(oom, (Some(Act::Stop), true), ("oom", "the kernel killed it for want of memory"));
        check(None, (Some(term), false), ("removed", "somebody removed it"));
    }

    #[test]
    fn what_lives_has_not_ended_and_what_was_heard_long_ago_is_forgotten() {
        let now = Instant::now();
        let known = |age| Circumstances {
            heard: Some(HeardAct { act: Act::Signal(libc::SIGTERM), at: now }),
            engine_was_away: false,
            now: now + age,
        };
        assert_eq!(end_of(Some(ShardState::Paused { pid: 1 }), known(Duration::ZERO)), None);
        assert_eq!(end_of(exited(1), known(HOLDS)).and_then(|end| end.cause), None);
        assert_eq!(end_of(exited(1), known(Duration::ZERO)).and_then(|end| end.cause), Some(DriftCause::Stopped));
    }
}
