//! What must hold in every world after every turn of the loop, and where it must end up once nothing fails any more. Looks at the loop's
//! state and at the world's; changes neither.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use sherd_topology::{
    model::CpuSet,
    plan::{GroupName, Sharing, SlotId},
};

use super::{
    front::Kernel,
    script::{Wish, works},
    shards::{Simulated, address_of},
    state::{World, with},
};
use crate::{
    reconcile::{
        Reconciler,
        group::{Group, Intent},
    },
    runtime::{Operation, ShardId, ShardKey},
    spec::Order,
};

/// How long the table may name a shard that has ended, while the engine and another shard are there: the loop looks at
/// everything each 30 s, whatever it was told.
const STALE: Duration = Duration::from_secs(45);
/// Changes of containers in [`CALLS_TIME`]: the back-off of eight slots that fail all the time gives less than half.
const MAX_CALLS: usize = 400;
const CALLS_TIME: Duration = Duration::from_secs(10);
/// After trouble with the holder it has everything again: the loop asks every 5 s whether it is there.
const HOLDER_REPAIR: Duration = Duration::from_secs(12);
/// A shard counts as given up of the loop's own will when the loop has known for so long that it is ready.
const KNOWN_READY: Duration = Duration::from_secs(2);

/// What the laws remember.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) turns: u64,
    /// Connections that a slot still has since it was taken out.
    open_until: BTreeMap<(SocketAddr, u16), Duration>,
    stale_since: BTreeMap<(SocketAddr, u16), Duration>,
    named: BTreeMap<SocketAddr, BTreeSet<u16>>,
    /// Slots that were given up for a rollout, and aren't back.
    given_up: BTreeMap<SocketAddr, BTreeSet<u16>>,
    left_otherwise: BTreeMap<SocketAddr, Duration>,
    calls: VecDeque<Duration>,
    pub(super) holder_trouble: Duration,
    /// What may be stored of a group: its text, or that it is gone.
    may_be: BTreeMap<String, Vec<Option<String>>>,
    /// Every text that was ever asked for, by group.
    asked: BTreeSet<(String, String)>,
    /// The agent was killed when it may have gone back to a specification and not noted yet that it did.
    may_have_gone_back: bool,
    /// This agent could not note something of a rollout.
    is_unnoted: bool,
    /// Orders and parallelism that its specifications had.
    orders: BTreeMap<String, (bool, u32)>,
}

impl Seen {
    /// Of a slot at an address.
    pub(super) fn open_connections(&self, address: SocketAddr, slot: u16, now: Duration) -> u32 {
        u32::from(self.open_until.get(&(address, slot)).is_some_and(|until| now < *until))
    }

    /// An operator has asked; whether it is going to be so is open.
    pub(super) fn note_asked(&mut self, group: &str, wish: &Wish) {
        let may_be = self.may_be.entry(group.to_owned()).or_insert_with(|| vec![None]);
        match wish {
            Wish::Apply(text) => {
                may_be.push(Some(text.clone()));
                self.asked.insert((group.to_owned(), text.clone()));
            }
            Wish::Stop { purge: true } => may_be.push(None),
            Wish::Stop { purge: false } | Wish::Undo | Wish::Pause | Wish::Resume => {}
        }
    }

    /// A rollback writes the specification first, and then what it is.
    pub(super) fn note_death(&mut self, point: &str) {
        const BETWEEN: [&str; 4] = ["store.put.written", "store.put.after", "apply.stored", "rollout.put.before"];
        self.may_have_gone_back = BETWEEN.contains(&point) || self.is_unnoted;
        self.is_unnoted = false;
    }

    /// The disk had no room for it.
    pub(super) fn note_unwritten(&mut self, path: &Path) {
        self.is_unnoted |= path.parent().is_some_and(|directory| directory.ends_with("rollouts"));
    }

    /// It was told that it is so.
    pub(super) fn note_acknowledged(&mut self, group: &str, wish: &Wish) {
        let now = match wish {
            Wish::Apply(text) => Some(text.clone()),
            Wish::Stop { purge: true } => None,
            _ => return,
        };
        let Some(may_be) = self.may_be.get_mut(group) else { return };
        match may_be.iter().position(|known| *known == now) {
            Some(at) => drop(may_be.drain(..at)),
            // Asked before something else that was done meanwhile.
            None => may_be.push(now),
        }
    }
}

impl World {
    pub(super) fn note_call(&mut self, operation: Operation, id: &ShardId) {
        let now = self.now();
        let calls = &mut self.seen.calls;
        calls.push_back(now);
        while calls.front().is_some_and(|at| *at + CALLS_TIME < now) {
            calls.pop_front();
        }
        if calls.len() > MAX_CALLS {
            self.note_broken(&format!("{operation} {id}: more than {MAX_CALLS} changes in {CALLS_TIME:?}"));
        }
    }

