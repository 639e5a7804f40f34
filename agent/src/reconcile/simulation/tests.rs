//! Seeds in numbers, and faults of the loop that they have to find.

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use super::{
    life::{Outcome, live},
    plants::Plant,
};

/// Worlds of the short form.
const SEEDS: u64 = 400;
/// Worlds of the long form (`SHERD_PROVE=1`).
const SEEDS_TO_PROVE: u64 = 100_000;
/// Worlds within which each planted fault is found.
const SEEDS_TO_FIND: u64 = 300;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

fn replay(seed: u64) -> String {
    format!(
        "SHERD_SEED={seed} cargo test -p sherd --lib --features simulation simulation::tests::the_laws -- --nocapture"
    )
}

#[test]
fn the_laws_hold_whatever_fails() {
    if let Some(seed) = number("SHERD_SEED") {
        let said = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).without_time().with_ansi(false);
        let said = said.with_target(false).with_writer(std::io::stdout).finish();
        let Outcome { turns, lives, broken } = tracing::subscriber::with_default(said, || live(seed, None, true));
        println!("seed {seed}: {turns} turns, {lives} agents");
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        return;
    }
    let proves = env::var_os("SHERD_PROVE").is_some();
    let seeds = number("SHERD_SEEDS").unwrap_or(if proves { SEEDS_TO_PROVE } else { SEEDS });
    let began = Instant::now();
    let (next, turns, lives) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        let mut found = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return found;
            }
            let outcome = live(seed, None, false);
            turns.fetch_add(outcome.turns, Ordering::Relaxed);
            lives.fetch_add(outcome.lives, Ordering::Relaxed);
            if let Some(broken) = outcome.broken.first() {
                found.push(format!("seed {seed}: {broken}\n  {}", replay(seed)));
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let found: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a seed is lived to its end")).collect()
    });
    let (turns, lives) = (turns.into_inner(), lives.into_inner());
    println!("{seeds} seeds, {turns} turns, {lives} agents in {:.1?} on {threads} threads", began.elapsed());
    assert!(found.is_empty(), "{} of {seeds} seeds:\n{}", found.len(), found[..found.len().min(20)].join("\n"));
}

/// That `plant` is found, by what law.
fn check(plant: Plant, expected: &str) {
    let found =
        (0..SEEDS_TO_FIND).find_map(|seed| Some((seed, live(seed, Some(plant), false).broken.into_iter().next()?)));
    let Some((seed, broken)) = found else { panic!("{plant:?}: not found by {SEEDS_TO_FIND} seeds") };
    println!("{plant:?} is found by seed {seed}: {broken}");
    assert!(broken.contains(expected), "{plant:?} is found otherwise: {broken}");
}

#[test]
fn a_shard_that_is_stopped_too_early_is_found() {
    check(Plant::StopsBeforeTakingOut, "is stopped while connections go to it");
}

#[test]
fn a_shard_that_serves_before_it_is_ready_is_found() {
    check(Plant::BelievesWhatRuns, "its shard was never ready");
}

#[test]
fn a_rollout_that_replaces_too_many_at_once_is_found() {
    check(Plant::ReplacesAllAtOnce, "were given up at once");
}

#[test]
fn a_specification_that_is_lost_is_found() {
    check(Plant::ForgetsFiles, "and is forgotten");
}

#[test]
fn a_listener_that_only_the_agent_has_is_found() {
    check(Plant::ForgetsDescriptors, "the holder doesn't have");
}

#[test]
fn a_container_of_somebody_else_that_is_touched_is_found() {
    check(Plant::BelievesLabels, "is not ours");
}

#[test]
fn cpus_that_two_slots_get_are_found() {
    check(Plant::GivesCpusTwice, "are another slot's too");
}

#[test]
fn a_slot_that_is_given_up_after_a_failure_is_found() {
    check(Plant::NeverRestarts, "not settled");
}

#[test]
fn a_shard_that_stays_where_it_was_moved_is_found() {
    check(Plant::NeverRepins, "not settled");
}

#[test]
fn a_slot_that_stays_in_service_without_a_shard_is_found() {
    check(Plant::NeverTakesOut, "not settled");
}

#[test]
fn rules_that_undo_each_other_are_found() {
    check(Plant::Dithers, "do not settle");
}
