//! The parts that a slot's living shards have: the one that connections go to, one that comes up beside it, one that was
//! taken over from. PURE.

use std::{
    sync::mpsc::{Receiver, TryRecvError},
    time::Instant,
};

use sherd_lb::relay::Drained;

use super::{
    direct::{Generation, handshake_end},
    group::{Live, SlotRun},
    inspect::Reach,
};
use crate::{
    runtime::{ObservedShard, ShardId, ShardState},
    spec::{GroupSpec, PathChoice, SpecHash},
};

/// A shard that was taken over from and finishes its connections.
#[derive(Debug)]
pub(super) struct Former {
    pub(super) id: ShardId,
    pub(super) generation: Generation,
    pub(super) pid: u32,
    /// When what is left of them is closed.
    pub(super) until: Instant,
    /// The worker relays nothing to it any more.
    pub(super) relayed_done: bool,
    /// Tells when that is so; absent for one of which a former agent knew.
    pub(super) drained: Option<Receiver<Drained>>,
    /// Connections that it has accepted itself, as last counted.
    pub(super) direct_open: u64,
    /// They are not counted before that; see [`SlotRun::direct_counted_from`].
    pub(super) counted_from: Instant,
    /// For its inner doors.
    pub(super) reach: Option<Reach>,
}

/// Which living shard has which part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Roles {
    /// Connections go to it, or will: the slot's shard.
    pub(super) primary: Option<ShardId>,
    /// It is to take over from that one.
    pub(super) next: Option<ShardId>,
    /// It was taken over from.
    pub(super) former: Option<ShardId>,
}

/// A living shard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    id: ShardId,
    generation: Generation,
    /// Of the specification that the slot is to run.
    wanted: bool,
    /// Steering sends the slot's connections to its listener.
    pointed_at: bool,
    /// It was told to end.
    ends: bool,
}

/// Who has a part keeps it while it lives. When the primary has ended, the one beside it comes in its place: also the former
/// one, which serves better than none. Where nothing is known, as by a new agent, the one that steering points at serves; on
/// relay, where nothing tells, the older one, and the newer one takes over once more.
fn assign(living: &[Candidate], known: &Roles) -> Roles {
    let find = |id: &Option<ShardId>| id.as_ref().and_then(|id| living.iter().find(|shard| shard.id == *id));
    let primary = find(&known.primary)
        .or_else(|| find(&known.next))
        .or_else(|| find(&known.former).filter(|shard| !shard.ends))
        .or_else(|| living.iter().filter(|shard| shard.pointed_at).max_by_key(|shard| shard.generation))
        .or_else(|| living.iter().min_by_key(|shard| (shard.ends, shard.generation)));
    let Some(primary) = primary else { return Roles::default() };
    let others = || living.iter().filter(|shard| shard.id != primary.id);
    let beside = |id| find(id).filter(|shard| shard.id != primary.id);
    let comes_up = || others().filter(|shard| shard.wanted && !shard.ends).max_by_key(|shard| shard.generation);
    let next = beside(&known.next).or_else(|| if primary.wanted { None } else { comes_up() });
    let is_next = |shard: &Candidate| next.is_some_and(|next| next.id == shard.id);
    let goes = || others().filter(|shard| !is_next(shard)).max_by_key(|shard| shard.generation);
    let former = beside(&known.former).filter(|shard| !is_next(shard)).or_else(goes);
    let id = |shard: &Candidate| shard.id.clone();
    Roles { primary: Some(id(primary)), next: next.map(id), former: former.map(id) }
}

/// The specification that a shard counts as being of. Who asks for `direct` gets shards that can be.
pub(super) fn effective_spec(shard: &ObservedShard, spec: &GroupSpec) -> SpecHash {
    let lacks_shim = spec.path == PathChoice::Direct && spec.is_behind_shim() && !shard.behind_shim;
    if lacks_shim { SpecHash(String::new()) } else { shard.spec.clone() }
}

fn living_pid(shard: &ObservedShard) -> Option<u32> {
    match shard.state {
        ShardState::Running { pid, .. } | ShardState::Paused { pid } => Some(pid),
        _ => None,
    }
}

impl SlotRun {
    /// Gives each living shard its part. What was known of those that keep theirs is kept; who has a new one is yet to be
    /// probed. `points_at` tells whether steering sends the slot's connections to a generation's listener.
    pub(super) fn assign_roles(
        &mut self,
        spec: &GroupSpec,
        hash: &SpecHash,
        points_at: impl Fn(Generation) -> bool,
        now: Instant,
    ) {
        let living = self.shards.iter().filter(|shard| living_pid(shard).is_some()).map(|shard| Candidate {
            id: shard.id.clone(),
            generation: shard.generation,
            wanted: effective_spec(shard, spec) == *hash,
            pointed_at: points_at(shard.generation),
            ends: self.stopping.as_ref() == Some(&shard.id),
        });
        let roles = assign(&living.collect::<Vec<_>>(), &self.roles);
        let mut lives: Vec<Live> = self.live.take().into_iter().chain(self.next.take()).collect();
        let runs = |live: &Live| {
            let state = self.shards.iter().find(|shard| shard.id == live.id).map(|shard| shard.state);
            matches!(state, Some(ShardState::Running { pid, .. }) if pid == live.pid)
        };
        lives.retain(runs);
        let mut take = |id: &Option<ShardId>| {
            let at = lives.iter().position(|live| Some(&live.id) == id.as_ref())?;
            Some(lives.swap_remove(at))
        };
        (self.live, self.next) = (take(&roles.primary), take(&roles.next));
        if self.former.as_ref().map(|former| &former.id) != roles.former.as_ref() {
            let found = self.shards.iter().find(|shard| Some(&shard.id) == roles.former.as_ref());
            self.former = found.and_then(|shard| self.found_former(shard, now, now + spec.drain));
        }
        self.roles = roles;
    }

