//! Listeners in shards' hands among the published addresses of a group: which address a program's socket fits, and how a
//! slot's direct listener is reached.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use sherd_lb::{
    cells::{CellReading, Counts},
    front::{Path, Place},
    netns::{Family, Loopback, Netns},
    relay::{PortKey, Target},
};
use sherd_topology::{
    model::Host,
    plan::{GroupName, Slot, SlotId},
};

use super::{
    Fronts, Published,
    addresses::{Aims, Counted, take_over},
};
use crate::{
    fault,
    reconcile::{
        chain,
        direct::Generation,
        group::Group,
        keeper::Keeper,
        steering_table::{index_of, weight},
        watch::{WatchedAddress, WatchedShape, WatchedSlot},
        world::Front,
    },
    spec::{ContainerPort, GroupSpec, PortSpec},
};

/// Whose connections a program's listening socket takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reconcile) enum ProgramFamily {
    V4,
    V6,
    /// One IPv6 socket for both.
    Dual,
}

impl ProgramFamily {
    pub(in crate::reconcile) fn of(address: SocketAddr, v6only: bool) -> Self {
        match (address, v6only) {
            (SocketAddr::V4(_), _) => Self::V4,
            (SocketAddr::V6(_), true) => Self::V6,
            (SocketAddr::V6(_), false) => Self::Dual,
        }
    }

    /// A listener takes the place of the program's socket, so it has to be of the same family.
    fn fits(self, front: &Front) -> bool {
        match self {
            Self::V4 => front.address().is_ipv4(),
            Self::V6 => front.address().is_ipv6() && front.is_v6only(),
            Self::Dual => front.address().is_ipv6() && !front.is_v6only(),
        }
    }
}

impl Fronts {
    /// Takes over an address that was opened beside those of the specification; see
    /// [`open_for_family`](Self::open_for_family).
    pub(super) fn adopt_beside(
        &mut self,
        aims: &Aims<'_>,
        address: SocketAddr,
        descriptors: Vec<(String, OwnedFd)>,
        counted: &Counted<'_>,
        keeper: &mut Keeper,
    ) {
        let beside = |published: &&Published| published.is_beside(address);
        let Some(port) = self.list.iter().find(beside).map(|published| published.port.clone()) else { return };
        // Where it can't be, the next listen(2) of a program that takes IPv4 only has it opened again.
        if let Ok(front) = take_over(aims, (&port, address), descriptors, counted, keeper) {
            self.push(port, address, Ok(front));
        }
    }

    /// The inodes of all that listens by our doing where `address` would get connections of it, or it of the address.
    pub(super) fn allies(&self, address: SocketAddr, v6only: bool) -> io::Result<Vec<u32>> {
        let of_both = |published: &&Published| published.is_beside(address) && (published.is_dual() || !v6only);
        let fronts = self.list.iter().filter(of_both).filter_map(|published| published.front.as_ref().ok());
        Ok(fronts.map(Front::inodes).collect::<io::Result<Vec<_>>>()?.concat())
    }

    /// Whether it is one family of an address whose other one is there.
    pub(super) fn has_beside(&self, address: SocketAddr) -> bool {
        self.list.iter().any(|published| published.is_beside(address))
    }

    /// The first bound address of the port that the program's socket fits.
    pub(in crate::reconcile) fn for_family(&self, port: &PortSpec, family: ProgramFamily) -> Option<SocketAddr> {
        let of_port = |published: &&Published| published.port.container == port.container && !published.leaving;
        let of_port = self.list.iter().filter(of_port);
        let mut fitting = of_port.filter(|published| published.front.as_ref().is_ok_and(|front| family.fits(front)));
        fitting.next().map(|published| published.address)
    }

