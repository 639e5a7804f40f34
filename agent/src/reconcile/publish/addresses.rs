//! From a specification to what is bound for it: addresses, configurations, bounds, and the holder's names of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
};

use sherd_lb::{
    cells::Cells,
    front::{FrontConfig, OpenError},
    relay::Limits,
    table::{MAX_SLOTS, SlotIndex, SteeringTable},
};
use sherd_topology::{
    model::Host,
    plan::{GroupName, Slot, SlotId},
};

use super::{Fronts, Published};
use crate::{
    control::ApplyError,
    reconcile::{
        chain,
        keeper::Keeper,
        steering_table::{self, PortChoice},
        world::Front,
    },
    spec::{GroupSpec, PortSpec, RuntimeSpec, Unready},
};

/// Slots that a front has room for beyond those it starts with: its sockarray can't grow.
const SPARE_SLOTS: usize = 64;

/// The bounds of a worker.
pub(in crate::reconcile) fn limits(spec: &GroupSpec) -> Limits {
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

/// The holder's names of what belongs to a group's addresses begin so.
pub(in crate::reconcile) fn group_prefix(group: &GroupName) -> String {
    format!("front/{group}/")
}

/// The holder's names of what belongs to an address begin so.
pub(super) fn prefix(group: &GroupName, address: SocketAddr) -> String {
    format!("{}{address}/", group_prefix(group))
}

/// Sorts what the holder has of a group by address.
pub(in crate::reconcile) fn by_address(
    kept: Vec<(String, OwnedFd)>,
    group: &GroupName,
) -> BTreeMap<SocketAddr, Vec<(String, OwnedFd)>> {
    let mut sorted: BTreeMap<SocketAddr, Vec<(String, OwnedFd)>> = BTreeMap::new();
    let before = group_prefix(group);
    for (name, descriptor) in kept {
        let rest = name.strip_prefix(&before).and_then(|rest| rest.split_once('/'));
        match rest.and_then(|(address, name)| Some((address.parse().ok()?, name.to_owned()))) {
            Some((address, name)) => sorted.entry(address).or_default().push((name, descriptor)),
            None => tracing::warn!(name, "the holder has something that is not named as we name"),
        }
    }
    sorted
}

/// Whether "all addresses" are one front for both families. So it is for containers, whichever path they are on: a program's
/// listening socket can be replaced by one listener only, most listen on `[::]` for both, and a listener stays what it
/// is when the path changes. Processes have two fronts, of which the one of `[::]` takes no IPv4.
fn is_one_for_both(spec: &GroupSpec) -> bool {
    matches!(spec.runtime, RuntimeSpec::Docker(_))
}

/// What is to be published.
pub(super) fn addresses_of(spec: &GroupSpec) -> impl Iterator<Item = (&PortSpec, SocketAddr)> {
    let one_for_both = is_one_for_both(spec);
    spec.ports.iter().flat_map(move |port| {
        let addresses = port.host.addresses().into_iter();
        let kept = addresses.filter(move |address| {
            !(one_for_both && port.host.ip.is_none() && address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        });
        kept.map(move |address| (port, address))
    })
}

/// The table of a port, with slots that get less than their share.
pub(in crate::reconcile) fn shared_table(
    host: &Host,
    slots: &[Slot],
    port: &PortSpec,
    shares: &BTreeMap<SlotId, u32>,
) -> SteeringTable {
    let (weights, table_len) = (port.weights.as_deref(), port.table_len(slots.len()));
    steering_table::build(host, slots, PortChoice { policy: port.policy, weights, shares, table_len })
}

/// What a group's addresses are opened for.
pub(super) struct Aims<'a> {
    pub(super) spec: &'a GroupSpec,
    pub(super) host: &'a Host,
    pub(super) slots: &'a [Slot],
}

impl Aims<'_> {
    pub(super) fn config(&self, address: SocketAddr, keeper: &Keeper) -> FrontConfig {
        config(self.spec, address, (self.host.online().len(), self.slots.len()), keeper.cells())
    }

    /// The table of a port while every slot gets its whole share.
    pub(super) fn table(&self, port: &PortSpec) -> SteeringTable {
        shared_table(self.host, self.slots, port, &BTreeMap::new())
    }
}

/// How many relayed connections of a slot at an address go on, that a former agent had.
pub(super) type Counted<'a> = dyn Fn(SocketAddr, SlotIndex) -> u64 + 'a;