    /// A table names a slot from now on, or doesn't any more.
    pub(super) fn note_named(&mut self, address: SocketAddr, slot: u16, is_named: bool) {
        let group = Kernel::group_of(address);
        self.tell(|| format!("{address}: slot {slot} is {}", if is_named { "in" } else { "out" }));
        if !is_named {
            let until = self.now() + self.chance.millis(0..2_500);
            self.seen.open_until.insert((address, slot), until);
            return;
        }
        let Some(worker) = self.kernel.workers.of(&group, slot).filter(|worker| worker.is_alive && !worker.is_stranded)
        else {
            return;
        };
        match worker.backend.map(|backend| self.shards.at(backend).map(|(_, shard)| shard.was_shown)) {
            None => self.note_broken(&format!("{group}/{slot} is taken in, and its worker has nowhere to connect")),
            Some(Some(false)) => {
                self.note_broken(&format!("{group}/{slot} is taken in, and its shard was never ready"));
            }
            // It has ended just now.
            Some(None | Some(true)) => {}
        }
    }

    pub(super) fn note_started(&mut self, key: &ShardKey) {
        let living = self.shards.living(key.group.as_str()).filter(|(_, shard)| shard.key == *key).count();
        let overlaps = self.seen.orders.get(key.group.as_str()).is_none_or(|(overlaps, _)| *overlaps);
        let most = if overlaps { 2 } else { 1 };
        if living > most {
            self.note_broken(&format!("{key} has {living} living shards, and may have {most}"));
        }
    }

    /// The agent has a shard stopped.
    pub(super) fn note_stop(&mut self, id: &ShardId) {
        let Some(shard) = self.shards.all.get(id) else { return };
        let (group, slot) = (shard.key.group.to_string(), u16::try_from(shard.key.slot.0).unwrap_or(u16::MAX));
        let backend = self.kernel.workers.of(&group, slot).and_then(|worker| worker.backend);
        let fronts = self.kernel.fronts.iter().filter(|(address, _)| Kernel::group_of(**address) == group);
        let is_named = fronts.into_iter().any(|(_, bound)| bound.named.contains(&slot));
        if is_named && backend.is_some() && backend == shard.pid().map(address_of) {
            self.note_broken(&format!("{id} of {group}/{slot} is stopped while connections go to it"));
        }
    }

    fn is_ready(&self, group: &str, slot: u16) -> bool {
        let backend = self.kernel.workers.of(group, slot).and_then(|worker| worker.backend);
        let shard = backend.and_then(|backend| self.shards.at(backend));
        shard.is_some_and(|(_, shard)| shard.is_ready(self.now()))
    }
}

/// After a turn.
pub(super) fn check(reconciler: &Reconciler) {
    let mut broken = Vec::new();
    with(|world| world.seen.turns += 1);
    broken.extend(no_cpu_twice(reconciler));
    if reconciler.counters.unsettled > 0 {
        broken.push("the slots do not settle".to_owned());
    }
    with(|world| {
        for (name, group) in &reconciler.groups {
            broken.extend(is_as_asked(world, name, group));
            let planned = group.planned().len();
            for address in group.fronts.addresses() {
                broken.extend(nobody_stale(world, name, address));
                broken.extend(few_are_given_up(world, name, group, (address, planned)));
            }
        }
        let bound = &world.kernel.fronts;
        world.seen.named.retain(|address, _| bound.contains_key(address));
        world.seen.given_up.retain(|address, _| bound.contains_key(address));
        broken.extend(holder_has_all(world));
        broken.into_iter().for_each(|what| world.note_broken(&what));
    });
}

fn no_cpu_twice(reconciler: &Reconciler) -> Option<String> {
    let exclusive = |group: &&Group| group.spec.layout.sharing == Sharing::Exclusive;
    let mut taken = CpuSet::default();
    for group in reconciler.groups.values().filter(exclusive) {
        for slot in group.planned() {
            if slot.cpus.iter().any(|cpu| taken.contains(cpu)) {
                return Some(format!("CPUs {} of {}/{} are another slot's too", slot.cpus, group.spec.name, slot.id));
            }
            taken.extend(slot.cpus.iter());
        }
    }
    None
}

