//! The published addresses of one group: a front for each, with a listener for every slot. Owns the fronts and keeps
//! the holder in step; what connects behind them is the workers'.
//!
//! A descriptor is in the holder before the kernel can queue a connection to it, and leaves the holder only after
//! nothing can be queued any more: whenever the agent dies, no connection dies with it.

mod direct;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, mpsc::Receiver},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use sherd_lb::{
    front::{Front, FrontConfig, OpenError, SlotError, SteeringMode},
    relay::{Limits, PortKey, Role, Target, Worker},
    table::{MAX_SLOTS, SlotIndex},
};
use sherd_topology::{
    model::Host,
    plan::{GroupName, Slot, SlotId},
};

pub(super) use self::direct::{ProgramFamily, host_address, watched};
use super::{
    anchor_age::AnchorAge,
    keeper::Keeper,
    steering_table::{self, PortChoice, index_of},
};
use crate::{
    control::ApplyError,
    fault,
    spec::{ContainerPort, GroupSpec, PortSpec, Unready},
};

/// Slots that a front has room for beyond those it starts with: its sockarray can't grow.
const SPARE_SLOTS: usize = 64;
/// When an address that couldn't be published is tried again.
const REPUBLISH_AFTER: Duration = Duration::from_secs(5);

/// Why a slot can't listen.
#[derive(Debug, thiserror::Error)]
pub(super) enum EquipError {
    /// No listener for it.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// No descriptor for its worker.
    #[error("no descriptor is left for its listener: raise LimitNOFILE of the agent's unit")]
    Descriptor(#[source] io::Error),
}

/// One published address.
pub(super) struct Published {
    pub(super) key: PortKey,
    pub(super) address: SocketAddr,
    pub(super) port: PortSpec,
    pub(super) front: Result<Front, String>,
    age: AnchorAge,
    retry_after: Instant,
}

/// The published addresses of one group.
pub(super) struct Fronts {
    group: GroupName,
    pub(super) list: Vec<Published>,
    next_key: u32,
    /// The slot whose worker serves what waited in the anchors.
    anchor_server: Option<SlotId>,
}

impl Fronts {
    pub(super) fn none(group: &GroupName) -> Self {
        Self { group: group.clone(), list: Vec::new(), next_key: 0, anchor_server: None }
    }

    /// Binds every address of a specification that isn't in `had`. None of them serves anybody yet.
    pub(super) fn open(
        spec: &GroupSpec,
        host: &Host,
        slots: &[Slot],
        had: &[SocketAddr],
        keeper: &Keeper,
    ) -> Result<Vec<(PortSpec, SocketAddr, Front)>, ApplyError> {
        let mut opened = Vec::new();
        for (port, address) in addresses_of(spec) {
            if !had.contains(&address) {
                let config = config(spec, address, host, slots.len(), keeper);
                let front =
                    Front::open(&config, &table(host, slots, port)).map_err(|error| not_open(address, error))?;
                opened.push((port.clone(), address, front));
            }
        }
        Ok(opened)
    }

    /// Takes over what the holder kept for a former agent; opens what it didn't keep.
    pub(super) fn adopt(
        spec: &GroupSpec,
        host: &Host,
        slots: &[Slot],
        mut kept: BTreeMap<SocketAddr, Vec<(String, OwnedFd)>>,
        keeper: &mut Keeper,
    ) -> Self {
        let mut fronts = Self::none(&spec.name);
        for (port, address) in addresses_of(spec) {
            let config = config(spec, address, host, slots.len(), keeper);
            let adopted =
                kept.remove(&address).map(|descriptors| Front::adopt(descriptors, &config, &table(host, slots, port)));
            let front = match adopted {
                Some(Ok(front)) => {
                    front.forget_relayed();
                    Ok(front)
                }
                Some(Err(error)) => {
                    tracing::error!(group = %spec.name, %address, "what the holder kept can't be taken over: binding anew: {}", super::chain(&error));
                    // Its copies would hold the address against us.
                    keeper.remove_prefix(&prefix(&spec.name, address));
                    Front::open(&config, &table(host, slots, port)).map_err(|error| super::chain(&error))
                }
                None => Front::open(&config, &table(host, slots, port)).map_err(|error| super::chain(&error)),
            };
            if let Err(error) = &front {
                tracing::error!(group = %spec.name, %address, "the address is not published: {error}");
            }
            fronts.push(port.clone(), address, front);
        }
        for (address, descriptors) in kept {
            fronts.adopt_beside(spec, host, slots, address, descriptors, keeper);
        }
        fronts.forget_unplanned(slots, keeper);
        // Also what the holder has: some of it may be made anew.
        fronts.descriptors().into_iter().for_each(|(name, descriptor)| keeper.put(&name, descriptor));
        fronts
    }

