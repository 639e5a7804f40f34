//! How many idle connections this host can hold, and what memory is taken once it has settled; starts and opens nothing.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Pid;

use super::ComparisonError;
use crate::{
    contestant::Contestant,
    measure::{pss_bytes, raise_open_files, slab_bytes},
};

/// Memory is taken as settled when it hasn't changed over one step, at the latest after [`SETTLE_LIMIT`].
const SETTLE_STEP: Duration = Duration::from_millis(150);
const SETTLE_LIMIT: Duration = Duration::from_secs(3);
/// Connections that a balancer must be able to hold besides those of the largest load.
pub(super) const SLACK_CONNECTIONS: usize = 500;
/// Files that a balancer may have open besides two for each connection: HAProxy's pipes, listeners, logs.
const OTHER_FILES: usize = 2000;

/// A balancer needs two files for each connection; where the limit can't be raised that far there are fewer of them than
/// `wanted`, and a remark says so.
pub(super) fn fit(wanted: usize, remarks: &mut Vec<String>) -> Result<usize, ComparisonError> {
    let files = 2 * (wanted + SLACK_CONNECTIONS) + OTHER_FILES;
    let limit = raise_open_files(files as u64).map_err(|errno| ComparisonError::Host(errno.into()))?;
    let affordable = ((limit as usize).saturating_sub(OTHER_FILES) / 2).saturating_sub(SLACK_CONNECTIONS);
    if affordable >= wanted {
        return Ok(wanted);
    }
    remarks.push(format!(
        "{affordable} idle connections instead of {wanted}: the limit of open files is {limit} and cannot be raised"
    ));
    Ok(affordable)
}

/// Memory at one moment, in bytes.
pub(super) struct Memory {
    /// The balancer's proportional set size; none where there is no balancer.
    pub(super) balancer: Option<u64>,
    /// That of the shards.
    pub(super) shards: u64,
    /// The kernel's slab memory, whole host.
    pub(super) slab: u64,
}

/// What is taken by `contestant`, its `shards` and the kernel.
pub(super) fn settled(contestant: &dyn Contestant, shards: &[Pid]) -> Result<Memory, ComparisonError> {
    let start = Instant::now();
    let mut last = resident(contestant, shards)?;
    loop {
        thread::sleep(SETTLE_STEP);
        let now = resident(contestant, shards)?;
        if now == last || start.elapsed() > SETTLE_LIMIT {
            let slab = slab_bytes().map_err(ComparisonError::Host)?;
            return Ok(Memory { balancer: now.0, shards: now.1, slab });
        }
        last = now;
    }
}

/// Of balancer and shards.
fn resident(contestant: &dyn Contestant, shards: &[Pid]) -> Result<(Option<u64>, u64), ComparisonError> {
    let of = |processes: &[Pid]| {
        let fail = |source| ComparisonError::Process { contestant: contestant.facts().name.clone(), source };
        pss_bytes(processes).map_err(fail)
    };
    let balancer = contestant.balancer();
    Ok(((!balancer.is_empty()).then(|| of(&balancer)).transpose()?, of(shards)?))
}
