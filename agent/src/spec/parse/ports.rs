//! The `[[ports]]` sections: published ports and what they demand of each other.

use sherd_lb::table::Policy;
use sherd_topology::plan::ShardCount;

use super::super::document::Section;
use super::super::port::PortSpec;
use super::super::words;
use super::fixed;

/// Ports of one group: each costs a listener per slot.
const MAX_PORTS: usize = 64;
const MAX_WEIGHT: u32 = 1000;
const MAX_TABLE_LEN: u32 = 1_048_573;
/// Table entries per slot below which shares get coarser than one percent.
const ENTRIES_PER_SLOT: u32 = 100;

pub(super) fn read(root: &Section<'_, '_>, shards: Option<ShardCount>) -> Vec<PortSpec> {
    let mut ports: Vec<PortSpec> = Vec::new();
    let sections = root.sections("ports", words::PORT);
    if sections.len() > MAX_PORTS {
        root.fault("ports", format!("a group publishes at most {MAX_PORTS} ports"));
    }
    for section in sections {
        if !section.has("publish") {
            section.missing("publish", "write for example publish = \"8080:80\"");
        }
        let Some(mut port) = section.parsed::<PortSpec>("publish") else { continue };
        if let Some(other) = ports.iter().find(|other| other.host.overlaps(&port.host)) {
            section.fault("publish", format!("{} overlaps {}: publish another port", port.publish(), other.publish()));
        }
        port.policy = section.choice("policy", words::POLICIES).unwrap_or(Policy::Connection);
        port.weights = weights(&section, shards);
        port.loopback = section.boolean("loopback").unwrap_or(false);
        port.table_len = table_len(&section, fixed(shards).unwrap_or(1));
        ports.push(port);
    }
    ports
}

fn weights(section: &Section<'_, '_>, shards: Option<ShardCount>) -> Option<Vec<u32>> {
    let field = section.field("weights")?;
    let elements = field.elements("an array of integers")?;
    let weights: Vec<u32> = elements.iter().filter_map(|element| element.integer(0..=MAX_WEIGHT)).collect();
    if weights.len() < elements.len() {
        return None;
    }
    match shards {
        Some(ShardCount::Exactly(count)) if count.get() as usize != weights.len() => {
            field.fault(format!("has {} weights for {count} shards: give one for each", weights.len()));
        }
        Some(ShardCount::Auto) => field.fault("needs a fixed number of shards: set layout.shards to a number"),
        _ if weights.iter().all(|&weight| weight == 0) => field.fault("must have a weight above 0"),
        _ => {}
    }
    Some(weights)
}

fn table_len(section: &Section<'_, '_>, shards: u32) -> Option<u32> {
    let least = (shards * ENTRIES_PER_SLOT).max(ENTRIES_PER_SLOT + 1);
    let len = section.integer("table_len", 1..=MAX_TABLE_LEN)?;
    if len < least || !is_prime(len) {
        let good = (len.max(least)..=MAX_TABLE_LEN).find(|&len| is_prime(len)).unwrap_or(MAX_TABLE_LEN);
        section.fault(
            "table_len",
            format!("must be a prime of at least {least} ({ENTRIES_PER_SLOT} per shard): {good} is"),
        );
    }
    Some(len)
}

fn is_prime(number: u32) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_and_bounds_are_primes() {
        assert!(is_prime(MAX_TABLE_LEN) && is_prime(2) && is_prime(101));
        assert!(!is_prime(0) && !is_prime(1) && !is_prime(65_536) && !is_prime(25));
    }
}
