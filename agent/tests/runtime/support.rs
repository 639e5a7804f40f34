//! What the tests of both runtimes share: orders for a shard, and the machine's CPUs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sherd::{
    runtime::{LogLine, ObservedShard, Runtime, ShardId, ShardKey, ShardOrder, ShardState},
    spec::GroupSpec,
};
use sherd_topology::{
    model::{CpuId, CpuSet, NodeId, NodeSet},
    plan::{MemoryBinding, Slot, SlotId},
};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The CPUs that a test may use, two where there are two.
pub(crate) fn cpus() -> Vec<u32> {
    sherd_lb::pinning::affinity().expect("affinity can be read")
}

pub(crate) fn slot(id: u32, cpus: &[u32]) -> Slot {
    Slot {
        id: SlotId(id),
        cpus: cpus.iter().map(|cpu| CpuId(*cpu)).collect::<CpuSet>(),
        mems: [NodeId(0)].into_iter().collect::<NodeSet>(),
        memory: MemoryBinding::Bind,
        memory_limit_bytes: None,
    }
}

pub(crate) fn order(toml: &str, slot: Slot, generation: u64) -> ShardOrder {
    let spec = GroupSpec::parse("test.toml", toml).unwrap_or_else(|faults| panic!("{faults}"));
    ShardOrder {
        key: ShardKey { group: spec.name.clone(), slot: slot.id },
        spec: Arc::new(spec),
        slot,
        shards: 2,
        generation,
        process_ports: Vec::new(),
        shim: None,
    }
}

pub(crate) async fn find(runtime: &dyn Runtime, id: &ShardId) -> Option<ObservedShard> {
    runtime.list().await.expect("a listing").shards.into_iter().find(|shard| shard.id == *id)
}

pub(crate) async fn state(runtime: &dyn Runtime, id: &ShardId) -> ShardState {
    find(runtime, id).await.unwrap_or_else(|| panic!("{id} is listed")).state
}

pub(crate) async fn running_pid(runtime: &dyn Runtime, id: &ShardId) -> u32 {
    match state(runtime, id).await {
        ShardState::Running { pid, .. } => pid,
        other => panic!("{id} runs, but is {other:?}"),
    }
}

/// Waits for the end of a shard.
pub(crate) async fn exit_code(runtime: &dyn Runtime, id: &ShardId) -> Option<i32> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match state(runtime, id).await {
            ShardState::Exited { code, .. } => return code,
            other => assert!(tokio::time::Instant::now() < deadline, "{id} ends, but is {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ask().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn lines(runtime: &dyn Runtime, id: &ShardId, tail: Option<usize>) -> Vec<String> {
    use futures_util::TryStreamExt;
    let lines: Vec<LogLine> = runtime.logs(id, tail, false).try_collect().await.expect("logs");
    lines.into_iter().map(|line| line.text).collect()
}

/// `NAME=VALUE` and `Name:\tvalue` lines as a map.
pub(crate) fn pairs(lines: &[String]) -> BTreeMap<String, String> {
    let split = |line: &String| line.split_once(['=', ':']).map(|(name, value)| (name.into(), value.trim().into()));
    lines.iter().filter_map(split).collect()
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("an async runtime")
        .block_on(future)
}
