//! A snapshot as Prometheus text: the one place that knows the metrics' names.

use super::family::Families;
use super::health::health;
use super::telemetry::telemetry;
use super::{PortCounters, RelayCounters, Sample, Snapshot, Usage};
use crate::status::{GroupState, Path, RolloutPhase, SlotState, SlotStatus, Steering};
use sherd_topology::plan::GroupName;

/// A metric's name, help and how it is got.
type Value<T, V = u64> = (&'static str, &'static str, fn(&T) -> V);

/// The metrics' text. `sample` is what the kernel tells of shards and slots, `own` what the agent itself uses.
pub fn render(snapshot: &Snapshot, sample: &Sample, own: &Usage) -> String {
    let mut families = Families::default();
    agent(&mut families, snapshot, own);
    groups(&mut families, snapshot);
    slots(&mut families, snapshot);
    health(&mut families, snapshot);
    cpu(&mut families, snapshot, sample);
    memory(&mut families, snapshot, sample);
    connections(&mut families, snapshot);
    handover(&mut families, snapshot);
    bytes(&mut families, snapshot);
    steering(&mut families, snapshot);
    queues(&mut families, snapshot);
    telemetry(&mut families, snapshot);
    reconcile(&mut families, snapshot);
    families.encode()
}

fn agent(families: &mut Families, snapshot: &Snapshot, own: &Usage) {
    let status = &snapshot.status;
    let labels = [("version", status.version.as_str()), ("agent", status.instance.as_str())];
    families.gauge("sherd_build_info", "Version and instance of the agent; always 1.").add(&labels, 1.0);
    let start_seconds = status.started_unix_ms as f64 / 1000.0;
    families.gauge("process_start_time_seconds", "Start of the agent, in seconds since 1970.").add(&[], start_seconds);
    families.counter("process_cpu_seconds_total", "CPU time of the agent.").add(&[], own.cpu_seconds);
    if let Some(bytes) = own.memory_bytes {
        families.gauge("process_resident_memory_bytes", "Resident memory of the agent.").add_count(&[], bytes);
    }
    let mut up = families.gauge("sherd_runtime_up", "Whether the runtime answers.");
    for runtime in &status.runtimes {
        up.add_count(&[("runtime", &runtime.name)], u64::from(runtime.available));
    }
    if let Some(held) = snapshot.held_descriptors {
        families.gauge("sherd_holder_descriptors", "Descriptors that the holder keeps.").add_count(&[], held);
    }
    families.gauge("sherd_warnings", "Warnings of the agent as a whole.").add_count(&[], status.warnings.len() as u64);
}

fn groups(families: &mut Families, snapshot: &Snapshot) {
    let groups = &snapshot.status.groups;
    let mut family = families.gauge("sherd_groups", "Groups by state.");
    for state in GroupState::ALL {
        family.add_count(&[("state", state.name())], groups.iter().filter(|group| group.state == state).count() as u64);
    }
    let mut family = families.gauge("sherd_slots", "Slots of the group.");
    for group in groups {
        family.add_count(&[("group", group.name.as_str())], group.slots.len() as u64);
    }
    let mut family = families.gauge("sherd_shards", "Slots of the group by the state of their shard.");
    for group in groups {
        for state in SlotState::ALL {
            let count = group.slots.iter().filter(|slot| slot.state == state).count() as u64;
            family.add_count(&[("group", group.name.as_str()), ("state", state.name())], count);
        }
    }
    let mut family =
        families.gauge("sherd_rollout_phase", "How far the group's last change is; 1 for the phase it is.");
    for group in groups {
        for phase in group.rollout.iter().flat_map(|_| RolloutPhase::ALL) {
            let is_it = group.rollout.as_ref().is_some_and(|rollout| rollout.phase == phase);
            family.add_count(&[("group", group.name.as_str()), ("phase", phase.name())], u64::from(is_it));
        }
    }
    let mut family = families.counter("sherd_rollout_failures_total", "New shards that failed in a rollout.");
    for counters in &snapshot.groups {
        family.add_count(&[("group", counters.group.as_str())], counters.rollout_failures);
    }
    let help = "Times something was found to be otherwise than planned, by what.";
    let mut family = families.counter("sherd_drift_total", help);
    for (group, cause, count) in &snapshot.drifts {
        // What is no group's has an empty label, which for Prometheus is none.
        let group = group.as_ref().map_or("", GroupName::as_str);
        family.add_count(&[("group", group), ("cause", cause)], *count);
    }
    let (count, seconds) = snapshot.repairs;
    families.counter("sherd_drift_repairs_total", "Times that was repaired.").add_count(&[], count);
    let help = "Time from when it was found until it was repaired, altogether.";
    families.counter("sherd_drift_repair_seconds_total", help).add(&[], seconds);
    let mut family =
        families.counter("sherd_unready_ended_total", "Connections ended because no shard was ready in time.");
    for counters in &snapshot.groups {
        family.add_count(&[("group", counters.group.as_str())], counters.overdue);
    }
}

