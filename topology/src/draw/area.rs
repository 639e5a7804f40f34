//! What is to be drawn: the machine as nested areas with cores in them, and what each CPU is used for. Shared by the
//! text and the SVG; knows neither characters nor pixels.

use std::collections::HashMap;

use super::palette;
use crate::{
    model::{Cache, CacheKind, CpuId, CpuSet, Device, DeviceKind, Host, Level, Node},
    plan::{MemoryBinding, Plan},
};

/// Everything that a picture shows.
pub(super) struct Picture<'a> {
    pub(super) host: &'a Host,
    /// The whole machine.
    pub(super) root: Area,
    /// Whether there are slots to show.
    pub(super) has_slots: bool,
    uses: HashMap<CpuId, Use>,
    /// What the picture says about each group.
    pub(super) groups: Vec<String>,
    /// Sentences below: faults and notes.
    pub(super) remarks: Vec<String>,
}

/// A part of the machine with what lies in it.
#[derive(Default)]
pub(super) struct Area {
    /// "NUMA 0"; joined where parts are the same CPUs.
    pub(super) names: Vec<String>,
    /// "31 GiB", by name.
    pub(super) details: Vec<String>,
    pub(super) is_package: bool,
    pub(super) cpus: CpuSet,
    pub(super) areas: Vec<Area>,
    pub(super) cores: Vec<CoreArea>,
    /// Whether its cores come before its areas in logical order.
    pub(super) cores_first: bool,
    pub(super) devices: Vec<String>,
}

/// A core.
pub(super) struct CoreArea {
    /// Its hardware threads in logical order.
    pub(super) pus: Vec<CpuId>,
    /// "P" or "E" in hybrid machines.
    pub(super) kind: Option<char>,
}

/// What a CPU is used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// By a slot; `others` counts further slots of shared groups.
    Slot { group: usize, slot: u32, others: usize },
    /// Reserved for the system.
    Reserved,
    /// Not allowed to us.
    NotAllowed,
    /// Free, and isolated from the scheduler.
    Isolated,
    /// Free.
    Free,
}

impl Use {
    /// The label on a CPU.
    pub(super) fn label(&self) -> String {
        match self {
            Self::Slot { group, slot, others: 0 } => format!("{}{slot}", palette::letter(*group)),
            Self::Slot { group, slot, .. } => format!("{}{slot}+", palette::letter(*group)),
            Self::Reserved => "res".to_owned(),
            Self::NotAllowed => "n/a".to_owned(),
            Self::Isolated => "iso".to_owned(),
            Self::Free => "·".to_owned(),
        }
    }
}

impl<'a> Picture<'a> {
    pub(super) fn new(host: &'a Host, plan: &Plan) -> Self {
        let faults = plan.faults.iter().map(ToString::to_string);
        let notes = plan.notes.iter().map(ToString::to_string);
        Self {
            host,
            root: root(host),
            has_slots: !plan.layouts.is_empty() || !plan.reserved.is_empty(),
            uses: uses(host, plan),
            groups: groups(plan),
            remarks: faults.chain(notes).collect(),
        }
    }

    pub(super) fn use_of(&self, cpu: CpuId) -> &Use {
        self.uses.get(&cpu).unwrap_or(&Use::Free)
    }

    /// What the machine is called, widest known first: ["vesubie", "HP EliteBook", "i7-1370P"]; and what it has:
    /// "1 package · 14 cores · 20 CPUs".
    pub(super) fn headline(&self) -> (Vec<String>, String) {
        let parts = self.host.parts();
        let model = parts.packages.iter().find_map(|package| package.model.clone());
        let names = [parts.name.clone(), parts.product.clone(), model].into_iter().flatten().collect();
        let counts = [
            (parts.packages.len(), "package", "packages"),
            (parts.nodes.len(), "NUMA node", "NUMA nodes"),
            (parts.cores.len(), "core", "cores"),
            (parts.pus.len(), "CPU", "CPUs"),
        ];
        let counted = counts.into_iter().filter(|count| count.0 > 0);
        let counted = counted.map(|(n, one, many)| format!("{n} {}", if n == 1 { one } else { many }));
        (names, counted.collect::<Vec<_>>().join(" · "))
    }

    /// The headline in one line.
    pub(super) fn title(&self) -> String {
        let (mut names, counts) = self.headline();
        names.push(counts);
        names.join(" · ")
    }

    /// What a CPU is used for, in words.
    pub(super) fn describe(&self, cpu: CpuId) -> String {
        match self.use_of(cpu) {
            Use::Slot { group, slot, others } => {
                let name = self.groups[*group].split(' ').nth(1).unwrap_or_default();
                let more = if *others > 0 { format!(" and {others} more") } else { String::new() };
                format!("{name}, slot {slot}{more}")
            }
            Use::Reserved => "reserved".to_owned(),
            Use::NotAllowed => "not allowed here".to_owned(),
            Use::Isolated => "free, isolated".to_owned(),
            Use::Free => "free".to_owned(),
        }
    }

