//! Addresses that the specification no longer has, while shards made before still have listeners there: they are served
//! until those shards are replaced. Nobody but them listens there for long, so nobody loses a connection by the change.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::{BorrowedFd, OwnedFd},
};

use sherd_lb::{front::Place, relay::PortKey, table::SlotIndex};
use sherd_topology::plan::GroupName;

use super::{
    Fronts, Published,
    addresses::{Aims, Counted, addresses_of, prefix, take_over},
};
use crate::{
    reconcile::keeper::Keeper,
    spec::{ContainerPort, GroupSpec, HostAddress, HostPort, PortSpec},
};

impl Published {
    /// Whether a shard has a listener here.
    fn is_held(&self) -> bool {
        let Ok(front) = &self.front else { return false };
        let is_there = |slot, place: &Place| front.direct_cookie(SlotIndex(slot), *place).is_some();
        (0..front.max_slots()).any(|slot| front.places().iter().any(|place| is_there(slot, place)))
    }

    /// What the holder knows it by while it leaves: the name has all that a later agent needs.
    fn leaving_name(&self, group: &GroupName) -> String {
        format!("{}{}/{}", leaving_prefix(group), self.address, self.port.container)
    }
}

impl Fronts {
    /// Before a specification is stored, gives the holder the names of the addresses that leave with it: an agent that has the
    /// specification and not these would take the address for nobody's. With the former specification they tell it nothing.
    pub(in crate::reconcile) fn announce_leaving(&self, spec: &GroupSpec, keeper: &mut Keeper) -> Vec<String> {
        let stays = |published: &&Published| addresses_of(spec).any(|(_, wanted)| published.serves(wanted));
        let leaves = self.list.iter().filter(|published| !published.leaving && !stays(published));
        let mut names = Vec::new();
        for published in leaves.filter(|published| published.is_held()) {
            if let Ok(front) = &published.front {
                let name = published.leaving_name(&self.group);
                keeper.put_once(&name, front.anchor());
                names.push(name);
            }
        }
        names
    }

    /// A former agent was killed between telling the holder that an address leaves, or stays, and storing that.
    pub(super) fn forget_announced(&self, keeper: &mut Keeper) {
        let names = keeper.names();
        for published in self.list.iter().filter(|published| !published.leaving) {
            let prefix = format!("{}{}/", leaving_prefix(&self.group), published.address);
            names.iter().filter(|name| name.starts_with(&prefix)).for_each(|name| keeper.remove(name));
        }
    }

    /// What the holder must have of addresses that leave.
    pub(super) fn leaving_descriptors(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        let leaving = self.list.iter().filter(|published| published.leaving);
        leaving.filter_map(|published| {
            Some((published.leaving_name(&self.group), published.front.as_ref().ok()?.anchor()))
        })
    }

    /// Sorts what is no longer wanted: gives back what can go at once.
    pub(super) fn begin_leaving(&mut self, unwanted: Vec<Published>, keeper: &mut Keeper) -> Vec<Published> {
        let (held, free): (Vec<_>, Vec<_>) = unwanted.into_iter().partition(Published::is_held);
        for mut published in held {
            published.leaving = true;
            if let Ok(front) = &published.front {
                keeper.put_once(&published.leaving_name(&self.group), front.anchor());
            }
            self.list.push(published);
        }
        free
    }

    /// An address that was leaving is wanted again.
    pub(super) fn stay(&mut self, keeper: &mut Keeper) {
        let group = self.group.clone();
        for published in self.list.iter_mut().filter(|published| published.leaving) {
            published.leaving = false;
            keeper.remove(&published.leaving_name(&group));
        }
    }

    /// Gives up what no shard listens at any more; the keys of that.
    pub(in crate::reconcile) fn finish_leaving(&mut self, keeper: &mut Keeper) -> Vec<PortKey> {
        if !self.list.iter().any(|published| published.leaving) {
            return Vec::new();
        }
        let gone: Vec<Published> =
            self.list.extract_if(.., |published| published.leaving && !published.is_held()).collect();
        for published in &gone {
            tracing::info!(group = %self.group, address = %published.address, "no shard listens there any more: it is given up");
            keeper.remove(&published.leaving_name(&self.group));
            keeper.remove_prefix(&prefix(&self.group, published.address));
        }
        gone.iter().map(|published| published.key).collect()
    }

    /// Takes over what a former agent had not given up yet. What the holder has beyond that is let go.
    pub(super) fn adopt_leaving(
        &mut self,
        aims: &Aims<'_>,
        kept: BTreeMap<SocketAddr, Vec<(String, OwnedFd)>>,
        counted: &Counted<'_>,
        keeper: &mut Keeper,
    ) {
        let (names, group) = (keeper.names(), &aims.spec.name);
        for (address, descriptors) in kept {
            let container = names.iter().find_map(|name| {
                let (found, container) = name.strip_prefix(&leaving_prefix(group))?.rsplit_once('/')?;
                (found.parse() == Ok(address)).then(|| container.parse().ok().map(ContainerPort))?
            });
            let Some(container) = container else {
                tracing::warn!(%group, %address, "what the holder kept is of no address: it is given up");
                keeper.remove_prefix(&prefix(group, address));
                continue;
            };
            let host_address = HostAddress { ip: Some(address.ip()), port: HostPort(address.port()) };
            let port = PortSpec::new(host_address, container);
            if let Ok(front) = take_over(aims, (&port, address), descriptors, counted, keeper) {
                self.push(port, address, Ok(front));
                self.list.iter_mut().rev().take(1).for_each(|published| published.leaving = true);
            }
        }
    }
}

/// The holder's names of addresses that leave begin so.
pub(super) fn leaving_prefix(group: &GroupName) -> String {
    format!("leaving/{group}/")
}