    /// A shard that goes, of which nothing is known but that it lives. Connections that were handed over may be to it.
    fn found_former(&self, shard: &ObservedShard, now: Instant, until: Instant) -> Option<Former> {
        Some(Former {
            id: shard.id.clone(),
            generation: shard.generation,
            pid: living_pid(shard)?,
            until,
            relayed_done: !self.may_relay_handed_over(),
            drained: None,
            // Whoever may have accepted by itself is asked, also where its listen(2) calls can't be answered any more.
            direct_open: u64::from(shard.behind_shim),
            counted_from: handshake_end(now),
            reach: None,
        })
    }

    /// The shard that came up is the slot's from now on, and the one that was it finishes its connections.
    pub(super) fn hand_over(&mut self, drained: Receiver<Drained>, now: Instant, until: Instant) {
        let Some(next) = self.next.take() else { return };
        self.roles = Roles { primary: Some(next.id.clone()), next: None, former: self.roles.primary.take() };
        let before = self.shards.iter().find(|shard| Some(&shard.id) == self.roles.former.as_ref());
        let former = before.and_then(|shard| self.found_former(shard, now, until));
        let reach = self.live.as_ref().and_then(|live| live.reach.clone());
        self.former = former.map(|former| Former { relayed_done: false, drained: Some(drained), reach, ..former });
        self.live = Some(next);
    }

    /// Looks whether the worker still relays anything to the shard that was taken over from.
    pub(super) fn tend_former(&mut self) {
        let may_relay = self.may_relay_handed_over();
        let Some(former) = &mut self.former else { return };
        former.relayed_done |= match &former.drained {
            // A worker that is gone has closed everything too.
            Some(drained) => !matches!(drained.try_recv(), Err(TryRecvError::Empty)),
            None => !may_relay,
        };
    }

    fn may_relay_handed_over(&self) -> bool {
        self.relayed() > 0 && self.worker.as_ref().is_some_and(|worker| worker.stats().resumed.get() > 0)
    }

    /// What is known of the running shard of this name that serves or comes up.
    pub(super) fn live_of(&self, shard: &ShardId) -> Option<&Live> {
        self.live.iter().chain(&self.next).find(|live| live.id == *shard)
    }

    pub(super) fn live_of_mut(&mut self, shard: &ShardId) -> Option<&mut Live> {
        self.live.iter_mut().chain(&mut self.next).find(|live| live.id == *shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shard's name is its generation: `w` one that is wanted, `o` another, `p` behind it is pointed at, `e` it ends.
    fn candidate(text: &str) -> Candidate {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        Candidate {
            generation: digits.parse().expect("a generation"),
            id: ShardId(digits),
            wanted: text.contains('w'),
            pointed_at: text.contains('p'),
            ends: text.contains('e'),
        }
    }

    /// `primary/next/former`, with `-` for none.
    fn roles(text: &str) -> Roles {
        let mut parts = text.split('/').map(|part| (part != "-").then(|| ShardId(part.to_owned())));
        let mut part = || parts.next().expect("three parts");
        Roles { primary: part(), next: part(), former: part() }
    }

    fn check(living: &str, known: &str, expected: &str) {
        let living: Vec<Candidate> = living.split_whitespace().map(candidate).collect();
        assert_eq!(assign(&living, &roles(known)), roles(expected), "{living:?} after {known}");
    }

    #[test]
    fn the_one_that_serves_goes_on_while_another_comes_up() {
        check("", "-/-/-", "-/-/-");
        check("1w", "-/-/-", "1/-/-");
        check("1o 2w", "1/-/-", "1/2/-");
        check("1o 2w", "1/2/-", "1/2/-");
        check("1o 2w", "2/-/1", "2/-/1");
        // Back to what ran before, before it has ended: it takes over again.
        check("1w 2o", "2/-/1", "2/1/-");
        check("1we 2o", "2/-/1", "2/-/1");
        // What came up is not wanted any more.
        check("1w 2o", "1/2/-", "1/2/-");
    }

    #[test]
    fn when_it_ends_whoever_is_there_takes_its_place() {
        check("2w", "1/2/-", "2/-/-");
        check("1o", "2/-/1", "1/-/-");
        check("1oe 3w", "2/-/1", "3/-/1");
        check("1o 3w", "2/3/1", "3/-/1");
    }

    #[test]
    fn a_new_agent_goes_by_what_steering_says_or_else_by_age() {
        check("1op 2w", "-/-/-", "1/2/-");
        check("1o 2wp", "-/-/-", "2/-/1");
        // Killed between two addresses.
        check("1op 2wp", "-/-/-", "2/-/1");
        check("1o 2w", "-/-/-", "1/2/-");
        check("1w 2o", "-/-/-", "1/-/2");
        check("1w 2w", "-/-/-", "1/-/2");
        check("1o 2o 3w", "-/-/-", "1/3/2");
    }
}
