//! What a group is, ten times a second: a thread that asks its agent, and what can be told of it afterwards.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::contestant::Api;

const BETWEEN: Duration = Duration::from_millis(100);
/// A run has an end; this is for one that forgets.
const MOST_LOOKS: usize = 1_000_000;

/// One look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) at: Duration,
    /// The agent's process; None while nobody answers.
    pub(super) agent: Option<i32>,
    /// By slot.
    pub(super) slots: Vec<SlotLook>,
}

/// One slot at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotLook {
    pub(super) process: Option<i32>,
    /// It gets connections, and there is no other shard beside it.
    pub(super) is_well: bool,
}

/// The thread; ends when dropped.
pub(super) struct Watch {
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Look>>>,
}

impl Watch {
    pub(super) fn start(api: Api, group: String, start: Instant) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stopped);
        let thread = thread::spawn(move || {
            let mut looks = Vec::new();
            while !told.load(Ordering::Relaxed) && looks.len() < MOST_LOOKS {
                looks.push(look(&api, &group, start));
                thread::sleep(BETWEEN);
            }
            looks
        });
        Self { stopped, thread: Some(thread) }
    }

    pub(super) fn finish(mut self) -> Vec<Look> {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

fn look(api: &Api, group: &str, start: Instant) -> Look {
    let status = api.status().ok();
    let at = start.elapsed();
    let agent = status.as_ref().map(|status| status.process().as_raw());
    let group = status.and_then(|status| status.into_group(group));
    let slots = group.map(|group| group.slots).unwrap_or_default();
    let slot = |slot: &crate::contestant::SlotState| SlotLook {
        process: slot.process().map(nix::unistd::Pid::as_raw),
        is_well: slot.ready && slot.is_settled() && slot.process().is_some(),
    };
    Look { at, agent, slots: slots.iter().map(slot).collect() }
}

/// When the group of `slots` slots was whole again after `since`, with none of `gone` (a shard's or the agent's process) there.
pub(super) fn whole_after(looks: &[Look], since: Duration, slots: usize, gone: &[i32]) -> Option<Duration> {
    let is_gone = |process: Option<i32>| process.is_none_or(|process| !gone.contains(&process));
    let is_whole = |look: &&Look| {
        let all_well = look.slots.len() == slots && look.slots.iter().all(|slot| slot.is_well && is_gone(slot.process));
        look.at > since && look.agent.is_some() && is_gone(look.agent) && all_well
    };
    looks.iter().find(is_whole).map(|look| look.at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_whole_when_all_are_well_and_none_is_the_old_one() {
        let look = |at: u64, agent: Option<i32>, slots: &[(i32, bool)]| Look {
            at: Duration::from_millis(at),
            agent,
            slots: slots.iter().map(|(pid, is_well)| SlotLook { process: Some(*pid), is_well: *is_well }).collect(),
        };
        let looks = [
            look(0, Some(1), &[(10, true), (11, true)]),
            look(100, Some(1), &[(10, true), (11, true)]),
            look(200, Some(1), &[(10, true), (11, false)]),
            look(300, None, &[]),
            look(400, Some(2), &[(10, true), (12, true)]),
        ];
        let check = |since: u64, gone: &[i32], expected: Option<u64>| {
            let found = whole_after(&looks, Duration::from_millis(since), 2, gone);
            assert_eq!(found, expected.map(Duration::from_millis), "{since} {gone:?}");
        };
        check(50, &[], Some(100));
        check(50, &[11], Some(400));
        check(50, &[1], Some(400));
        check(150, &[], Some(400));
        check(50, &[10], None);
        assert_eq!(whole_after(&looks, Duration::ZERO, 3, &[]), None);
    }
}
