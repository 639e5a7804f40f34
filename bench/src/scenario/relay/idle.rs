//! What idle connections cost in memory: measured first and once, because an allocator that has grown under load shows
//! nothing any more.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{super::ComparisonError, field::Field};
use crate::{
    contestant::Contestant,
    interrupt::Interrupt,
    load::{IdleConnections, IdleError},
    measure::{pss_bytes, slab_bytes},
    report::{Progress, Settings},
    sample::IdleMemory,
};

/// Memory is taken as settled when it hasn't changed over one step, at the latest after [`SETTLE_LIMIT`].
const SETTLE_STEP: Duration = Duration::from_millis(150);
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

pub(super) fn measure(
    field: &Field,
    settings: &Settings,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Vec<IdleMemory>, ComparisonError> {
    if settings.idle_connections == 0 {
        return Ok(Vec::new());
    }
    progress.say(&format!("memory of {} idle connections", settings.idle_connections));
    field.contestants.iter().map(|contestant| measure_one(contestant.as_ref(), settings, interrupt)).collect()
}

fn measure_one(
    contestant: &dyn Contestant,
    settings: &Settings,
    interrupt: &Interrupt,
) -> Result<IdleMemory, ComparisonError> {
    let name = &contestant.facts().name;
    let before = settled(contestant)?;
    let connections =
        IdleConnections::open(contestant.addresses(), settings.idle_connections, settings.answer_bytes, interrupt)
            .map_err(|source| match source {
                IdleError::Interrupted => ComparisonError::Interrupted,
                source => ComparisonError::Idle { contestant: name.clone(), source },
            })?;
    let after = settled(contestant)?;
    Ok(IdleMemory {
        contestant: name.clone(),
        connections: connections.len(),
        pss_before_bytes: before.pss,
        pss_after_bytes: after.pss,
        slab_before_bytes: before.slab,
        slab_after_bytes: after.slab,
    })
}

struct Memory {
    pss: Option<u64>,
    slab: u64,
}

fn settled(contestant: &dyn Contestant) -> Result<Memory, ComparisonError> {
    let start = Instant::now();
    let mut last = pss(contestant)?;
    loop {
        thread::sleep(SETTLE_STEP);
        let now = pss(contestant)?;
        if now == last || start.elapsed() > SETTLE_LIMIT {
            return Ok(Memory { pss: now, slab: slab_bytes().map_err(ComparisonError::Host)? });
        }
        last = now;
    }
}

fn pss(contestant: &dyn Contestant) -> Result<Option<u64>, ComparisonError> {
    let processes = contestant.balancer();
    if processes.is_empty() {
        return Ok(None);
    }
    let fail = |source| ComparisonError::Process { contestant: contestant.facts().name.clone(), source };
    pss_bytes(&processes).map(Some).map_err(fail)
}
