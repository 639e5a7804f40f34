//! What the kernel counts of slots' connections, as Prometheus text: also of those that never pass the agent.

use super::{
    KernelCounters, Snapshot,
    family::{Families, Family},
};

/// A metric's name, help and how it is got.
type Value = (&'static str, &'static str, fn(&KernelCounters) -> u64);

const COUNTERS: [Value; 6] = [
    ("sherd_slot_connections_steered_total", "Connections steered to the slot, whoever accepts them.", |kernel| {
        kernel.steered
    }),
    ("sherd_slot_connections_established_total", "Of these, those whose handshake was completed.", |kernel| {
        kernel.established
    }),
    ("sherd_slot_connections_closed_total", "Of these, those that have ended.", |kernel| kernel.closed),
    ("sherd_slot_connections_migrated_total", "Connections that came to the slot from a closed listener.", |kernel| {
        kernel.migrated
    }),
    ("sherd_direct_retransmits_total", "Segments sent again on direct connections that have ended.", |kernel| {
        kernel.retransmits
    }),
    (
        "sherd_direct_unanswered_total",
        "Direct connections that ended before anything of an answer was acknowledged; also of clients that asked nothing.",
        |kernel| kernel.unanswered,
    ),
];

const GAUGES: [Value; 3] = [
    ("sherd_slot_connections_open", "Connections of the slot that are open.", |kernel| {
        kernel.established.saturating_sub(kernel.closed)
    }),
    ("sherd_slot_load", "What the slot has to do, as steering sees it: its connections and more.", |kernel| {
        kernel.load
    }),
    ("sherd_slot_load_bound", "The load beyond which new connections go to their second choice; 0: none.", |kernel| {
        kernel.bound
    }),
];

pub(super) fn telemetry(families: &mut Families, snapshot: &Snapshot) {
    for (name, help, value) in COUNTERS {
        each_slot(families.counter(name, help), snapshot, |family, labels, kernel| {
            family.add_count(labels, value(kernel));
        });
    }
    for (name, help, value) in GAUGES {
        each_slot(families.gauge(name, help), snapshot, |family, labels, kernel| {
            family.add_count(labels, value(kernel));
        });
    }
    let help = "Bytes of direct connections that have ended; `in` is towards the shard.";
    each_slot(families.counter("sherd_direct_bytes_total", help), snapshot, |family, labels, kernel| {
        let [group, address, slot] = *labels;
        family.add_count(&[group, address, slot, ("direction", "in")], kernel.bytes_in);
        family.add_count(&[group, address, slot, ("direction", "out")], kernel.bytes_out);
    });
    let help = "From the handshake to the first acknowledged answer, of one direct connection in each tick of the kernel's clock.";
    each_slot(families.histogram("sherd_direct_first_answer_seconds", help), snapshot, |family, labels, kernel| {
        family.add_histogram(labels, &kernel.first_answer);
    });
    let help = "Smoothed round-trip times of direct connections at their end.";
    each_slot(families.histogram("sherd_direct_rtt_seconds", help), snapshot, |family, labels, kernel| {
        family.add_histogram(labels, &kernel.rtt);
    });
    let help = "How long direct connections lasted; at most one of each slot in 4 ms is timed.";
    each_slot(
        families.histogram("sherd_direct_connection_duration_seconds", help),
        snapshot,
        |family, labels, kernel| {
            family.add_histogram(labels, &kernel.duration);
        },
    );
    hung(families, snapshot);
    let help = "Calls of listen(2) that had to wait because their shard makes too many.";
    families.counter("sherd_delayed_listens_total", help).add_count(&[], snapshot.delayed_listens);
    if let Some(contained) = snapshot.contained {
        let help = "Connections of shards that somebody made listen on the host; contained, and ended.";
        families.counter("sherd_contained_listeners_total", help).add_count(&[], contained);
    }
}

fn hung(families: &mut Families, snapshot: &Snapshot) {
    let help = "Times the slot's shard was found not to accept.";
    let mut family = families.counter("sherd_slot_hung_total", help);
    for slot in &snapshot.slots {
        family.add_count(&[("group", slot.group.as_str()), ("slot", &slot.slot.to_string())], slot.hung);
    }
    let mut family = families.gauge("sherd_slot_hung", "Whether the slot's shard doesn't accept.");
    for slot in &snapshot.slots {
        let labels = [("group", slot.group.as_str()), ("slot", &*slot.slot.to_string())];
        family.add_count(&labels, u64::from(slot.is_hung));
    }
}

fn each_slot(
    mut family: Family<'_>,
    snapshot: &Snapshot,
    add: impl Fn(&mut Family<'_>, &[(&str, &str); 3], &KernelCounters),
) {
    for slot in &snapshot.slots {
        let (group, number) = (slot.group.as_str(), slot.slot.to_string());
        for (address, kernel) in &slot.kernel {
            add(&mut family, &[("group", group), ("address", &address.to_string()), ("slot", &number)], kernel);
        }
    }
}