    /// Opens `0.0.0.0` beside `[::]`, whose IPv4 connections it gets from then on, for programs that take IPv4 only.
    pub(in crate::reconcile) fn open_for_family(
        &mut self,
        spec: &GroupSpec,
        host: &Host,
        slots: &[Slot],
        port: &PortSpec,
        family: ProgramFamily,
        keeper: &mut Keeper,
    ) -> Result<SocketAddr, String> {
        let unfit = || "its socket is of another address family than the published address".to_owned();
        let dual = self.list.iter().find(|published| {
            let all = published.address.ip() == Ipv6Addr::UNSPECIFIED;
            all && published.port.container == port.container && published.is_dual() && !published.leaving
        });
        let (Some(dual), ProgramFamily::V4) = (dual, family) else { return Err(unfit()) };
        let (address, port) = (SocketAddr::from((Ipv4Addr::UNSPECIFIED, dual.address.port())), dual.port.clone());
        let aims = Aims { spec, host, slots };
        let front = self.open(&aims, (&port, address), keeper).map_err(|error| chain(&error))?;
        self.push(port, address, Ok(front));
        fault::point("beside.opened");
        self.keep_all("beside.kept", keeper);
        Ok(address)
    }

    pub(in crate::reconcile) fn front_at(&self, address: SocketAddr) -> Option<&Front> {
        self.list.iter().find(|published| published.address == address)?.front.as_ref().ok()
    }

    pub(in crate::reconcile) fn front_at_mut(&mut self, address: SocketAddr) -> Option<&mut Front> {
        self.list.iter_mut().find(|published| published.address == address)?.front.as_mut().ok()
    }

    /// A key for an inner door.
    pub(in crate::reconcile) fn new_key(&mut self) -> PortKey {
        self.next_key += 1;
        PortKey(self.next_key - 1)
    }

    /// Has each address's connections of the slot go to its shard of this generation where that has a listener, else to
    /// its worker.
    pub(in crate::reconcile) fn choose_paths(&mut self, slot: SlotId, generation: Generation) {
        for (_, address, front) in self.open_fronts() {
            let (index, place) = (index_of(slot), place_of(front, generation));
            let path = if front.direct_cookie(index, place).is_some() { Path::Direct(place) } else { Path::Relay };
            if front.path(index) != path
                && let Err(error) = front.set_path(index, path)
            {
                tracing::error!(%address, %slot, "its path can't be chosen: {}", chain(&error));
            }
        }
    }

    /// Whether the slot's shard accepts the connections of some address itself.
    pub(in crate::reconcile) fn is_direct(&self, slot: SlotId) -> bool {
        self.bound().any(|front| front.path(index_of(slot)).is_direct())
    }

    /// A shard that has a listener may have taken the steering program off by it, whether it serves or not.
    pub(in crate::reconcile) fn attach_again(&self) {
        for front in self.bound() {
            if let Err(error) = front.attach_again() {
                tracing::error!(address = %front.address(), "its steering can't be attached: {error}");
            }
        }
    }

    /// The slot's connections, of the addresses where its shard accepts them itself.
    pub(in crate::reconcile) fn direct_counts(&self, slot: SlotId) -> Option<Counts> {
        let index = index_of(slot);
        let direct = self.bound().filter(|front| front.path(index).is_direct());
        direct.filter_map(|front| Some(front.cells()?.counts(index))).reduce(|sum, next| Counts {
            picked: sum.picked + next.picked,
            established: sum.established + next.established,
            closed: sum.closed + next.closed,
            lost: sum.lost + next.lost,
        })
    }

    /// All that is counted of the slot's connections, at each of these addresses.
    pub(in crate::reconcile) fn direct_readings(&self, slot: SlotId) -> impl Iterator<Item = CellReading> {
        let index = index_of(slot);
        let direct = self.bound().filter(move |front| front.path(index).is_direct());
        direct.filter_map(move |front| Some(front.cells()?.read(index)))
    }