/// Goes on with what the holder kept of an address, and takes off its load what a former agent relayed and nobody does any
/// more. Where that can't be, the holder lets go of it: a former agent may have
/// been killed while it opened the address, whose anchor would listen there for nobody, and against us.
pub(super) fn take_over(
    aims: &Aims<'_>,
    (port, address): (&PortSpec, SocketAddr),
    kept: Vec<(String, OwnedFd)>,
    counted: &Counted<'_>,
    keeper: &mut Keeper,
) -> Result<Front, String> {
    let group = &aims.spec.name;
    let front = Front::adopt(kept, &aims.config(address, keeper), &aims.table(port));
    front.inspect(|front| front.forget_relayed(|slot| counted(address, slot))).map_err(|error| {
        let error = chain(&error);
        tracing::error!(%group, %address, "what the holder kept can't be taken over, it is let go: {error}");
        keeper.remove_prefix(&prefix(group, address));
        error
    })
}

/// For `slots` on a machine of so many CPUs; their connections are counted in `cells`.
fn config(
    spec: &GroupSpec,
    address: SocketAddr,
    (cpus, slots): (usize, usize),
    cells: Option<&Arc<Cells>>,
) -> FrontConfig {
    // One per CPU is the most that an exclusive group can grow to.
    let room = (2 * slots).max(cpus + SPARE_SLOTS).min(usize::from(MAX_SLOTS));
    let all = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let named = |port: &PortSpec| port.host.ip.is_some() && port.host.addresses().contains(&address);
    FrontConfig {
        address,
        v6only: !(all && is_one_for_both(spec) && !spec.ports.iter().any(named)),
        allies: Vec::new(),
        backlog: i32::try_from(spec.relay.backlog).unwrap_or(i32::MAX),
        max_slots: u16::try_from(room).unwrap_or(MAX_SLOTS),
        unready: match spec.unready {
            Unready::Wait(_) => sherd_lb::front::Unready::Wait,
            Unready::Refuse => sherd_lb::front::Unready::Refuse,
        },
        force_classic: false,
        cells: cells.cloned(),
    }
}

pub(super) fn not_open(address: SocketAddr, error: OpenError) -> ApplyError {
    match error {
        OpenError::PortTaken { by, .. } => ApplyError::PortTaken { address, by: by.to_string() },
        error => ApplyError::Publish { address, source: Box::new(error) },
    }
}

impl Fronts {
    /// Whether an address is published already, by itself or by a front for both families.
    pub(super) fn covers(&self, address: SocketAddr) -> bool {
        let dual = |published: &Published| {
            let all = published.address == SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
            all && published.is_dual() && address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        self.list.iter().any(|published| published.front.is_ok() && (published.address == address || dual(published)))
    }

    /// A bound address whose table would be longer than it has memory for: how long, and what there is memory for.
    pub(super) fn too_long(&self, spec: &GroupSpec, slots: usize) -> Option<(SocketAddr, u32, u32)> {
        let mut found = self.list.iter().filter_map(|published| {
            let front = published.front.as_ref().ok()?;
            let (port, _) = addresses_of(spec).find(|(_, wanted)| published.serves(*wanted))?;
            let (wanted, max) = (port.table_len(slots), front.max_table_len());
            (wanted > max).then_some((published.address, wanted, max))
        });
        found.next()
    }

    /// An address of the specification that can't be had while what the group publishes stays, as running shards need
    /// it to: two of its listeners would be meant for one connection, or one for more than is published.
    pub(super) fn in_the_way(&self, spec: &GroupSpec) -> Option<SocketAddr> {
        let wanted = addresses_of(spec).map(|(_, address)| address);
        let mut bound = wanted.filter(|wanted| {
            self.list.iter().any(|published| {
                let Ok(front) = &published.front else { return false };
                let takes_v4 = published.is_dual();
                match published.address == *wanted {
                    true => takes_v4 && config(spec, *wanted, (0, 0), None).v6only,
                    false => !self.covers(*wanted) && overlaps(front.address(), takes_v4, *wanted),
                }
            })
        });
        bound.next()
    }
}

/// Whether a connection to some address could be meant for both.
fn overlaps(bound: SocketAddr, takes_v4: bool, wanted: SocketAddr) -> bool {
    let same_family = bound.is_ipv4() == wanted.is_ipv4();
    let family = same_family || (takes_v4 && wanted.is_ipv4());
    let any = bound.ip().is_unspecified() || wanted.ip().is_unspecified();
    bound.port() == wanted.port() && family && (any || bound.ip() == wanted.ip())
}