/// What an operator was told is so, until somebody asks otherwise; or the loop went back to what ran before.
fn is_as_asked(world: &mut World, name: &GroupName, group: &Group) -> Option<String> {
    let orders = world.seen.orders.entry(name.to_string()).or_insert((false, 1));
    orders.0 |= group.spec.rollout.order == Order::StartFirst;
    orders.1 = orders.1.max(group.spec.rollout.parallelism);
    let may_be = world.seen.may_be.entry(name.to_string()).or_default();
    let text = Some(group.text.clone());
    if may_be.contains(&text) || matches!(group.intent, Intent::Purge) {
        return None;
    }
    let was_asked_for = world.seen.asked.contains(&(name.to_string(), group.text.clone()));
    if group.rollout.record.is_some() || (world.seen.may_have_gone_back && was_asked_for) {
        // Undone, or rolled back.
        may_be.push(text);
        return None;
    }
    Some(format!("{name} has a specification that nobody asked for"))
}

/// A new agent has what was acknowledged.
pub(super) fn check_adopted(reconciler: &Reconciler) {
    with(|world| {
        let lost: Vec<String> = world
            .seen
            .may_be
            .iter()
            .filter(|(name, may_be)| {
                let is_there = reconciler.groups.keys().any(|known| known.as_str() == **name);
                !is_there && !may_be.contains(&None)
            })
            .map(|(name, _)| format!("{name} was acknowledged, and is forgotten"))
            .collect();
        lost.into_iter().for_each(|what| world.note_broken(&what));
        world.seen.stale_since.clear();
        world.seen.given_up.clear();
        world.seen.named.clear();
    });
}

/// The table names no shard for long that isn't there, while another is.
fn nobody_stale(world: &mut World, name: &GroupName, address: SocketAddr) -> Option<String> {
    let named = world.kernel.fronts.get(&address)?.named.clone();
    let ready: BTreeSet<u16> = named.iter().copied().filter(|slot| world.is_ready(name.as_str(), *slot)).collect();
    let (now, excused) = (world.now(), ready.is_empty() || world.faults.engine_is_away);
    let mut found = None;
    for slot in &named {
        let key = (address, *slot);
        if excused || ready.contains(slot) {
            world.seen.stale_since.remove(&key);
        } else if now > *world.seen.stale_since.entry(key).or_insert(now) + STALE {
            found = Some(format!("{name}/{slot} is in for {STALE:?}, and its shard is not ready"));
        }
    }
    world.seen.stale_since.retain(|(of, slot), _| *of != address || named.contains(slot));
    found
}

/// Of shards that serve, no more are given up at once than the rollout may, and never the last one.
fn few_are_given_up(
    world: &mut World,
    name: &GroupName,
    group: &Group,
    (address, planned): (SocketAddr, usize),
) -> Option<String> {
    let now = world.now();
    let named = world.kernel.fronts.get(&address)?.named.clone();
    let before = world.seen.named.insert(address, named.clone()).unwrap_or_default();
    let mut given_up = world.seen.given_up.remove(&address).unwrap_or_default();
    let excused = |slot: &u16| {
        let id = SlotId(u32::from(*slot));
        group.place(id).is_none() || group.rollout.machine.has_given_up()
    };
    given_up.retain(|slot| !named.contains(slot) && !excused(slot));
    let runs = matches!(group.intent, Intent::Run);
    let mut found = None;
    for slot in before.difference(&named).filter(|slot| runs && !excused(slot)) {
        // A former one that is drained doesn't count: the slot's connections go to its successor.
        let went_to = group.slots.get(&SlotId(u32::from(*slot))).and_then(|run| run.backend.as_ref());
        let served = |id: &ShardId, shard: &Simulated| {
            let known = shard.shown_since.is_some_and(|since| since + KNOWN_READY <= now);
            let known = known && shard.frozen_at.is_none_or(|at| at + CALLS_TIME <= now);
            let is_of_slot = shard.key.slot.0 == u32::from(*slot) && went_to.is_none_or(|to| to == id);
            is_of_slot && shard.is_ready(now) && known
        };
        if !world.shards.living(name.as_str()).any(|(id, shard)| served(id, shard)) {
            world.seen.left_otherwise.insert(address, now);
            continue;
        }
        given_up.insert(*slot);
        let is_calm = world.seen.left_otherwise.get(&address).is_none_or(|at| *at + CALLS_TIME < now);
        if named.is_empty() && planned > 1 && is_calm {
            found = Some(format!("{name}/{slot} is given up, and was the last one that served"));
        }
    }
    let most = world.seen.orders.get(name.as_str()).map_or(1, |(_, parallelism)| *parallelism as usize);
    if given_up.len() > most {
        found = Some(format!("{name}: {given_up:?} were given up at once, and may be {most}"));
    }
    if runs {
        world.seen.given_up.insert(address, given_up);
    }
    found
}

/// Whenever the agent dies, a new connection waits in a listener that the holder has.
fn holder_has_all(world: &World) -> Option<String> {
    if world.holder.is_away || world.now() < world.seen.holder_trouble + HOLDER_REPAIR {
        return None;
    }
    let mut needed = world.kernel.fronts.iter().flat_map(|(address, bound)| Kernel::needed(*address, bound));
    let missing = needed.find(|name| !world.holder.names.contains(name))?;
    Some(format!("the holder doesn't have {missing}"))
}

