//! The published addresses of one group: a front for each, with a listener for every slot. Owns the fronts and keeps
//! the holder in step; what connects behind them is the workers'.
//!
//! A descriptor is in the holder before the kernel can queue a connection to it, and leaves the holder only after
//! nothing can be queued any more: whenever the agent dies, no connection dies with it.

mod addresses;
mod anchors;
mod direct;
mod leaving;
mod listeners;
#[cfg(all(test, not(feature = "simulation")))]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::{BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use sherd_lb::{
    front::{OpenError, SlotError, SteeringMode},
    relay::PortKey,
    table::SlotIndex,
};
use sherd_topology::{
    model::Host,
    plan::{GroupName, Slot, SlotId},
};

use self::{
    addresses::{Aims, addresses_of, not_open, prefix, take_over},
    leaving::leaving_prefix,
};
pub(super) use self::{
    addresses::{by_address, group_prefix, limits, shared_table},
    direct::{ProgramFamily, host_address, place_of, watched_shapes},
};
use super::{anchor_age::AnchorAge, keeper::Keeper, steering_table::index_of, world::Front};
use crate::{
    clock,
    control::ApplyError,
    fault,
    health::slow_start,
    spec::{GroupSpec, PortSpec},
};

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
    /// The specification has it no longer; see [`leaving`].
    pub(super) leaving: bool,
    age: AnchorAge,
    /// A worker serves what waited in its anchor.
    anchor_served: bool,
    retry_after: Instant,
}

/// The published addresses of one group.
pub(super) struct Fronts {
    group: GroupName,
    pub(super) list: Vec<Published>,
    next_key: u32,
    /// The slot whose worker serves what waited in the anchors.
    anchor_server: Option<SlotId>,
    /// Per cent of their share that slots in their slow start get.
    shares: BTreeMap<SlotId, u32>,
}

impl Fronts {
    pub(super) fn none(group: &GroupName) -> Self {
        Self { group: group.clone(), list: Vec::new(), next_key: 0, anchor_server: None, shares: BTreeMap::new() }
    }

    /// Binds every address of a specification that it doesn't have. None of them serves anybody yet.
    pub(super) fn open_new(
        &self,
        spec: &GroupSpec,
        host: &Host,
        slots: &[Slot],
        keeper: &Keeper,
    ) -> Result<Vec<(PortSpec, SocketAddr, Front)>, ApplyError> {
        if let Some(address) = self.in_the_way(spec) {
            let reason = format!(
                "{address} can't be published while the group's present addresses are, which overlap with it: \
                 `sherd stop -g {}` first",
                spec.name
            );
            return Err(ApplyError::Refused { group: spec.name.clone(), reason });
        }
        if let Some((address, wanted, max)) = self.too_long(spec, slots.len()) {
            let reason = format!(
                "table_len = {wanted}: {address} was opened for a table of at most {max} entries; specify no more, or \
                 `sherd stop -g {}` first",
                spec.name
            );
            return Err(ApplyError::Refused { group: spec.name.clone(), reason });
        }
        let mut opened = Vec::new();
        for (port, address) in addresses_of(spec) {
            if !self.covers(address) {
                let aims = Aims { spec, host, slots };
                let front = self.open(&aims, (port, address), keeper).map_err(|error| not_open(address, error))?;
                opened.push((port.clone(), address, front));
            }
        }
        Ok(opened)
    }