    /// Where it did and its listener is gone, its worker accepts again; the container ports where that is so.
    pub(in crate::reconcile) fn leave_lost(&mut self, slot: SlotId) -> Vec<ContainerPort> {
        let index = index_of(slot);
        let mut lost = Vec::new();
        for published in &mut self.list {
            let Ok(front) = &mut published.front else { continue };
            let Path::Direct(place) = front.path(index) else { continue };
            if front.direct_cookie(index, place).is_some() {
                continue;
            }
            if let Err(error) = front.leave_direct(index, place) {
                tracing::error!(address = %published.address, %slot, "its direct listener stays in the array: {}", chain(&error));
            }
            lost.push(published.port.container);
        }
        lost
    }

    /// Whether the slot's shard has closed a listener that it served on.
    pub(in crate::reconcile) fn lost_direct(&self, slot: SlotId) -> bool {
        let index = index_of(slot);
        self.bound().any(|front| front.path(index).is_direct() && front.serving_cookie(index).is_none())
    }

    /// Whether steering of some address has one place for shards' listeners in each slot.
    pub(in crate::reconcile) fn have_one_place(&self) -> bool {
        self.bound().any(|front| front.places().len() == 1)
    }

    /// Whether the slot's connections of some address go to the place of its shard of this generation.
    pub(in crate::reconcile) fn points_at(&self, slot: SlotId, generation: Generation) -> bool {
        self.bound().any(|front| front.path(index_of(slot)) == Path::Direct(place_of(front, generation)))
    }

    /// Whether the slot's shard of this generation has a listener that steering points at, in service or not: some agent has
    /// seen it ready, and had it serve.
    pub(in crate::reconcile) fn has_served(&self, slot: SlotId, generation: Generation) -> bool {
        let index = index_of(slot);
        let is_there = |front: &Front| front.serving_cookie(index).is_some();
        self.bound().any(|front| front.path(index) == Path::Direct(place_of(front, generation)) && is_there(front))
    }

    /// Whether each of `reached` that is a listener in the hands of the slot's shard of this generation is there still.
    pub(in crate::reconcile) fn has_listeners(
        &self,
        slot: SlotId,
        generation: Generation,
        reached: &[(ContainerPort, Target)],
    ) -> bool {
        let present = self.direct_targets(slot, generation);
        let is_there = |port: ContainerPort| present.iter().any(|(there, _)| *there == port);
        reached.iter().all(|(port, target)| target.force.is_none() || is_there(*port))
    }

    /// The shard of this generation is gone: where it got the slot's connections, the slot is out, and its worker's again. A
    /// place that a shard of `others` has stays as it is.
    pub(in crate::reconcile) fn leave_direct(&mut self, slot: SlotId, generation: Generation, others: &[Generation]) {
        let index = index_of(slot);
        for (_, address, front) in self.open_fronts() {
            let place = place_of(front, generation);
            if others.iter().any(|other| place_of(front, *other) == place) {
                continue;
            }
            let served = front.path(index) == Path::Direct(place);
            let out = if served { front.set_in(index, false) } else { Ok(()) };
            let is_there = served || front.direct_cookie(index, place).is_some();
            let left = out.and_then(|()| if is_there { front.leave_direct(index, place) } else { Ok(()) });
            if let Err(error) = left {
                tracing::error!(%address, %slot, "its direct listener stays in the array: {}", chain(&error));
            }
        }
    }

    /// How the direct listeners of the slot's shard of this generation are reached from the host, by container port.
    pub(in crate::reconcile) fn direct_targets(
        &self,
        slot: SlotId,
        generation: Generation,
    ) -> Vec<(ContainerPort, Target)> {
        let index = index_of(slot);
        let target = |published: &Published| {
            let front = published.front.as_ref().ok()?;
            let place = place_of(front, generation);
            front.direct_cookie(index, place)?;
            // IPv4 that goes to a front of its own doesn't come to this one.
            let takes_v4 = published.is_dual() && !self.list.iter().any(|other| other.is_beside(published.address));
            let ip = host_address(front.address().ip(), takes_v4, published.port.loopback);
            let address = SocketAddr::new(ip, front.address().port());
            let force = front.force(index, place).ok()?;
            Some((published.port.container, Target { address, force: Some(force) }))
        };
        self.list.iter().filter_map(target).collect()
    }
}