    /// What the areas can't show: nodes without CPUs, CPUs that are offline, and the meaning of marks.
    pub(super) fn footnotes(&self) -> Vec<String> {
        let parts = self.host.parts();
        let mut notes = Vec::new();
        let cpu_less: Vec<String> = parts.nodes.iter().filter(|node| node.cpus.is_empty()).map(node_text).collect();
        if !cpu_less.is_empty() {
            notes.push(format!("nodes without CPUs: {}", cpu_less.join(", ")));
        }
        let used =
            |wanted: &Use| -> CpuSet { parts.pus.iter().copied().filter(|cpu| self.use_of(*cpu) == wanted).collect() };
        let sets = [
            (parts.present.difference(&parts.online), "offline"),
            (used(&Use::NotAllowed), "not allowed here (n/a)"),
            (used(&Use::Reserved), "reserved (res)"),
            (parts.isolated.clone(), "isolated (iso where free)"),
            (parts.nohz_full.clone(), "nohz_full"),
        ];
        notes.extend(
            sets.iter().filter(|set| !set.0.is_empty()).map(|(cpus, what)| format!("{what}: CPUs {}", shortened(cpus))),
        );
        notes
    }
}

impl Area {
    /// "Package 0 · NUMA 0 31 GiB".
    pub(super) fn title(&self) -> String {
        let titled = |(name, detail): (&String, &String)| {
            if detail.is_empty() { name.clone() } else { format!("{name} {detail}") }
        };
        self.names.iter().zip(&self.details).map(titled).collect::<Vec<_>>().join(" · ")
    }

    /// Equal for areas that look the same but for their numbers.
    pub(super) fn shape(&self) -> String {
        let areas: Vec<String> = self.areas.iter().map(Self::shape).collect();
        let cores: Vec<String> = self.cores.iter().map(|core| format!("{}{:?}", core.pus.len(), core.kind)).collect();
        format!("{:?}{:?}{}({})", self.details.len(), self.devices, cores.join(","), areas.join(","))
    }

    /// Whether a core in it says its kind.
    pub(super) fn is_hybrid(&self) -> bool {
        self.cores.iter().any(|core| core.kind.is_some()) || self.areas.iter().any(Self::is_hybrid)
    }

    fn put(&mut self, area: Self) {
        match self.areas.iter_mut().find(|inner| area.cpus.is_subset(&inner.cpus)) {
            Some(inner) => inner.put(area),
            None => self.areas.push(area),
        }
    }

    fn at(&mut self, cpus: &CpuSet) -> &mut Self {
        match self.areas.iter().position(|inner| cpus.is_subset(&inner.cpus)) {
            Some(at) => self.areas[at].at(cpus),
            None => self,
        }
    }
}

/// A part that becomes an area: CPUs, name, detail, whether it is a package.
type Part = (CpuSet, String, String, bool);

fn root(host: &Host) -> Area {
    let cpus: CpuSet = host.parts().pus.iter().copied().collect();
    let mut root = Area { cpus: cpus.clone(), ..Area::default() };
    let mut areas: Vec<Area> = Vec::new();
    for (cpus, name, detail, is_package) in parts(host, &cpus) {
        let at = areas.iter().position(|area| area.cpus == cpus).unwrap_or(areas.len());
        if at == areas.len() {
            areas.push(Area { cpus, ..Area::default() });
        }
        areas[at].names.push(name);
        areas[at].details.push(detail);
        areas[at].is_package |= is_package;
    }
    let first_rank = |area: &Area| area.cpus.iter().filter_map(|cpu| host.rank(cpu)).min();
    areas.sort_by_key(|area| (std::cmp::Reverse(area.cpus.len()), first_rank(area)));
    for area in areas {
        root.put(area);
    }
    for core in host.parts_at(Level::Core) {
        let mut pus: Vec<CpuId> = core.iter().collect();
        pus.sort_by_key(|cpu| host.rank(*cpu));
        let area = root.at(core);
        let inner = area.areas.iter().flat_map(|inner| inner.cpus.iter()).filter_map(|cpu| host.rank(cpu)).min();
        area.cores_first |= host.rank(pus[0]) < inner;
        area.cores.push(CoreArea { kind: kind_letter(host, core), pus });
    }
    for device in host.parts().devices.iter().filter(|device| !device.names.is_empty()) {
        root.at(&device.cpus).devices.push(device_text(device));
    }
    root
}

