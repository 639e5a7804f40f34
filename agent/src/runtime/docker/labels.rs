//! Labels and names of our containers: what we write on them and what we believe when we read it back. PURE.

use std::collections::HashMap;

use crate::{
    runtime::{ShardKey, ShardOrder},
    spec::SpecHash,
};

/// Which agent of the host it belongs to; what listings and events are filtered by.
pub(super) const INSTANCE: &str = "sherd.instance";
/// Labels that begin so are ours alone.
pub(super) const PREFIX: &str = "sherd.";
/// The instance that needs no mention in names.
const DEFAULT_INSTANCE: &str = "default";

const GROUP: &str = "sherd.group";
const SLOT: &str = "sherd.slot";
const SPEC: &str = "sherd.spec";
const CPUS: &str = "sherd.cpus";
const MEMS: &str = "sherd.mems";
const GENERATION: &str = "sherd.generation";

/// Which shard a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) key: ShardKey,
    pub(super) spec: SpecHash,
    pub(super) generation: u64,
}

impl Identity {
    pub(super) fn of(order: &ShardOrder) -> Self {
        Self { key: order.key.clone(), spec: order.spec.hash(), generation: order.generation }
    }

    /// The container's name: it makes `create` find what a killed agent made, because names are unique to an engine.
    pub(super) fn name(&self, instance: &str) -> String {
        let Self { key: ShardKey { group, slot }, generation, .. } = self;
        match instance {
            DEFAULT_INSTANCE => format!("sherd-{group}-{slot}-{generation}"),
            other => format!("sherd-{other}-{group}-{slot}-{generation}"),
        }
    }

    /// Believes labels only if all are there, well-formed, and agree with the name.
    pub(super) fn read(labels: &HashMap<String, String>, name: &str, instance: &str) -> Result<Self, String> {
        let identity = Self::claimed(labels, instance)?;
        let expected = identity.name(instance);
        if name != expected {
            return Err(format!("its labels are those of {expected}"));
        }
        Ok(identity)
    }

    /// What well-formed labels say, whatever the name is: enough for a container that is known by its id. Labels are
    /// copied with an image (`docker commit`), a name is not.
    pub(super) fn claimed(labels: &HashMap<String, String>, instance: &str) -> Result<Self, String> {
        let text = |label: &str| labels.get(label).ok_or_else(|| format!("label {label} is missing"));
        if text(INSTANCE)? != instance {
            return Err(format!("label {INSTANCE} is of another agent"));
        }
        let number = |label: &str| {
            let text = text(label)?;
            let number = text.parse::<u64>().ok().filter(|number| number.to_string() == *text);
            number.ok_or_else(|| format!("label {label} is `{text}`, which is no number"))
        };
        let group = text(GROUP)?.parse().map_err(|_| format!("label {GROUP} is no name of a group"))?;
        let slot = u32::try_from(number(SLOT)?).map_err(|_| format!("label {SLOT} is out of range"))?;
        let spec = text(SPEC)?.clone();
        if spec.is_empty() || !spec.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("label {SPEC} is `{spec}`, which is no hash"));
        }
        let key = ShardKey { group, slot: sherd_topology::plan::SlotId(slot) };
        Ok(Self { key, spec: SpecHash(spec), generation: number(GENERATION)? })
    }
}

/// The labels of the container to make.
pub(super) fn of(order: &ShardOrder, instance: &str) -> HashMap<String, String> {
    [
        (INSTANCE, instance.to_owned()),
        (GROUP, order.key.group.to_string()),
        (SLOT, order.key.slot.to_string()),
        (SPEC, order.spec.hash().to_string()),
        (CPUS, order.slot.cpus.to_string()),
        (MEMS, order.slot.mems.to_string()),
        (GENERATION, order.generation.to_string()),
    ]
    .map(|(label, value)| (label.to_owned(), value))
    .into()
}
