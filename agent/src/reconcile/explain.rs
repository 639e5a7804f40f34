//! Where a connection goes, by the model of the steering program with what the front has in force. Asks and changes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sherd_lb::{
    front::{self, SteeringMode},
    table::{Choice, Flow, Policy, SlotIndex},
};
use sherd_topology::{model::Host, plan::SlotId};

use super::{
    Reconciler,
    group::Group,
    publish::{Published, host_address},
    steering_table::index_of,
    world,
};
use crate::{
    control::{ExplainError, ExplainQuestion},
    spec::HostPort,
    status::{CpuDestination, Destination, Explanation, Level, Outcome, Path, Steering},
};

impl Reconciler {
    pub(super) fn explain(&self, question: &ExplainQuestion) -> Result<Explanation, ExplainError> {
        let group = self.groups.get(&question.group);
        let group = group.ok_or_else(|| ExplainError::UnknownGroup { group: question.group.clone() })?;
        let client = SocketAddr::new(question.client.ip().to_canonical(), question.client.port());
        let question = ExplainQuestion { client, to: question.to.map(|to| to.to_canonical()), ..question.clone() };
        let published = published_for(group, &question)?;
        let server = server(published, &question);
        let not_published = || ExplainError::NotPublished { group: question.group.clone(), client };
        let front = published.front.as_ref().map_err(|_| not_published())?;
        Ok(Asked { group, published, front, flow: Flow { client, server }, host: &self.host }.answer(&question))
    }
}

/// One connection and everything that decides about it.
struct Asked<'a> {
    group: &'a Group,
    published: &'a Published,
    front: &'a world::Front,
    flow: Flow,
    host: &'a Host,
}

impl Asked<'_> {
    fn answer(&self, question: &ExplainQuestion) -> Explanation {
        let port = &self.published.port;
        let shares = self.group.fronts.shares();
        let table = super::publish::shared_table(self.host, self.group.planned(), port, shares);
        let explained = self.front.explain(&table);
        let by_cpu = port.policy == Policy::Local;
        let cpus = self.host.online().iter().filter(|_| by_cpu);
        let by_cpu_goes = cpus.map(|cpu| CpuDestination { cpu: cpu.0, goes: self.destination(&explained, cpu.0) });
        let goes = (!by_cpu).then(|| self.destination(&explained, 0));
        let slot = goes.as_ref().and_then(|goes| goes.slot);
        let otherwise = slot.and_then(|slot| explained.without(index_of(slot)));
        // The hash is the same on every CPU.
        let reasoning = explained.reason(&self.flow, 0);
        let entry = reasoning.and_then(|reasoning| reasoning.entry);
        Explanation {
            group: self.group.spec.name.clone(),
            client: self.flow.client,
            server: self.flow.server,
            server_guessed: question.to.is_none() && self.published.address.ip().is_unspecified(),
            published: self.published.address,
            policy: port.policy.to_string(),
            steering: match self.front.mode() {
                SteeringMode::Ebpf => Steering::Ebpf,
                SteeringMode::Classic { .. } => Steering::Classic,
            },
            hash: reasoning.map(|reasoning| format!("{:#018x}", reasoning.hash)),
            entry: entry.map(|(place, _)| place),
            table_len: table.table_len,
            first_choice: entry.map(|(_, slot)| slot_id(slot)),
            in_service: self.front.in_service().iter().map(slot_id).collect(),
            goes,
            otherwise: otherwise.map(|explained| self.destination(&explained, 0)),
            by_cpu: by_cpu_goes.collect(),
        }
    }

    fn destination(&self, explained: &world::Explanation, cpu: u32) -> Destination {
        let level = explained.reason(&self.flow, cpu).map(|reasoning| level(reasoning.level));
        match explained.choose(&self.flow, cpu) {
            Choice::Slot(slot) => {
                let path = match self.front.path(slot) {
                    front::Path::Direct(_) => Path::Direct,
                    front::Path::Relay => Path::Relay,
                };
                Destination { outcome: Outcome::Slot, slot: Some(slot_id(slot)), path: Some(path), level }
            }
            Choice::Anchor => Destination { outcome: Outcome::Waits, slot: None, path: None, level: None },
            Choice::Refused => Destination { outcome: Outcome::Refused, slot: None, path: None, level: None },
        }
    }
}

/// The published address that takes the connection: the most specific, as the kernel chooses.
fn published_for<'a>(group: &'a Group, question: &ExplainQuestion) -> Result<&'a Published, ExplainError> {
    let of_port = |published: &&Published| question.port.is_none_or(|port| published.address.port() == port.0);
    let takes = |published: &&Published| takes(published, question);
    let mut fitting: Vec<&Published> = group.fronts.list.iter().filter(of_port).filter(takes).collect();
    fitting.sort_by_key(|published| (published.address.ip().is_unspecified(), published.address.is_ipv6()));
    let mut ports: Vec<HostPort> = fitting.iter().map(|published| HostPort(published.address.port())).collect();
    ports.sort_unstable();
    ports.dedup();
    match (fitting.first(), ports.len()) {
        (Some(published), 1) => Ok(published),
        (Some(_), _) => Err(ExplainError::WhichPort { group: question.group.clone(), ports }),
        (None, _) => Err(ExplainError::NotPublished { group: question.group.clone(), client: question.client }),
    }
}

fn takes(published: &Published, question: &ExplainQuestion) -> bool {
    let Some(front) = published.front.as_ref().ok().filter(|_| !published.leaving) else { return false };
    let family = match (question.client.is_ipv4(), published.address.is_ipv4()) {
        (true, true) | (false, false) => true,
        (true, false) => !front.is_v6only(),
        (false, true) => false,
    };
    let ip = published.address.ip();
    family
        && question.to.is_none_or(|to| (ip.is_unspecified() || ip == to) && to.is_ipv4() == question.client.is_ipv4())
}

/// Where the client connects: what was said, what is published, or what such a client most likely uses.
fn server(published: &Published, question: &ExplainQuestion) -> SocketAddr {
    let is_v4 = question.client.is_ipv4();
    let ip = match question.to {
        Some(to) => to,
        None if !published.address.ip().is_unspecified() => published.address.ip(),
        None if question.client.ip().is_loopback() => match is_v4 {
            true => Ipv4Addr::LOCALHOST.into(),
            false => Ipv6Addr::LOCALHOST.into(),
        },
        None => {
            let all: IpAddr = if is_v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            host_address(all, is_v4, false)
        }
    };
    SocketAddr::new(ip, published.address.port())
}

fn slot_id(slot: SlotIndex) -> SlotId {
    SlotId(u32::from(slot.0))
}

fn level(level: sherd_lb::table::Level) -> Level {
    use sherd_lb::table::Level as Kernel;
    match level {
        Kernel::First => Level::First,
        Kernel::Lighter => Level::Lighter,
        Kernel::L3 => Level::L3,
        Kernel::Node => Level::Node,
        Kernel::Package => Level::Package,
        Kernel::Any => Level::Any,
    }
}