fn slots(families: &mut Families, snapshot: &Snapshot) {
    let of_status: [Value<SlotStatus>; 2] = [
        ("sherd_shard_ready", "Whether the slot gets connections.", |slot| u64::from(slot.ready)),
        ("sherd_shard_restarts_total", "Restarts of the slot's shard by the agent.", |slot| slot.restarts),
    ];
    for (name, help, value) in of_status {
        let mut family =
            if name.ends_with("_total") { families.counter(name, help) } else { families.gauge(name, help) };
        for (group, slot) in each_slot(snapshot) {
            family.add_count(&[("group", group), ("slot", &slot.slot.to_string())], value(slot));
        }
    }
    let mut family = families.gauge("sherd_slot_path", "How connections reach the shard; 1 for the path it is.");
    for (group, slot) in each_slot(snapshot) {
        for (path, name) in [(Path::Direct, "direct"), (Path::Relay, "relay")] {
            if let Some(present) = slot.path {
                let labels = [("group", group), ("slot", &*slot.slot.to_string()), ("path", name)];
                family.add_count(&labels, u64::from(present == path));
            }
        }
    }
    let mut family = families.gauge("sherd_shard_start_time_seconds", "Start of the shard, in seconds since 1970.");
    for (group, slot) in each_slot(snapshot) {
        if let Some(started) = slot.shard_started_unix_ms {
            family.add(&[("group", group), ("slot", &slot.slot.to_string())], started as f64 / 1000.0);
        }
    }
    let help = "Times the shard was found on other CPUs or memory nodes than planned.";
    let mut family = families.counter("sherd_pinning_errors_total", help);
    for slot in &snapshot.slots {
        let labels = [("group", slot.group.as_str()), ("slot", &*slot.slot.to_string())];
        family.add_count(&labels, slot.pinning_errors);
    }
}

fn cpu(families: &mut Families, snapshot: &Snapshot, sample: &Sample) {
    let values: [Value<Usage, Option<f64>>; 3] = [
        ("sherd_shard_cpu_seconds_total", "CPU time of the shard.", |usage| Some(usage.cpu_seconds)),
        ("sherd_shard_cpu_throttled_seconds_total", "Time the shard was kept from running by a CPU quota.", |usage| {
            usage.throttled_seconds
        }),
        ("sherd_shard_cpu_throttled_periods_total", "CFS periods in which the shard was throttled.", |usage| {
            usage.throttled_periods.map(|periods| periods as f64)
        }),
    ];
    for (name, help, value) in values {
        let mut family = families.counter(name, help);
        for (group, slot) in each_slot(snapshot) {
            if let Some(value) = sample.of_shard(slot).and_then(value) {
                family.add(&[("group", group), ("slot", &slot.slot.to_string())], value);
            }
        }
    }
    let help = "CPU time on the slot's PUs that was not its shard's, by whose it was.";
    let mut family = families.counter("sherd_slot_foreign_cpu_seconds_total", help);
    for ((group, slot), foreign) in &sample.foreign {
        for (kind, seconds) in foreign.kinds() {
            family.add(&[("group", group.as_str()), ("slot", &slot.to_string()), ("kind", kind)], seconds);
        }
    }
}

