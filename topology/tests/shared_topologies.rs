//! Every hwloc XML file in the folder that SHERD_TOPOLOGIES names: each is read, and planned for every unit.

use std::{env, fs, path::PathBuf};

use sherd_topology::{
    discover,
    model::{CpuSet, Host},
    plan::{LayoutRequest, Plan, Unit, plan},
};

fn files() -> Vec<PathBuf> {
    let Some(folder) = env::var_os("SHERD_TOPOLOGIES") else {
        eprintln!("SKIPPED: SHERD_TOPOLOGIES names no folder of hwloc XML files");
        return Vec::new();
    };
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "xml"));
    files.sort();
    assert!(!files.is_empty(), "no XML file in {}", folder.display());
    files
}

fn plan_unit(host: &Host, unit: Unit) -> Plan {
    let request = LayoutRequest { unit, ..LayoutRequest::new("web".parse().unwrap()) };
    plan(host, &CpuSet::new(), &[request], &[])
}

#[test]
fn every_file_plans_for_every_unit_or_says_why_not() {
    for path in files() {
        let host = discover::from_xml(&path).unwrap();
        for unit in Unit::ALL {
            let plan = plan_unit(&host, *unit);
            let name = path.file_name().unwrap().to_string_lossy();
            match (&plan.layouts[..], &plan.faults[..]) {
                ([layout], []) => {
                    println!("{name}: {unit}: {} slots", layout.slots.len());
                    assert!(
                        layout.slots.iter().all(|slot| slot.cpus.is_subset(&host.usable()) && !slot.mems.is_empty())
                    );
                }
                ([], [fault]) => println!("{name}: {unit}: {fault}"),
                other => panic!("{name}: {unit}: {other:?}"),
            }
            for note in &plan.notes {
                println!("{name}: {unit}: {note}");
            }
        }
    }
}

#[test]
fn every_file_survives_its_json() {
    for path in files() {
        let host = discover::from_xml(&path).unwrap();
        let json = serde_json::to_string(&host).unwrap();
        assert_eq!(serde_json::from_str::<Host>(&json).unwrap(), host, "{}", path.display());
    }
}
