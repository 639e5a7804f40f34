//! What idle connections cost in memory: measured first and once, because an allocator that has grown under load shows
//! nothing any more.

use super::{
    super::{ComparisonError, idle::settled},
    field::Field,
};
use crate::{
    contestant::Contestant,
    interrupt::Interrupt,
    load::{IdleConnections, IdleError},
    report::{Progress, Settings},
    sample::IdleMemory,
};

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
    let all = field.contestants.iter().map(AsRef::as_ref);
    all.map(|contestant: &dyn Contestant| measure_one(contestant, field, settings, interrupt)).collect()
}

fn measure_one(
    contestant: &dyn Contestant,
    field: &Field,
    settings: &Settings,
    interrupt: &Interrupt,
) -> Result<IdleMemory, ComparisonError> {
    let name = &contestant.facts().name;
    let before = settled(contestant, &field.shards)?;
    let connections =
        IdleConnections::open(contestant.addresses(), settings.idle_connections, settings.answer_bytes, interrupt)
            .map_err(|source| match source {
                IdleError::Interrupted => ComparisonError::Interrupted,
                source => ComparisonError::Idle { contestant: name.clone(), source },
            })?;
    let after = settled(contestant, &field.shards)?;
    Ok(IdleMemory {
        contestant: name.clone(),
        connections: connections.len(),
        pss_before_bytes: before.balancer,
        pss_after_bytes: after.balancer,
        slab_before_bytes: before.slab,
        slab_after_bytes: after.slab,
    })
}