/// Nothing fails any more: whether all is as the specifications say, or what isn't yet.
pub(super) fn settled(reconciler: &Reconciler) -> Result<(), String> {
    with(|world| {
        for (name, may_be) in &world.seen.may_be {
            let group = reconciler.groups.get(&name.parse::<GroupName>().expect("a name"));
            match group {
                // Purged, or never told to be there.
                None if may_be.contains(&None) => {}
                None => return Err(format!("{name} is not there")),
                Some(group) => group_settled(world, name, group)?,
            }
        }
        let is_wanted = |address: &SocketAddr| {
            let mut wanted = reconciler.groups.values().filter(|group| matches!(group.intent, Intent::Run));
            wanted.any(|group| group.fronts.list.iter().any(|published| published.address == *address))
        };
        if let Some(address) = world.kernel.fronts.keys().find(|address| !is_wanted(address)) {
            return Err(format!("{address} is still published"));
        }
        let orphan = world.shards.all.values().find(|shard| !reconciler.groups.contains_key(&shard.key.group));
        if let Some(orphan) = orphan {
            return Err(format!("a shard of {} is left", orphan.key));
        }
        Ok(())
    })
}

fn group_settled(world: &World, name: &str, group: &Group) -> Result<(), String> {
    match group.intent {
        Intent::Purge => Err(format!("{name} is not gone yet")),
        Intent::Stop => match world.shards.living(name).next() {
            Some((id, _)) => Err(format!("{name} is stopped, and {id} runs")),
            None => Ok(()),
        },
        Intent::Run if is_paused(group) => Ok(()),
        Intent::Run if !works(&group.text) && is_under_way(group) => {
            Err(format!("{name} is on its way to what can't serve"))
        }
        // Nobody can serve it; that it is kept from harm the other laws say.
        Intent::Run if !works(&group.text) => Ok(()),
        Intent::Run => {
            if let Some(fault) = &group.fault {
                return Err(format!("{name}: {fault}"));
            }
            if let Some(published) = group.fronts.list.iter().find(|published| published.front.is_err()) {
                return Err(format!("{name}: {} is not published", published.address));
            }
            if group.fronts.list.len() != group.spec.ports.len() {
                return Err(format!("{name} has {} addresses", group.fronts.list.len()));
            }
            let of_no_slot = |(_, shard): &(&ShardId, &Simulated)| group.place(shard.key.slot).is_none();
            if let Some((id, _)) = world.shards.living(name).find(of_no_slot) {
                return Err(format!("{name}: {id} is of no slot"));
            }
            if !group.is_quiet() {
                return Err(format!("{name} is not quiet"));
            }
            group.planned().iter().try_for_each(|slot| slot_settled(world, name, group, slot))
        }
    }
}

fn is_paused(group: &Group) -> bool {
    use crate::status::RolloutPhase::{Failed, Paused};
    group.rollout.record.as_ref().is_some_and(|record| matches!(record.phase, Paused | Failed))
}

/// A rollout ends in what is new, in what was before, or paused. Where what was before fails too, it is tried for ever.
fn is_under_way(group: &Group) -> bool {
    group.rollout.record.as_ref().is_some_and(|record| !record.phase.is_over() && !record.is_rollback)
}

fn slot_settled(world: &World, name: &str, group: &Group, slot: &sherd_topology::plan::Slot) -> Result<(), String> {
    let fails = |what: &str| Err(format!("{name}/{}: {what}", slot.id));
    let index = u16::try_from(slot.id.0).unwrap_or(u16::MAX);
    let key = |shard: &&Simulated| shard.key.group.as_str() == name && shard.key.slot == slot.id;
    let mut shards = world.shards.all.values().filter(key);
    let (Some(shard), None) = (shards.next(), shards.next()) else { return fails("it has not one shard") };
    if shard.spec != group.hash {
        return fails("its shard is of another specification");
    }
    if !shard.is_ready(world.now()) {
        return fails("its shard is not ready");
    }
    if shard.cpus != slot.cpus {
        return fails("its shard is on other CPUs");
    }
    let Some(worker) = world.kernel.workers.of(name, index) else { return fails("it has no worker") };
    if !worker.is_alive || worker.listeners == 0 || worker.backend != shard.pid().map(address_of) {
        return fails("its worker doesn't serve its shard");
    }
    let mut fronts = world.kernel.fronts.iter().filter(|(address, _)| Kernel::group_of(**address) == name);
    if fronts.any(|(_, bound)| !bound.named.contains(&index)) {
        return fails("a table doesn't name it");
    }
    Ok(())
}