    /// Takes over what the holder kept for a former agent; opens what it didn't keep. `counted` says how many relayed
    /// connections of a slot at an address go on.
    pub(super) fn adopt(
        spec: &GroupSpec,
        host: &Host,
        slots: &[Slot],
        mut kept: BTreeMap<SocketAddr, Vec<(String, OwnedFd)>>,
        counted: impl Fn(SocketAddr, SlotIndex) -> u64,
        keeper: &mut Keeper,
    ) -> Self {
        let mut fronts = Self::none(&spec.name);
        let aims = Aims { spec, host, slots };
        for (port, address) in addresses_of(spec) {
            let front = match kept.remove(&address) {
                Some(kept) => take_over(&aims, (port, address), kept, &counted, keeper),
                None => Err("it was not published before".to_owned()),
            };
            fronts.push(port.clone(), address, front);
        }
        let (beside, others) = kept.into_iter().partition(|(address, _)| fronts.has_beside(*address));
        let beside: BTreeMap<_, _> = beside;
        for (address, descriptors) in beside {
            fronts.adopt_beside(&aims, address, descriptors, &counted, keeper);
        }
        fronts.adopt_leaving(&aims, others, &counted, keeper);
        // After those that may be beside it.
        fronts.open_missing(&aims, keeper, |_| true);
        for published in &fronts.list {
            if let Err(error) = &published.front {
                tracing::error!(group = %spec.name, address = %published.address, "the address is not published: {error}");
            }
        }
        fronts.forget_announced(keeper);
        fronts.forget_unplanned(slots, keeper);
        // Also what the holder has: some of it may be made anew. By the state the next agent tells whose the rest is, so
        // that comes last: until then it takes over once more.
        let (states, others): (Vec<_>, Vec<_>) =
            fronts.descriptors().into_iter().partition(|(name, _)| name.ends_with(Front::STATE));
        for (name, descriptor) in others.into_iter().chain(states) {
            keeper.put(&name, descriptor);
            fault::point("adopt.kept");
        }
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

    /// Adds new addresses and gives up those that `spec` no longer has, unless shards still listen there; returns the keys of
    /// those that are gone.
    pub(super) fn merge(
        &mut self,
        opened: Vec<(PortSpec, SocketAddr, Front)>,
        spec: &GroupSpec,
        keeper: &mut Keeper,
    ) -> Vec<PortKey> {
        let wanted: Vec<(&PortSpec, SocketAddr)> = addresses_of(spec).collect();
        let (kept, unwanted): (Vec<_>, Vec<_>) =
            self.list.drain(..).partition(|published| wanted.iter().any(|(_, wanted)| published.serves(*wanted)));
        self.list = kept;
        self.stay(keeper);
        for published in &mut self.list {
            if let Some((port, _)) = wanted.iter().find(|(_, address)| published.serves(*address)) {
                published.port = (*port).clone();
            }
        }
        let gone = self.begin_leaving(unwanted, keeper);
        for (port, address, front) in opened {
            match self.list.iter_mut().find(|published| published.address == address) {
                Some(published) => published.front = Ok(front),
                None => self.push(port, address, Ok(front)),
            }
        }
        self.keep_all("apply.kept", keeper);
        for published in &gone {
            keeper.remove_prefix(&prefix(&self.group, published.address));
        }
        gone.iter().map(|published| published.key).collect()
    }

    fn push(&mut self, port: PortSpec, address: SocketAddr, front: Result<Front, String>) {
        let key = PortKey(self.next_key);
        self.next_key += 1;
        front.iter().for_each(|front| self.warn_of_wants(front));
        let retry_after = clock::now() + REPUBLISH_AFTER;
        self.list.push(Published {
            key,
            address,
            port,
            front,
            leaving: false,
            age: AnchorAge::default(),
            anchor_served: false,
            retry_after,
        });
    }

    /// Of an address that is about to be published.
    fn warn_of_wants(&self, front: &Front) {
        let address = front.address();
        if let SteeringMode::Classic { reason } = front.mode() {
            tracing::warn!(group = %self.group, %address, "{address} is steered by classic BPF, which can't refuse, count or migrate: {reason}");
        } else if front.cells().is_none() {
            tracing::warn!(group = %self.group, %address, "{address}: connections are not counted and hung shards not found: there are too many addresses, or bpf(2) is not permitted");
        }
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
        let aims = Aims { spec, host, slots };
        let opened = self.open_missing(&aims, keeper, |published| published.retry_after <= now);
        if opened {
            self.keep_all("republish.kept", keeper);
        }
        opened
    }

    /// Binds what is not bound and is due; true if something was.
    fn open_missing(&mut self, aims: &Aims<'_>, keeper: &Keeper, is_due: impl Fn(&Published) -> bool) -> bool {
        let mut opened_one = false;
        for at in 0..self.list.len() {
            let published = &self.list[at];
            if published.front.is_ok() || !is_due(published) {
                continue;
            }
            let opened = self.open(aims, (&published.port, published.address), keeper);
            opened.iter().for_each(|front| self.warn_of_wants(front));
            opened_one |= opened.is_ok();
            self.list[at].front = opened.map_err(|error| super::chain(&error));
            self.list[at].retry_after = clock::now() + REPUBLISH_AFTER;
        }
        opened_one
    }

    /// Binds an address, beside the one of the other family if that is there.
    fn open(
        &self,
        aims: &Aims<'_>,
        (port, address): (&PortSpec, SocketAddr),
        keeper: &Keeper,
    ) -> Result<Front, OpenError> {
        let mut config = aims.config(address, keeper);
        let allies = self.allies(address, config.v6only);
        config.allies = allies.map_err(|source| OpenError::LookForListeners { address, source })?;
        Front::open(&config, &aims.table(port))
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

    /// Steers by this layout from the next connection on.
    pub(super) fn set_tables(&mut self, host: &Host, slots: &[Slot]) {
        for published in &mut self.list {
            if let Ok(front) = &mut published.front
                && let Err(error) = front.set_table(&shared_table(host, slots, &published.port, &self.shares))
            {
                tracing::error!(group = %self.group, address = %published.address, "the steering table can't be changed: the former one stays: {}", super::chain(&error));
            }
        }
    }

    /// Slots that get less than their share.
    pub(super) fn shares(&self) -> &BTreeMap<SlotId, u32> {
        &self.shares
    }

    /// How much of its share a slot gets.
    pub(super) fn share_percent(&self, slot: SlotId) -> u32 {
        self.shares.get(&slot).copied().unwrap_or(slow_start::WHOLE_PERCENT)
    }

    /// Gives slots so much of their share from the next connection on.
    pub(super) fn set_shares(&mut self, host: &Host, slots: &[Slot], shares: BTreeMap<SlotId, u32>) {
        self.shares = shares;
        self.set_tables(host, slots);
    }

    /// Gives up every address.
    pub(super) fn close(&mut self, keeper: &mut Keeper) {
        if self.list.is_empty() {
            return;
        }
        fault::point("unpublish.before");
        Self::give_up(&self.group, keeper);
        self.list.clear();
        fault::point("unpublish.after");
    }

    /// The holder lets go of every address of a group.
    pub(super) fn give_up(group: &GroupName, keeper: &mut Keeper) {
        keeper.remove_prefix(&group_prefix(group));
        keeper.remove_prefix(&leaving_prefix(group));
    }

    /// `point` is passed for each descriptor that the holder gets.
    fn keep_all(&self, point: &str, keeper: &mut Keeper) {
        for (name, descriptor) in self.descriptors() {
            if keeper.put_once(&name, descriptor) {
                fault::point(point);
            }
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
        all.extend(self.leaving_descriptors());
        all
    }
}