/// The parts with more than one core, or that are the whole machine; the others would be a box around each core.
fn parts(host: &Host, machine: &CpuSet) -> Vec<Part> {
    let all = host.parts();
    let number = |id: Option<u32>, at: usize| id.map_or(at, |id| id as usize);
    let packages = all.packages.iter().enumerate();
    let dies = all.dies.iter().enumerate();
    let mut parts: Vec<Part> = packages
        .map(|(at, package)| (package.cpus.clone(), format!("Package {}", number(package.id, at)), String::new(), true))
        .collect();
    parts.extend(
        all.nodes.iter().map(|node| (node.cpus.clone(), format!("NUMA {}", node.id), size(node.memory_bytes), false)),
    );
    parts.extend(dies.map(|(at, die)| (die.cpus.clone(), format!("Die {}", number(die.id, at)), String::new(), false)));
    for level in [3, 2] {
        let shared = |cache: &&Cache| cache.level == level && cache.kind != CacheKind::Instruction;
        parts.extend(
            all.caches
                .iter()
                .filter(shared)
                .map(|cache| (cache.cpus.clone(), format!("L{level}"), size(cache.size_bytes.unwrap_or(0)), false)),
        );
    }
    let cores = |cpus: &CpuSet| {
        let mut cores: Vec<_> = cpus.iter().filter_map(|cpu| host.part_of(Level::Core, cpu)).collect();
        cores.sort_unstable();
        cores.dedup();
        cores.len()
    };
    parts.retain(|part| !part.0.is_empty() && (part.0 == *machine || cores(&part.0) > 1));
    parts
}

fn kind_letter(host: &Host, core: &CpuSet) -> Option<char> {
    let kinds = &host.parts().core_kinds;
    let strongest = kinds.iter().filter_map(|kind| kind.efficiency).max();
    let kind = kinds.iter().find(|kind| !kind.cpus.is_disjoint(core))?.efficiency?;
    let several = kinds.iter().any(|other| other.efficiency.is_some_and(|other| other != kind));
    several.then_some(if Some(kind) == strongest { 'P' } else { 'E' })
}

fn uses(host: &Host, plan: &Plan) -> HashMap<CpuId, Use> {
    let parts = host.parts();
    let usable = host.usable();
    let mut uses = HashMap::new();
    for &cpu in &parts.pus {
        let state = match () {
            () if !usable.contains(cpu) => Use::NotAllowed,
            () if plan.reserved.contains(cpu) => Use::Reserved,
            () if parts.isolated.contains(cpu) => Use::Isolated,
            () => continue,
        };
        uses.insert(cpu, state);
    }
    for (group, layout) in plan.layouts.iter().enumerate() {
        for (slot, cpu) in layout.slots.iter().flat_map(|slot| slot.cpus.iter().map(move |cpu| (slot.id.0, cpu))) {
            match uses.get_mut(&cpu) {
                Some(Use::Slot { others, .. }) => *others += 1,
                _ => drop(uses.insert(cpu, Use::Slot { group, slot, others: 0 })),
            }
        }
    }
    uses
}

fn groups(plan: &Plan) -> Vec<String> {
    let group = |(at, layout): (usize, &crate::plan::Layout)| {
        let slots = &layout.slots;
        let cpus = slots.iter().fold(CpuSet::new(), |all, slot| all.union(&slot.cpus));
        let mems: crate::model::NodeSet = slots.iter().flat_map(|slot| slot.mems.iter()).collect();
        let memory = match slots.first().map(|slot| slot.memory) {
            Some(binding) if binding != MemoryBinding::None => format!(" · memory from node {mems} ({binding})"),
            _ => String::new(),
        };
        let limit = slots.first().and_then(|slot| slot.memory_limit_bytes);
        let each = if slots.len() == 1 { "" } else { " each" };
        let limit = limit.map_or_else(String::new, |bytes| format!(" · {}{each}", size(bytes)));
        let plural = if slots.len() == 1 { "" } else { "s" };
        let letter = palette::letter(at);
        format!("{letter} {} · {} slot{plural} · CPUs {}{memory}{limit}", layout.group, slots.len(), shortened(&cpus))
    };
    plan.layouts.iter().enumerate().map(group).collect()
}

/// A list of CPUs that a legend has room for.
fn shortened(cpus: &CpuSet) -> String {
    const LETTERS: usize = 90;
    let text = cpus.to_string();
    match text.get(..LETTERS).and_then(|start| start.rfind(',')) {
        Some(end) => format!("{},… ({} in all)", &text[..end], cpus.len()),
        None => text,
    }
}

fn node_text(node: &Node) -> String {
    format!("NUMA {} {}", node.id, size(node.memory_bytes)).trim_end().to_owned()
}

fn device_text(device: &Device) -> String {
    let kind = match device.kind {
        DeviceKind::Network => "net",
        DeviceKind::Fabric => "fabric",
        DeviceKind::Storage => "disk",
        DeviceKind::Gpu => "gpu",
        DeviceKind::Accelerator => "accelerator",
        DeviceKind::Memory => "memory",
        DeviceKind::Other => "device",
    };
    format!("{kind} {}", device.names.join(" "))
}

/// "31 GiB"; nothing for an unknown size.
fn size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        None => {
            if bytes == 0 {
                String::new()
            } else {
                format!("{bytes} B")
            }
        }
        Some((unit, name)) => {
            let tenths = (bytes as f64 / *unit as f64 * 10.0).round() / 10.0;
            if tenths >= 10.0 || tenths.fract() == 0.0 {
                format!("{tenths:.0} {name}")
            } else {
                format!("{tenths:.1} {name}")
            }
        }
    }
}
