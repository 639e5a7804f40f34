//! Reading machines: this one, descriptions, files of our own, and what is none of these.

use std::{fs, path::PathBuf};

use sherd_topology::{
    discover::{self, DiscoverError},
    draw,
    model::{CpuSet, DeviceKind, Level},
    plan::{CoreKind, LayoutRequest, ShardCount, plan},
};

fn own(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A file in the system's temporary folder, gone at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("sherd-{}-{name}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

#[test]
fn this_host_can_be_planned_and_drawn() {
    let host = discover::this_host().unwrap();
    let parts = host.parts();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let affinity = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    assert!(host.usable().is_subset(&affinity.parse().unwrap()) && !host.usable().is_empty());
    assert!(parts.online.is_subset(&parts.present));
    assert!(!host.usable_nodes().is_empty());
    let plan = plan(&host, &CpuSet::new(), &[LayoutRequest::new("web".parse().unwrap())], &[]);
    assert_eq!((plan.layouts.len(), plan.faults.len()), (1, 0));
    assert!(draw::text(&host, &plan, draw::TextStyle::default()).contains("A0"));
}

#[test]
fn a_file_of_ours_has_kinds_devices_distances_and_offline_cpus() {
    let host = discover::from_xml(own("hybrid-two-nodes.xml")).unwrap();
    let parts = host.parts();
    assert_eq!(parts.name.as_deref(), Some("testbed"));
    assert_eq!(parts.present.difference(&parts.online).to_string(), "7");
    assert_eq!(parts.allowed.to_string(), "0-5");
    let kinds: Vec<_> = parts.core_kinds.iter().map(|kind| (kind.cpus.to_string(), kind.efficiency)).collect();
    assert_eq!(kinds, [("4-6".to_owned(), Some(0)), ("0-3".to_owned(), Some(1))]);
    let distances: Vec<_> =
        parts.nodes.iter().map(|node| node.distances.values().copied().collect::<Vec<_>>()).collect();
    assert_eq!(distances, [[10, 21], [21, 10]]);
    let nic = host.device("ens1f0").unwrap();
    assert_eq!(
        (nic.kind, nic.pci.as_deref(), nic.cpus.to_string()),
        (DeviceKind::Network, Some("0000:81:00.0"), "4-6".to_owned())
    );
    assert_eq!(host.device("81:00.0"), Some(nic));
    assert_eq!(host.device("nvme0n1").map(|disk| disk.kind), Some(DeviceKind::Storage));
    // The nearest two of four shards that would rather be near to the network card.
    let shards = ShardCount::Exactly(2.try_into().unwrap());
    let near = LayoutRequest { near: Some("ens1f0".to_owned()), shards, ..LayoutRequest::new("web".parse().unwrap()) };
    let strong =
        LayoutRequest { core_kind: CoreKind::Performance, near: None, ..LayoutRequest::new("api".parse().unwrap()) };
    let plan = plan(&host, &CpuSet::new(), &[near, strong], &[]);
    let cpus: Vec<Vec<String>> =
        plan.layouts.iter().map(|l| l.slots.iter().map(|slot| slot.cpus.to_string()).collect()).collect();
    assert_eq!(cpus, [["4", "5"], ["0-1", "2-3"]]);
}

#[test]
fn descriptions_make_machines() {
    let host = discover::synthetic("package:2 [numa(memory=4GB)] l3:2 core:3 pu:2").unwrap();
    let counts = [Level::Package, Level::Node, Level::L3, Level::Core].map(|level| host.parts_at(level).len());
    assert_eq!((counts, host.parts().pus.len()), ([2, 2, 4, 12], 24));
    assert!(host.parts().isolated.is_empty());
    let large = discover::synthetic("package:8 [numa] l3:8 core:24 pu:2").unwrap();
    assert_eq!(large.usable().to_string(), "0-3071");
}

#[test]
fn what_is_no_description_is_refused() {
    for text in [
        "",
        " ",
        "core",
        "core:",
        "core:2",
        "x:3 pu:1",
        "pu:-1",
        "pu:0",
        "\0",
        "pack:2 [numa core:2 pu:1",
        "💥",
        "pu:99999999999999999999",
    ] {
        let found = discover::synthetic(text);
        assert!(matches!(found, Err(DiscoverError::NotSynthetic { .. })), "{text:?}: {found:?}");
    }
}

#[test]
fn what_is_no_file_of_hwloc_is_refused() {
    let gone = discover::from_xml("/nowhere/machine.xml");
    assert!(matches!(gone, Err(DiscoverError::Read { .. })), "{gone:?}");
    assert!(matches!(discover::from_xml(std::env::temp_dir()), Err(DiscoverError::Read { .. })));
    let texts: [&[u8]; 7] = [
        b"",
        b"hello",
        b"<html><body>topology</body></html>",
        b"<?xml version=\"1.0\"?><topology version=\"2.0\"></topology>",
        b"<topology version=\"2.0\"><object type=\"Machine\"",
        b"<?xml version=\"1.0\"?><topology version=\"9.0\"><object type=\"Machine\" cpuset=\"zz\"/></topology>",
        b"\xff\xfe<topology",
    ];
    for (at, text) in texts.iter().enumerate() {
        let file = Scratch::new(&format!("{at}.xml"), text);
        let error = discover::from_xml(&file.0).unwrap_err();
        assert!(matches!(error, DiscoverError::NotXml { .. } | DiscoverError::Read { .. }), "{at}: {error:?}");
        assert!(error.to_string().contains(&*file.0.to_string_lossy()));
    }
}
