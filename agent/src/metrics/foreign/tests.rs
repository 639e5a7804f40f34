//! Tables of readings and what they add up to.

use proptest::prelude::*;

use super::*;

/// Ticks of 10 ms.
const HZ: f64 = 100.0;

/// tasks, irq, softirq, steal of CPU 0, 1, …
type Cpus<'a> = &'a [[u64; 4]];
/// Identity and CPU seconds.
type Who = Option<(u32, f64)>;

fn reading(cpus: Cpus<'_>, of: &str, shard: Who, relay: Who) -> Reading {
    let ticks = |&[tasks, irq, softirq, steal]: &[u64; 4]| CpuTicks { tasks, irq, softirq, steal };
    let consumer = |(id, cpu_seconds)| Consumer { identity: (id, 0), cpu_seconds };
    let slot = SlotReading { cpus: of.parse().unwrap(), shard: shard.map(consumer), relay: relay.map(consumer) };
    Reading { cpus: (0..).map(CpuId).zip(cpus.iter().map(ticks)).collect(), slots: BTreeMap::from([(key(), slot)]) }
}

fn key() -> SlotKey {
    ("web".parse().unwrap(), SlotId(0))
}

/// irq, softirq, steal, relay, others after the readings.
fn check(what: &str, readings: Vec<Reading>, expected: [f64; 5]) {
    let mut ledger = Ledger::new(HZ);
    readings.into_iter().for_each(|reading| ledger.advance(reading));
    let found = ledger.totals()[&key()].kinds().map(|(_, seconds)| seconds);
    let near = found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-9);
    assert!(near, "{what}: {found:?}, not {expected:?}");
}

#[test]
fn what_happened_before_the_first_look_is_nobodys() {
    check("one look", vec![reading(&[[900, 9, 9, 9]], "0", Some((1, 3.0)), None)], [0.0; 5]);
}

#[test]
fn each_kind_is_what_its_column_gained() {
    check(
        "two CPUs of three, a shard and a worker",
        vec![
            reading(&[[100, 1, 2, 3], [200, 1, 2, 3], [0, 0, 0, 0]], "0-1", Some((1, 1.0)), Some((2, 0.5))),
            reading(&[[200, 2, 4, 6], [400, 3, 6, 9], [999, 99, 99, 99]], "0-1", Some((1, 2.5)), Some((2, 0.75))),
        ],
        [0.03, 0.06, 0.09, 0.25, 1.25],
    );
    check(
        "no shard, no worker: all of it is others'",
        vec![reading(&[[0, 0, 0, 0]], "0", None, None), reading(&[[50, 0, 0, 0]], "0", None, None)],
        [0.0, 0.0, 0.0, 0.0, 0.5],
    );
    check(
        "stolen time alone",
        vec![reading(&[[0, 0, 0, 0]], "0", Some((1, 0.0)), None), reading(&[[0, 0, 0, 70]], "0", Some((1, 0.0)), None)],
        [0.0, 0.0, 0.7, 0.0, 0.0],
    );
}

#[test]
fn a_counter_that_jumps_back_counts_from_there() {
    check(
        "offline and back",
        vec![
            reading(&[[100, 5, 5, 5], [100, 5, 5, 5]], "0-1", None, None),
            reading(&[[150, 5, 5, 5]], "0-1", None, None),
            reading(&[[200, 5, 5, 5], [10, 0, 0, 0]], "0-1", None, None),
            reading(&[[200, 5, 5, 5], [30, 1, 2, 3]], "0-1", None, None),
        ],
        [0.01, 0.02, 0.03, 0.0, 1.2],
    );
    check(
        "one column goes back, the others go on",
        vec![reading(&[[100, 50, 5, 5]], "0", None, None), reading(&[[200, 1, 6, 5]], "0", None, None)],
        [0.0, 0.01, 0.0, 0.0, 1.0],
    );
}

#[test]
fn a_shard_that_ends_is_not_taken_for_others() {
    let busy = |ticks, shard| reading(&[[ticks, 0, 0, 0]], "0", shard, None);
    check(
        "another shard",
        vec![busy(0, Some((1, 0.0))), busy(500, Some((2, 1.0))), busy(600, Some((2, 1.5)))],
        [0.0, 0.0, 0.0, 0.0, 0.5],
    );
    check("gone", vec![busy(0, Some((1, 0.0))), busy(500, None), busy(600, None)], [0.0, 0.0, 0.0, 0.0, 1.0]);
    check("began meanwhile", vec![busy(0, None), busy(500, Some((1, 4.0)))], [0.0, 0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn a_slot_that_moves_begins_anew_and_keeps_what_it_has() {
    let at = |ticks, of| reading(&[[ticks, 0, 0, 0], [9 * ticks, 0, 0, 0]], of, None, None);
    check("moved", vec![at(0, "0"), at(100, "0"), at(200, "1"), at(300, "1")], [0.0, 0.0, 0.0, 0.0, 10.0]);
}

#[test]
fn rounding_is_evened_out_and_a_standing_excess_hides_half_a_second_at_most() {
    let at = |ticks, seconds| reading(&[[ticks, 0, 0, 0]], "0", Some((1, seconds)), None);
    check(
        "a busy shard whose ticks come late and early",
        vec![at(0, 0.0), at(90, 1.0), at(200, 2.0), at(290, 3.0), at(400, 4.0)],
        [0.0; 5],
    );
    check(
        "interrupts are in the shard's time, then somebody uses 2 s",
        vec![at(0, 0.0), at(0, 100.0), at(200, 100.0)],
        [0.0, 0.0, 0.0, 0.0, 1.5],
    );
}

#[test]
fn a_slot_that_is_gone_is_forgotten() {
    let mut ledger = Ledger::new(HZ);
    ledger.advance(reading(&[[0, 0, 0, 0]], "0", None, None));
    ledger.advance(Reading::default());
    assert!(ledger.totals().is_empty());
}

fn any_reading() -> impl Strategy<Value = Reading> {
    let who = || proptest::option::of((0_u32..2, 0.0..100.0));
    let cpus = proptest::collection::vec(proptest::array::uniform4(0_u64..10_000), 0..3);
    (cpus, prop_oneof!["0", "0-1", "1"], who(), who())
        .prop_map(|(cpus, of, shard, relay)| reading(&cpus, &of, shard, relay))
}

proptest! {
    /// Whatever the kernel says: no counter falls, none is negative or not a number.
    #[test]
    fn no_counter_ever_falls(readings in proptest::collection::vec(any_reading(), 1..20)) {
        let mut ledger = Ledger::new(HZ);
        let mut last = [0.0; 5];
        for reading in readings {
            ledger.advance(reading);
            let now = ledger.totals()[&key()].kinds().map(|(_, seconds)| seconds);
            prop_assert!(now.iter().zip(&last).all(|(now, last)| now.is_finite() && now >= last), "{last:?}, then {now:?}");
            last = now;
        }
    }
}
