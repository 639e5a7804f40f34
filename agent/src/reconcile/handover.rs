//! Relayed connections over a planned restart: the agent that ends gives them to the holder, the next one takes them back. Owns
//! the holder's names of them; what a connection is, [`sherd_lb::relay`] knows.
//!
//! A parcel is in one place only: before the holder has it, it ends with the agent and its connections are reset; from then on
//! this agent touches none of them; and whoever opens it has emptied it. So no connection is ever in two hands, whenever
//! an agent dies.

mod give;
mod report;
mod take;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use sherd_lb::relay::{PortKey, Role};
use sherd_topology::plan::{GroupName, SlotId};

use super::group::Group;
use crate::{runtime::ShardKey, spec::ContainerPort};

pub(super) use self::take::Returning;

/// The holder's names of parcels begin so.
const PREFIX: &str = "relayed/";

/// How long workers may take together to give up what they have: some microseconds a connection, on a host that may be busy. The
/// unit's TimeoutStopSec is longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A parcel of the slot's worker. `stamp` and `number` tell it from all others: those of another hand-over may still be there.
fn parcel_name(key: &ShardKey, stamp: u64, number: usize) -> String {
    format!("{PREFIX}{}/{}/{stamp:013}-{number:06}", key.group, key.slot)
}

fn parse_parcel_name(name: &str) -> Option<ShardKey> {
    let mut parts = name.strip_prefix(PREFIX)?.split('/');
    let (group, slot, _) = (parts.next()?, parts.next()?, parts.next()?);
    Some(ShardKey { group: group.parse::<GroupName>().ok()?, slot: SlotId(slot.parse().ok()?) })
}

/// What the next agent knows a port by: its published address; an inner door by its shard's port, at no address.
fn inner_address(container: ContainerPort) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, container.0).into()
}

/// Of the group's ports, each with who its connections are for, the address that [`inner_address`] and publishing give them.
fn ports(group: &Group) -> Vec<(PortKey, SocketAddr)> {
    let published = group.fronts.list.iter().map(|published| (published.key, published.address));
    let directs = group.slots.values().flat_map(|slot| slot.directs.values());
    let grafts = directs.flat_map(|direct| &direct.grafts);
    published.chain(grafts.map(|graft| (graft.key, inner_address(graft.container)))).collect()
}

/// The group's port that was known by `address`, for connections of the slot's worker.
fn port_at(group: &Group, slot: SlotId, address: SocketAddr, role: Role) -> Option<PortKey> {
    if role != Role::Inner {
        return group.fronts.list.iter().find(|published| published.address == address).map(|published| published.key);
    }
    // A slot that is being replaced has two shards: the newer one serves, or is about to.
    let mut grafts = group.slots.get(&slot)?.directs.values().rev().flat_map(|direct| &direct.grafts);
    grafts.find(|graft| inner_address(graft.container) == address).map(|graft| graft.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parcel_is_found_by_its_name() {
        let key = ShardKey { group: "a-group".parse().expect("a name"), slot: SlotId(17) };
        let name = parcel_name(&key, 1_763_851_234_567, 3);
        assert_eq!(name, "relayed/a-group/17/1763851234567-000003");
        assert_eq!(parse_parcel_name(&name), Some(key));
        for stranger in ["relayed/web/1", "relayed/web/x/1", "relayed//1/1", "front/web/1/1", "relayed-report"] {
            assert_eq!(parse_parcel_name(stranger), None, "{stranger}");
        }
    }
}