    /// Ends listeners of slots that the plan no longer has: a former agent died while it took them out.
    fn forget_unplanned(&mut self, slots: &[Slot], keeper: &mut Keeper) {
        let planned: Vec<SlotIndex> = slots.iter().map(|slot| index_of(slot.id)).collect();
        let unplanned: Vec<SlotIndex> =
            self.bound().flat_map(Front::slots).filter(|index| !planned.contains(index)).collect();
        for index in unplanned {
            self.retire(SlotId(u32::from(index.0)), keeper);
        }
    }

    /// Adds new addresses and gives up those that `spec` no longer has; returns the keys of the latter.
    pub(super) fn merge(
        &mut self,
        opened: Vec<(PortSpec, SocketAddr, Front)>,
        spec: &GroupSpec,
        keeper: &mut Keeper,
    ) -> Vec<PortKey> {
        let wanted: Vec<(&PortSpec, SocketAddr)> = addresses_of(spec).collect();
        let (kept, gone): (Vec<_>, Vec<_>) =
            self.list.drain(..).partition(|published| wanted.iter().any(|(_, wanted)| published.serves(*wanted)));
        self.list = kept;
        for published in &mut self.list {
            if let Some((port, _)) = wanted.iter().find(|(_, address)| *address == published.address) {
                published.port = (*port).clone();
            }
        }
        for (port, address, front) in opened {
            match self.list.iter_mut().find(|published| published.address == address) {
                Some(published) => published.front = Ok(front),
                None => self.push(port, address, Ok(front)),
            }
        }
        self.keep_all(keeper);
        for published in &gone {
            keeper.remove_prefix(&prefix(&self.group, published.address));
        }
        gone.iter().map(|published| published.key).collect()
    }

    fn push(&mut self, port: PortSpec, address: SocketAddr, front: Result<Front, String>) {
        let key = PortKey(self.next_key);
        self.next_key += 1;
        if let Ok(SteeringMode::Classic { reason }) = front.as_ref().map(Front::mode) {
            tracing::warn!(group = %self.group, %address, "{address} is steered by classic BPF, which can't refuse, count or migrate: {reason}");
        }
        let retry_after = Instant::now() + REPUBLISH_AFTER;
        self.list.push(Published { key, address, port, front, age: AnchorAge::default(), retry_after });
    }

    /// Tries again to bind what is not bound, where that is due; true if something new is published.
    pub(super) fn publish_missing(
        &mut self,
        spec: &GroupSpec,
        host: &Host,
        slots: &[Slot],
        keeper: &mut Keeper,
        now: Instant,
    ) -> bool {
        let mut published_one = false;
        for published in
            self.list.iter_mut().filter(|published| published.front.is_err() && published.retry_after <= now)
        {
            published.retry_after = now + REPUBLISH_AFTER;
            let config = config(spec, published.address, host, slots.len(), keeper);
            match Front::open(&config, &table(host, slots, &published.port)) {
                Ok(front) => {
                    published.front = Ok(front);
                    published_one = true;
                }
                Err(error) => published.front = Err(super::chain(&error)),
            }
        }
        if published_one {
            self.keep_all(keeper);
        }
        published_one
    }

    /// Addresses that are bound.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.list.iter().filter(|published| published.front.is_ok()).map(|published| published.address).collect()
    }

    fn open_fronts(&mut self) -> impl Iterator<Item = (PortKey, SocketAddr, &mut Front)> {
        self.list.iter_mut().filter_map(|published| {
            let front = published.front.as_mut().ok()?;
            Some((published.key, published.address, front))
        })
    }

    pub(super) fn bound(&self) -> impl Iterator<Item = &Front> {
        self.list.iter().filter_map(|published| published.front.as_ref().ok())
    }

    /// Makes the slot's listeners, or takes those that are there, and lets its worker accept from them.
    pub(super) fn equip(
        &mut self,
        slot: SlotId,
        worker: &Worker,
        keeper: &mut Keeper,
    ) -> Result<Vec<Receiver<io::Result<()>>>, EquipError> {
        let group = self.group.clone();
        let mut served = Vec::new();
        for (key, address, front) in self.open_fronts() {
            let index = index_of(slot);
            if front.listener(index).is_none() {
                // A former agent may have come as far as preparing it.
                if !front.slots().any(|slot| slot == index) {
                    let (name, listener) = front.prepare_slot(index)?;
                    fault::point("equip.prepared");
                    keeper.put(&format!("{}{name}", prefix(&group, address)), listener);
                    fault::point("equip.kept");
                }
                front.add_slot(index)?;
            }
            if let Some(listener) = front.listener(index) {
                let listener = listener.try_clone_to_owned().map_err(EquipError::Descriptor)?;
                let account = front.cells().map(|cells| cells.account(index));
                served.push(worker.serve_slot(key, listener, account));
            }
        }
        Ok(served)
    }

