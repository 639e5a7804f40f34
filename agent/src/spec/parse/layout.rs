//! The `[layout]` section: what a group asks of the planner.

use std::num::NonZeroU32;

use sherd_topology::model::CpuSet;
use sherd_topology::plan::{
    CoreKind, GroupName, LayoutRequest, MemoryBinding, Placement, ShardCount, Sharing, Smt, Unit,
};

use super::super::document::Section;
use super::super::words;

/// Slots of one port's steering table.
const MAX_SHARDS: u32 = 1024;
/// Docker refuses less than 6 MiB for one container.
const MEMORY_LIMIT_BYTES: std::ops::RangeInclusive<u64> = 6 << 20..=1 << 50;

pub(super) fn read(root: &Section<'_, '_>, name: Option<&GroupName>) -> Option<LayoutRequest> {
    let section = root.section("layout", words::LAYOUT);
    let section = section.as_ref();
    let request = LayoutRequest {
        unit: section.and_then(|s| s.choice("unit", words::UNITS)).unwrap_or(Unit::Core),
        shards: section.and_then(shards).unwrap_or(ShardCount::Auto),
        placement: section.and_then(|s| s.choice("placement", words::PLACEMENTS)).unwrap_or(Placement::Spread),
        smt: section.and_then(|s| s.choice("smt", words::SMTS)).unwrap_or(Smt::Share),
        core_kind: section.and_then(|s| s.choice("core_kind", words::CORE_KINDS)).unwrap_or(CoreKind::Any),
        near: section.and_then(near),
        cpus: section.and_then(cpus),
        sharing: section.and_then(|s| s.choice("sharing", words::SHARINGS)).unwrap_or(Sharing::Exclusive),
        memory: section.and_then(|s| s.choice("memory", words::MEMORIES)).unwrap_or(MemoryBinding::Bind),
        memory_limit_bytes: section.and_then(|s| s.bytes("memory_limit", MEMORY_LIMIT_BYTES)),
        group: name?.clone(),
    };
    Some(request)
}

fn shards(section: &Section<'_, '_>) -> Option<ShardCount> {
    let field = section.field("shards")?;
    match field.value().as_str() {
        Some("auto") => Some(ShardCount::Auto),
        Some(other) => {
            field.fault(format!("must be \"auto\" or a number from 1 to {MAX_SHARDS}, not \"{other}\""));
            None
        }
        None => field.integer(1..=MAX_SHARDS).and_then(NonZeroU32::new).map(ShardCount::Exactly),
    }
}

fn near(section: &Section<'_, '_>) -> Option<String> {
    let near = section.text("near")?;
    if near.len() > 32 || near.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
        section.fault("near", "must be a network interface or a PCI address, for example \"eth0\" or \"0000:3b:00.0\"");
    }
    Some(near)
}

fn cpus(section: &Section<'_, '_>) -> Option<CpuSet> {
    let text = section.text("cpus")?;
    match text.parse::<CpuSet>() {
        Ok(cpus) if !cpus.is_empty() => Some(cpus),
        Ok(_) => {
            section.fault("cpus", "must name at least one CPU: leave the key out for all");
            None
        }
        Err(_) => {
            section.fault("cpus", format!("`{text}` is not a CPU list: write for example \"0-3,8\""));
            None
        }
    }
}