fn memory(families: &mut Families, snapshot: &Snapshot, sample: &Sample) {
    let of_slots = || each_slot(snapshot).filter_map(|(group, slot)| Some((group, slot, sample.of_shard(slot)?)));
    let help = "Memory of the shard: charged to its control group, or resident in its first process.";
    let mut family = families.gauge("sherd_shard_memory_bytes", help);
    for (group, slot, usage) in of_slots() {
        if let Some(bytes) = usage.memory_bytes {
            family.add_count(&[("group", group), ("slot", &slot.slot.to_string())], bytes);
        }
    }
    let help = "Anonymous and file pages of the slot's shard, by whether they are on the slot's NUMA nodes.";
    let mut family = families.gauge("sherd_slot_memory_bytes", help);
    for (group, slot, usage) in of_slots() {
        let Some(locality) = usage.locality(slot) else { continue };
        for (name, bytes) in [("local", locality.local_bytes), ("remote", locality.remote_bytes)] {
            family.add_count(&[("group", group), ("slot", &slot.slot.to_string()), ("locality", name)], bytes);
        }
    }
}

fn connections(families: &mut Families, snapshot: &Snapshot) {
    let counters: [Value<RelayCounters>; 8] = [
        ("sherd_connections_accepted_total", "Connections accepted for the slot.", |relay| relay.accepted),
        ("sherd_connections_adopted_total", "Connections that other slots handed to the slot.", |relay| relay.adopted),
        ("sherd_connections_handed_over_total", "Connections that the slot handed to others.", |relay| {
            relay.handed_over
        }),
        ("sherd_connections_resumed_total", "Connections of the former agent that the slot went on with.", |relay| {
            relay.resumed
        }),
        ("sherd_connections_established_total", "Connections established to the shard.", |relay| relay.established),
        (
            "sherd_connections_unanswered_total",
            "Connections that the shard ended before it had sent a byte.",
            |relay| relay.unanswered,
        ),
        ("sherd_connections_closed_total", "Established connections that have ended.", |relay| relay.closed),
        ("sherd_relay_wakeups_total", "Times the slot's worker was woken by events.", |relay| relay.wakeups),
    ];
    let gauges: [Value<RelayCounters>; 2] = [
        ("sherd_connections_active", "Connections being connected or relayed.", |relay| relay.active),
        ("sherd_connections_pending", "Clients that wait in the worker's queue.", |relay| relay.pending),
    ];
    for (name, help, value) in counters {
        let mut family = families.counter(name, help);
        each_relay(snapshot, |labels, relay| family.add_count(labels, value(relay)));
    }
    for (name, help, value) in gauges {
        let mut family = families.gauge(name, help);
        each_relay(snapshot, |labels, relay| family.add_count(labels, value(relay)));
    }
    let mut family = families.counter("sherd_relay_errors_total", "Failures of the relay by cause.");
    each_relay(snapshot, |labels, relay| {
        for (cause, count) in &relay.errors {
            family.add_count(&[labels[0], labels[1], ("cause", cause)], *count);
        }
    });
    let mut family =
        families.histogram("sherd_relay_connect_duration_seconds", "How long connecting to the shard took.");
    each_relay(snapshot, |labels, relay| family.add_histogram(labels, &relay.connect));
}

fn handover(families: &mut Families, snapshot: &Snapshot) {
    let handover = &snapshot.handover;
    let help = "Relayed connections that the former agent handed over.";
    families.counter("sherd_handover_handed_total", help).add_count(&[], handover.handed);
    let help = "Of these, those that go on.";
    families.counter("sherd_handover_taken_back_total", help).add_count(&[], handover.taken_back);
    let mut family = families.counter("sherd_handover_lost_total", "Of these, those that were reset, by cause.");
    for (cause, count) in &handover.lost {
        family.add_count(&[("cause", cause)], *count);
    }
}

fn bytes(families: &mut Families, snapshot: &Snapshot) {
    let mut family = families.counter("sherd_relay_bytes_total", "Bytes relayed; `in` is towards the shard.");
    each_relay(snapshot, |labels, relay| {
        family.add_count(&[labels[0], labels[1], ("direction", "in")], relay.bytes_in);
        family.add_count(&[labels[0], labels[1], ("direction", "out")], relay.bytes_out);
    });
    let mut family =
        families.counter("sherd_relay_spliced_bytes_total", "Of the bytes relayed, those that were spliced.");
    each_relay(snapshot, |labels, relay| family.add_count(labels, relay.bytes_spliced));
}