    /// Lets the worker empty the slot's queues, which nothing new comes into, and give up its listeners.
    pub(super) fn stop_serving(&self, slot: SlotId, worker: &Worker) -> Vec<Receiver<()>> {
        let served = self
            .list
            .iter()
            .filter(|published| published.front.as_ref().is_ok_and(|front| front.listener(index_of(slot)).is_some()));
        served.map(|published| worker.stop_serving(published.key, Role::Slot)).collect()
    }

    /// Ends the slot's listeners.
    pub(super) fn retire(&mut self, slot: SlotId, keeper: &mut Keeper) {
        let group = self.group.clone();
        for (_, address, front) in self.open_fronts() {
            let index = index_of(slot);
            if !front.slots().any(|slot| slot == index) {
                continue;
            }
            if let Err(error) = front.remove_slot(index) {
                tracing::error!(%group, %slot, %address, "its listener can't be removed: {}", super::chain(&error));
            }
            keeper.remove(&format!("{}{}", prefix(&group, address), Front::listener_name(index)));
        }
        if self.anchor_server == Some(slot) {
            self.anchor_server = None;
        }
    }

    pub(super) fn set_in(&mut self, slot: SlotId, is_in: bool) -> Result<(), SlotError> {
        self.open_fronts().try_for_each(|(_, _, front)| front.set_in(index_of(slot), is_in))
    }

    /// Whether every bound address names the slot.
    pub(super) fn is_in(&self, slot: SlotId) -> bool {
        let mut bound = self.bound().peekable();
        bound.peek().is_some() && bound.all(|front| front.is_in(index_of(slot)))
    }

    /// Steers by this layout from the next connection on.
    pub(super) fn set_tables(&mut self, host: &Host, slots: &[Slot]) {
        for published in &mut self.list {
            if let Ok(front) = &mut published.front
                && let Err(error) = front.set_table(&table(host, slots, &published.port))
            {
                tracing::error!(group = %self.group, address = %published.address, "the steering table can't be changed: the former one stays: {}", super::chain(&error));
            }
        }
    }

    /// Connections in the slot's queues.
    pub(super) fn queued(&self, slot: SlotId) -> u64 {
        let queue = |front: &Front| front.queue_len(Some(index_of(slot))).unwrap_or(0);
        self.bound().map(|front| u64::from(queue(front))).sum()
    }

    /// Where a worker connects for each front.
    pub(super) fn backend_ports(&self, ports: &[(ContainerPort, Target)]) -> Vec<(PortKey, Target)> {
        let target =
            |port: ContainerPort| ports.iter().find(|(container, _)| *container == port).map(|(_, at)| at.clone());
        let fronts = self.list.iter().filter_map(|published| Some((published.key, target(published.port.container)?)));
        fronts.collect()
    }

    /// Lets this slot's worker, and no other, serve what waits in the anchors; `None`: nobody does.
    pub(super) fn serve_anchors(&mut self, server: Option<(SlotId, &Arc<Worker>)>, former: Option<&Arc<Worker>>) {
        if let Some(former) = former {
            for published in &self.list {
                drop(former.stop_serving(published.key, Role::Anchor));
            }
        }
        self.anchor_server = server.map(|(slot, _)| slot);
        let Some((_, worker)) = server else { return };
        for published in &mut self.list {
            published.age.clear();
            let Ok(front) = &published.front else { continue };
            match front.anchor().try_clone_to_owned() {
                // Its result is of no consequence: what waits there ends at its bound.
                Ok(anchor) => drop(worker.serve(published.key, anchor, Role::Anchor)),
                Err(error) => {
                    tracing::error!(group = %self.group, address = %published.address, "the anchor can't be served: {error}");
                }
            }
        }
    }

    pub(super) fn anchor_server(&self) -> Option<SlotId> {
        self.anchor_server
    }

    /// Ends connections that have waited in an anchor for longer than `bound`; returns how many.
    pub(super) fn end_overdue(&mut self, bound: Duration, now: Instant) -> u64 {
        let mut ended = 0;
        for published in &mut self.list {
            let Ok(front) = &published.front else { continue };
            let Ok(length) = front.queue_len(None) else { continue };
            for _ in 0..published.age.overdue(length, bound, now) {
                match refuse_one(front.anchor()) {
                    Ok(true) => ended += 1,
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(address = %published.address, "a connection that waited too long can't be ended: {error}");
                        break;
                    }
                }
            }
        }
        ended
    }

    /// Gives up every address.
    pub(super) fn close(&mut self, keeper: &mut Keeper) {
        if self.list.is_empty() {
            return;
        }
        fault::point("unpublish.before");
        keeper.remove_prefix(&format!("front/{}/", self.group));
        self.list.clear();
        fault::point("unpublish.after");
    }

    fn keep_all(&mut self, keeper: &mut Keeper) {
        for (name, descriptor) in self.descriptors() {
            keeper.put_once(&name, descriptor);
        }
    }

    /// Everything that the holder must have of this group.
    pub(super) fn descriptors(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut all = Vec::new();
        for published in &self.list {
            let Ok(front) = &published.front else { continue };
            let prefix = prefix(&self.group, published.address);
            all.extend(
                front.descriptors().into_iter().map(|(name, descriptor)| (format!("{prefix}{name}"), descriptor)),
            );
        }
        all
    }
}

