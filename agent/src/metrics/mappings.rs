//! NUMA nodes of shards whose control group doesn't tell: their processes' mappings, looked at seldom. Decides when; who
//! calls it reads.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use sherd_topology::model::NodeSet;

use super::{Usage, locality::ByNode};

/// How often one process is looked at, at most. Besides, each sample looks at one process only.
const LEAST_INTERVAL: Duration = Duration::from_secs(60);

/// What was last found, by process.
#[derive(Debug)]
pub(super) struct Mappings {
    /// On a machine with one node there is nothing to find out.
    has_several_nodes: bool,
    found: BTreeMap<u32, (Instant, ByNode)>,
}

impl Mappings {
    pub(super) fn of_this_host() -> Self {
        let nodes = fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
        Self::new(nodes.trim().parse::<NodeSet>().is_ok_and(|nodes| nodes.len() > 1))
    }

    fn new(has_several_nodes: bool) -> Self {
        Self { has_several_nodes, found: BTreeMap::new() }
    }

    /// Fills in what control groups didn't tell.
    pub(super) fn complete(
        &mut self,
        shards: &mut BTreeMap<u32, Usage>,
        now: Instant,
        read: impl FnOnce(u32) -> ByNode,
    ) {
        if !self.has_several_nodes {
            return;
        }
        self.found.retain(|pid, _| shards.contains_key(pid));
        let mut unknown: Vec<u32> =
            shards.iter().filter(|(_, usage)| usage.memory_by_node.is_empty()).map(|(pid, _)| *pid).collect();
        // The one that was looked at longest ago, or never.
        unknown.sort_by_key(|pid| self.found.get(pid).map(|(at, _)| *at));
        let due = |at: &(Instant, ByNode)| now.duration_since(at.0) >= LEAST_INTERVAL;
        if let Some(&pid) = unknown.first()
            && self.found.get(&pid).is_none_or(due)
        {
            self.found.insert(pid, (now, read(pid)));
        }
        for pid in unknown {
            if let (Some((_, by_node)), Some(usage)) = (self.found.get(&pid), shards.get_mut(&pid)) {
                usage.memory_by_node = by_node.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sherd_topology::model::NodeId;

    use super::*;

    #[test]
    fn one_process_a_sample_and_each_at_most_once_a_minute() {
        let mut mappings = Mappings::new(true);
        let start = Instant::now();
        let known = Usage { memory_by_node: ByNode::from([(NodeId(7), 1)]), ..Usage::default() };
        // Seconds after the start, what is looked at, who is known afterwards.
        let mut check = |seconds, looks_at: Option<u32>, knows: &[u32]| {
            let mut shards = BTreeMap::from([(1, Usage::default()), (2, Usage::default()), (3, known.clone())]);
            let mut looked_at = None;
            mappings.complete(&mut shards, start + Duration::from_secs(seconds), |pid| {
                looked_at = Some(pid);
                ByNode::from([(NodeId(0), u64::from(pid))])
            });
            assert_eq!(looked_at, looks_at, "after {seconds} s");
            let told = |pid: &u32| shards[pid].memory_by_node == ByNode::from([(NodeId(0), u64::from(*pid))]);
            assert_eq!([1, 2].into_iter().filter(told).collect::<Vec<_>>(), knows, "after {seconds} s");
            assert_eq!(shards[&3], known);
        };
        check(0, Some(1), &[1]);
        check(1, Some(2), &[1, 2]);
        check(59, None, &[1, 2]);
        check(60, Some(1), &[1, 2]);
        check(60, None, &[1, 2]);
        check(61, Some(2), &[1, 2]);
    }

    #[test]
    fn a_machine_with_one_node_and_processes_that_are_gone_cost_nothing() {
        let mut shards = BTreeMap::from([(1, Usage::default())]);
        Mappings::new(false).complete(&mut shards, Instant::now(), |_| unreachable!("there is one node"));
        let mut mappings = Mappings::new(true);
        mappings.complete(&mut shards, Instant::now(), |_| ByNode::new());
        mappings.complete(&mut BTreeMap::new(), Instant::now(), |_| unreachable!("there is no shard"));
        assert!(mappings.found.is_empty());
    }
}