impl Published {
    /// Whether it belongs to a specification with this address: it is that address, or was opened beside it.
    pub(super) fn serves(&self, wanted: SocketAddr) -> bool {
        self.address == wanted || (self.address.is_ipv4() && wanted.is_ipv6() && self.is_beside(wanted))
    }

    /// Whether one of the two is `0.0.0.0` and the other `[::]`, of one port.
    fn is_beside(&self, other: SocketAddr) -> bool {
        let both = self.address.ip().is_unspecified() && other.ip().is_unspecified();
        both && self.address.port() == other.port() && self.address.is_ipv4() != other.is_ipv4()
    }

    /// Whether some slot's shard accepts its connections itself.
    pub(in crate::reconcile) fn is_direct(&self) -> bool {
        let is_direct = |front: &Front| front.slots().any(|slot| front.path(slot).is_direct());
        self.front.as_ref().is_ok_and(is_direct)
    }

    pub(super) fn is_dual(&self) -> bool {
        self.front.as_ref().is_ok_and(|front| front.address().is_ipv6() && !front.is_v6only())
    }
}

/// The place of a shard's listener. Shards of a slot that run side by side have generations of different parity; an array
/// that an older agent made has one place, for all.
pub(in crate::reconcile) fn place_of(front: &Front, generation: Generation) -> Place {
    match front.places() {
        [even, odd, ..] => {
            if generation.is_multiple_of(2) {
                *even
            } else {
                *odd
            }
        }
        _ => Place::A,
    }
}

/// Where this host reaches a published address: its own address, and never loopback unless there is no other.
pub(in crate::reconcile) fn host_address(published: IpAddr, takes_v4: bool, loopback: bool) -> IpAddr {
    if !published.is_unspecified() {
        return published;
    }
    let trust = if loopback { Loopback::Allowed } else { Loopback::Never };
    // A host without an address has no clients but its own.
    let (families, otherwise): (&[Family], IpAddr) = match published {
        IpAddr::V4(_) => (&[Family::V4], Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) if takes_v4 => (&[Family::V4, Family::V6], Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => (&[Family::V6], Ipv6Addr::LOCALHOST.into()),
    };
    let own = Netns::current().ok();
    let found = own.and_then(|own| families.iter().find_map(|family| own.service_address(*family, trust).ok()));
    found.unwrap_or(otherwise)
}

/// What there is to look at of a group.
pub(in crate::reconcile) fn watched_shapes(name: &GroupName, group: &Group) -> impl Iterator<Item = WatchedShape> {
    let shape = |published: &Published| {
        let front = published.front.as_ref().ok()?;
        let slot = |(position, slot): (usize, &Slot)| {
            let (index, run) = (index_of(slot.id), group.slots.get(&slot.id)?);
            let is_direct = front.path(index).is_direct();
            Some(WatchedSlot {
                id: slot.id,
                index,
                weight: weight(position, slot.id, published.port.weights.as_deref(), group.fronts.shares()),
                in_service: front.is_in(index),
                is_direct,
                shard: front.serving_cookie(index).zip(run.living_pid()),
            })
        };
        let slots = group.planned().iter().enumerate().filter_map(slot).collect();
        Some(WatchedShape { group: name.clone(), address: published.address, slots })
    };
    group.fronts.list.iter().filter_map(shape)
}

impl Fronts {
    /// The same with the way to look at it.
    pub(in crate::reconcile) fn watched(&self, shape: &WatchedShape) -> Option<WatchedAddress> {
        let front = self.front_at(shape.address)?;
        let misses = shape.slots.iter().any(|slot| slot.is_direct).then(|| front.misses());
        let misses = misses.transpose().unwrap_or_else(|error| {
            tracing::warn!(address = %shape.address, "closed listeners are found late: {error}");
            None
        });
        Some(WatchedAddress { shape: shape.clone(), cells: front.cells().cloned(), misses })
    }
}