fn steering(families: &mut Families, snapshot: &Snapshot) {
    let mut family =
        families.gauge("sherd_steering_mode", "Who steers the address's connections; 1 for the mode it is in.");
    for group in &snapshot.status.groups {
        for port in &group.ports {
            for (mode, name) in [(Steering::Ebpf, "ebpf"), (Steering::Classic, "classic"), (Steering::None, "none")] {
                let address = port.address.to_string();
                let labels = [("group", group.name.as_str()), ("address", &address), ("mode", name)];
                family.add_count(&labels, u64::from(port.steering == mode));
            }
        }
    }
    let mut family = families.counter("sherd_steering_picks_total", "Connections that steering gave the slot.");
    for port in &snapshot.ports {
        for (slot, picks) in &port.picks {
            let address = port.address.to_string();
            let labels = [("group", port.group.as_str()), ("address", &address), ("slot", &slot.to_string())];
            family.add_count(&labels, *picks);
        }
    }
    let totals: [Value<PortCounters>; 7] = [
        ("sherd_steering_failovers_total", "Connections whose slot was out, given to another.", |port| port.failovers),
        ("sherd_steering_anchored_total", "Connections sent to the anchor because no slot was in.", |port| {
            port.anchored
        }),
        ("sherd_steering_dropped_total", "Connections refused because no slot was in.", |port| port.dropped),
        ("sherd_steering_migrated_total", "Connections moved from a closed listener to another.", |port| port.migrated),
        (
            "sherd_steering_deflected_total",
            "Connections given to their second choice because the first had too much to do.",
            |port| port.deflected,
        ),
        ("sherd_steering_unread_total", "Packets whose addresses could not be read; a fault.", |port| port.unread),
        (
            "sherd_steering_foreign_total",
            "Picks of a listener outside the address's SO_REUSEPORT group; a fault.",
            |port| port.foreign,
        ),
    ];
    for (name, help, value) in totals {
        let mut family = families.counter(name, help);
        for port in &snapshot.ports {
            let labels = [("group", port.group.as_str()), ("address", &port.address.to_string())];
            family.add_count(&labels, value(port));
        }
    }
}

fn queues(families: &mut Families, snapshot: &Snapshot) {
    let help = "Connections that wait to be accepted from the slot's listener, or from the anchor.";
    let mut family = families.gauge("sherd_listener_queue_length", help);
    for port in &snapshot.ports {
        for (slot, queued) in &port.queued {
            let address = port.address.to_string();
            let slot = slot.map_or_else(|| "anchor".to_owned(), |slot| slot.to_string());
            let labels = [("group", port.group.as_str()), ("address", &address), ("slot", &slot)];
            family.add_count(&labels, *queued);
        }
    }
}

fn reconcile(families: &mut Families, snapshot: &Snapshot) {
    let mut family =
        families.histogram("sherd_reconcile_duration_seconds", "How long passes of the reconcile loop took.");
    family.add_histogram(&[], &snapshot.reconcile);
    let help = "Passes of the reconcile loop that ended at their bound of steps.";
    families.counter("sherd_reconcile_unsettled_total", help).add_count(&[], snapshot.reconcile_unsettled);
    let mut family = families.counter("sherd_plan_changes_total", "Slots that plans added, removed or moved.");
    for (kind, count) in &snapshot.plan_changes {
        family.add_count(&[("kind", kind)], *count);
    }
}

pub(super) fn each_slot(snapshot: &Snapshot) -> impl Iterator<Item = (&str, &SlotStatus)> {
    let groups = snapshot.status.groups.iter();
    groups.flat_map(|group| group.slots.iter().map(|slot| (group.name.as_ref(), slot)))
}

fn each_relay(snapshot: &Snapshot, mut take: impl FnMut(&[(&str, &str); 2], &RelayCounters)) {
    for slot in &snapshot.slots {
        if let Some(relay) = &slot.relay {
            take(&[("group", slot.group.as_str()), ("slot", &slot.slot.to_string())], relay);
        }
    }
}