/// Takes the oldest connection out of a queue and resets it; false if there is none.
fn refuse_one(anchor: BorrowedFd<'_>) -> io::Result<bool> {
    let anchor = TcpListener::from(anchor.try_clone_to_owned()?);
    match anchor.accept() {
        Ok((stream, _)) => {
            // A reset, not an end: nobody must take silence for an empty answer.
            setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// The bounds of a worker.
pub(super) fn limits(spec: &GroupSpec) -> Limits {
    let relay = &spec.relay;
    let default = Limits::default();
    Limits {
        pending_timeout: match spec.unready {
            Unready::Wait(bound) => bound,
            Unready::Refuse => default.pending_timeout,
        },
        max_connections: relay.max_connections,
        max_pending: relay.max_pending,
        connect_timeout: relay.connect_timeout,
        idle_timeout: relay.idle_timeout,
        keepalive: relay.keepalive,
        retries: relay.retries,
        ..default
    }
}

/// The holder's name of what belongs to an address.
pub(super) fn prefix(group: &GroupName, address: SocketAddr) -> String {
    format!("front/{group}/{address}/")
}

/// Sorts what the holder has of a group by address.
pub(super) fn by_address(
    kept: Vec<(String, OwnedFd)>,
    group: &GroupName,
) -> BTreeMap<SocketAddr, Vec<(String, OwnedFd)>> {
    let mut sorted: BTreeMap<SocketAddr, Vec<(String, OwnedFd)>> = BTreeMap::new();
    let before = format!("front/{group}/");
    for (name, descriptor) in kept {
        let rest = name.strip_prefix(&before).and_then(|rest| rest.split_once('/'));
        match rest.and_then(|(address, name)| Some((address.parse().ok()?, name.to_owned()))) {
            Some((address, name)) => sorted.entry(address).or_default().push((name, descriptor)),
            None => tracing::warn!(name, "the holder has something that is not named as we name"),
        }
    }
    sorted
}

/// "All addresses" are two fronts, of which the one of `[::]` takes no IPv4. Where shards accept themselves it is one
/// for both: a program's listening socket can be replaced by one listener only, and most listen on `[::]` for both.
fn addresses_of(spec: &GroupSpec) -> impl Iterator<Item = (&PortSpec, SocketAddr)> {
    let one_for_both = spec.is_behind_shim();
    spec.ports.iter().flat_map(move |port| {
        let addresses = port.host.addresses().into_iter();
        let kept = addresses.filter(move |address| {
            !(one_for_both && port.host.ip.is_none() && address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        });
        kept.map(move |address| (port, address))
    })
}

pub(super) fn table(host: &Host, slots: &[Slot], port: &PortSpec) -> sherd_lb::table::SteeringTable {
    let choice = PortChoice { policy: port.policy, weights: port.weights.as_deref(), table_len: port.table_len };
    steering_table::build(host, slots, choice)
}

fn config(spec: &GroupSpec, address: SocketAddr, host: &Host, slots: usize, keeper: &Keeper) -> FrontConfig {
    // One per CPU is the most that an exclusive group can grow to.
    let room = (2 * slots).max(host.online().len() + SPARE_SLOTS).min(usize::from(MAX_SLOTS));
    let all = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let named = |port: &PortSpec| port.host.ip.is_some() && port.host.addresses().contains(&address);
    FrontConfig {
        address,
        v6only: !(all && spec.is_behind_shim() && !spec.ports.iter().any(named)),
        allies: Vec::new(),
        backlog: i32::try_from(spec.relay.backlog).unwrap_or(i32::MAX),
        max_slots: u16::try_from(room).unwrap_or(MAX_SLOTS),
        unready: match spec.unready {
            Unready::Wait(_) => sherd_lb::front::Unready::Wait,
            Unready::Refuse => sherd_lb::front::Unready::Refuse,
        },
        force_classic: false,
        cells: keeper.cells().cloned(),
    }
}

fn not_open(address: SocketAddr, error: OpenError) -> ApplyError {
    match error {
        OpenError::PortTaken { by, .. } => ApplyError::PortTaken { address, by: by.to_string() },
        error => ApplyError::Publish { address, source: Box::new(error) },
    }
}
