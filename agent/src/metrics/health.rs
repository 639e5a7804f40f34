//! How shards are, as Prometheus text.

use super::Snapshot;
use super::family::Families;
use super::render::each_slot;
use crate::status::HealthStatus;

/// A gauge's name, help and how it is got.
type Gauge = (&'static str, &'static str, fn(&HealthStatus) -> u64);

pub(super) fn health(families: &mut Families, snapshot: &Snapshot) {
    let gauges: [Gauge; 3] = [
        (
            "sherd_slot_healthy",
            "Whether the shard's last checks passed and its connections don't speak against it.",
            |health| u64::from(health.passing && health.ejected.is_none()),
        ),
        ("sherd_slot_held", "Whether the shard is in service although it fails, as too many do.", |health| {
            u64::from(health.held)
        }),
        (
            "sherd_slot_share_percent",
            "What the slot gets of its share of connections; below 100 in its slow start.",
            |health| u64::from(health.share_percent),
        ),
    ];
    for (name, help, value) in gauges {
        let mut family = families.gauge(name, help);
        for (group, slot) in each_slot(snapshot) {
            if let Some(health) = &slot.health {
                family.add_count(&[("group", group), ("slot", &slot.slot.to_string())], value(health));
            }
        }
    }
    let mut family = families.counter("sherd_slot_checks_total", "Checks of the slot's shards by result.");
    for slot in &snapshot.slots {
        for (result, count) in [("passed", slot.checks.0), ("failed", slot.checks.1)] {
            let labels = [("group", slot.group.as_str()), ("slot", &*slot.slot.to_string()), ("result", result)];
            family.add_count(&labels, count);
        }
    }
    let help = "Times the slot was taken out of service for its shard's health, by reason.";
    let mut family = families.counter("sherd_slot_ejections_total", help);
    for slot in &snapshot.slots {
        for (reason, count) in &slot.ejections {
            let labels = [("group", slot.group.as_str()), ("slot", &*slot.slot.to_string()), ("reason", reason)];
            family.add_count(&labels, *count);
        }
    }
    let help = "Whether more shards of the group fail than may be out of service.";
    let mut family = families.gauge("sherd_group_panic", help);
    for group in &snapshot.groups {
        family.add_count(&[("group", group.group.as_str())], u64::from(group.held > 0));
    }
}
