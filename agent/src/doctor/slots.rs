//! Which CPUs and ports the agent's groups have, from its status. Pure.

use std::collections::BTreeSet;

use sherd_topology::model::CpuSet;

use super::facts::HostFacts;
use crate::status::{AgentStatus, GroupState, GroupStatus};

/// What groups have of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Claims {
    /// CPUs of all slots.
    pub(super) cpus: CpuSet,
    /// Of these, CPUs that only one group has and whose group takes connections from anywhere. With the policy `local`
    /// packets belong on the slots' CPUs.
    pub(super) quiet: CpuSet,
    /// Groups with the policy `local` and their CPUs.
    pub(super) local: Vec<(String, CpuSet)>,
    /// Published ports.
    pub(super) ports: BTreeSet<u16>,
}

impl Claims {
    pub(super) fn of(status: &AgentStatus) -> Self {
        let mut claims = Self::default();
        let groups: Vec<(&GroupStatus, CpuSet)> = status
            .groups
            .iter()
            .filter(|group| group.state != GroupState::Stopped)
            .map(|group| (group, cpus(group)))
            .collect();
        for (group, cpus) in &groups {
            claims.cpus = claims.cpus.union(cpus);
            claims.ports.extend(group.ports.iter().map(|port| port.address.port()));
            let others = groups.iter().filter(|(other, _)| other.name != group.name);
            let shared = others.fold(CpuSet::new(), |sum, (_, others)| sum.union(others));
            if group.ports.iter().any(|port| port.policy == "local") {
                claims.local.push((group.name.to_string(), cpus.clone()));
            } else {
                claims.quiet = claims.quiet.union(&cpus.difference(&shared));
            }
        }
        claims
    }

    /// CPUs that no slot has.
    pub(super) fn left_over(&self, online: &CpuSet) -> CpuSet {
        online.difference(&self.cpus)
    }
}

impl HostFacts {
    /// What the agent's groups have; nothing where no agent answers.
    pub(super) fn claims(&self) -> Option<Claims> {
        self.status().map(Claims::of)
    }

    /// What the agent says, if it answers. That it doesn't is a finding of its own.
    pub(super) fn status(&self) -> Option<&AgentStatus> {
        self.agent.as_ref().ok().and_then(Option::as_ref)
    }
}

fn cpus(group: &GroupStatus) -> CpuSet {
    group.slots.iter().fold(CpuSet::new(), |sum, slot| sum.union(&slot.cpus))
}
