//! Holds the house rules that a machine can hold: which crate may know which, where `unsafe` and each vendor crate live, how long files
//! and functions get, what no file may contain. Prints the figures: `cargo test -p sherd --test house -- --nocapture`.

mod packages;
mod source;

use std::{collections::BTreeSet, fs, path::Path, sync::LazyLock};

use source::Source;

/// Crates of the workspace, what each may use of the others, and in its tests.
const EDGES: [(&str, &[&str], &[&str]); 6] = [
    ("sherd", &["sherd-lb", "sherd-shim", "sherd-topology"], &["sherd-testkit"]),
    ("sherd-bench", &[], &["sherd-testkit"]),
    ("sherd-lb", &[], &["sherd-testkit"]),
    ("sherd-shim", &[], &["sherd-lb", "sherd-testkit"]),
    ("sherd-testkit", &[], &[]),
    ("sherd-topology", &[], &["sherd-testkit"]),
];

/// Vendor crates, the crate of ours that may name them in its manifest, and the only files that may name them at all.
const HOMES: [(&str, &str, &[&str]); 3] = [
    ("aya", "sherd-lb", &["lb/src/front", "lb/src/guard/marks", "lb/src/guard/programs", "lb/src/lent"]),
    ("bollard", "sherd", &["agent/src/runtime/docker"]),
    ("hwlocality", "sherd-topology", &["topology/src/discover"]),
];

const FOLDERS: [&str; 4] = ["topology", "lb", "agent", "bench"];
const CRATES: [&str; 6] = ["topology", "lb", "lb/shim", "lb/testkit", "agent", "bench"];
/// Libraries whose types no public signature of these folders shows: they could not be replaced any more.
const VENDORS: [&str; 4] = ["aya", "bollard", "hwlocality", "nix"];
const LIBRARIES: [&str; 3] = ["lb/shim/src/", "lb/src/", "topology/src/"];
/// One for each crate that can't do without.
const UNSAFE_HOMES: [&str; 2] = ["lb/shim/src/sys", "lb/src/sys"];
const NAMES_THAT_SAY_NOTHING: [&str; 6] = ["common", "helpers", "manager", "misc", "util", "utils"];
const MACROS_OF_UNFINISHED_CODE: [&str; 3] = ["dbg", "todo", "unimplemented"];

const FILE_MEDIAN_LINES: usize = 150;
const FILE_P95_LINES: usize = 450;
const FUNCTION_P95_LINES: usize = 40;
const FUNCTION_LINES: usize = 70;

#[test]
fn crates_know_only_what_is_below_them() {
    let mut faults = Vec::new();
    let packages = packages::resolved(workspace());
    let own: Vec<_> = packages.iter().filter(|package| package.source.is_none()).collect();
    for package in &own {
        let Some((_, uses, tests)) = EDGES.iter().find(|(name, ..)| *name == package.name) else {
            faults.push(format!("{} is not on the map: give it a line in EDGES", package.name));
            continue;
        };
        for edge in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            let is_test = edge.kind.as_deref() == Some("dev");
            let allowed = uses.contains(&&*edge.name) || (is_test && tests.contains(&&*edge.name));
            if !allowed {
                faults.push(format!("{} must not depend on {}", package.name, edge.name));
            }
        }
        for (vendor, home, _) in HOMES.iter().filter(|(_, home, _)| *home != package.name) {
            if package.dependencies.iter().any(|dependency| dependency.name == *vendor) {
                faults.push(format!("{} must not depend on {vendor}: that is {home}'s", package.name));
            }
        }
    }
    assert_eq!(own.len(), EDGES.len(), "a crate of EDGES is gone");
    none(&faults);
}

#[test]
fn vendors_stay_at_home() {
    let mut faults = Vec::new();
    for file in sources() {
        for (word, line, _) in &file.words {
            if let Some((vendor, _, homes)) = HOMES.iter().find(|(vendor, ..)| vendor == word)
                && !homes.iter().any(|home| is_below(&file.path, home))
            {
                faults.push(format!("{}:{line}: {vendor} belongs to {}", file.path, homes.join(", ")));
            }
        }
    }
    none(&faults);
}

#[test]
fn vendor_types_are_in_no_public_signature() {
    let mut faults = Vec::new();
    for file in sources().iter().filter(|file| LIBRARIES.iter().any(|library| file.path.starts_with(library))) {
        for (name, line) in &file.public_vendor_types {
            faults.push(format!("{}:{line}: {name} in a public signature", file.path));
        }
    }
    none(&faults);
}

#[test]
fn unsafe_stays_at_home() {
    let mut faults = Vec::new();
    let mut at_home = 0;
    let homes = UNSAFE_HOMES.join(" or ");
    for file in sources() {
        let lines = &file.unsafe_lines;
        if UNSAFE_HOMES.iter().any(|home| is_below(&file.path, home)) {
            at_home += lines.len();
            continue;
        }
        faults.extend(lines.iter().map(|line| format!("{}:{line}: unsafe belongs to {homes}", file.path)));
        for pair in file.words.windows(2) {
            let [(level, ..), (lint, line, _)] = pair else { continue };
            if lint == "unsafe_code" && matches!(&**level, "allow" | "expect" | "warn") {
                faults.push(format!("{}:{line}: the lint unsafe_code stays as the workspace sets it", file.path));
            }
        }
    }
    for folder in CRATES {
        let manifest = fs::read_to_string(workspace().join(folder).join("Cargo.toml")).expect("a manifest");
        let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
        let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        if inherits != Some(true) {
            faults.push(format!("{folder}/Cargo.toml: `[lints] workspace = true` is missing"));
        }
    }
    println!("unsafe: {at_home} places, all in {homes}");
    none(&faults);
}

#[test]
fn files_and_functions_stay_small() {
    let sources: Vec<_> = sources().iter().filter(|file| file.production).collect();
    let mut files: Vec<_> = sources.iter().map(|file| (file.production_lines, &*file.path)).collect();
    files.sort_unstable();
    let mut functions: Vec<_> = sources.iter().flat_map(|file| &file.functions).collect();
    functions.sort_unstable();
    let file = |percent| files[rank(files.len(), percent)].0;
    let function = |percent| functions[rank(functions.len(), percent)].lines;

    let lines: usize = files.iter().map(|(lines, _)| lines).sum();
    println!("{lines} lines in {} files: median {}, 95 % {}", files.len(), file(50), file(95));
    println!("{} functions: median {}, 95 % {}", functions.len(), function(50), function(95));
    files.iter().rev().take(5).for_each(|(lines, path)| println!("  {lines} lines: {path}"));
    functions.iter().rev().take(5).for_each(|long| println!("  {} lines: {} in {}", long.lines, long.name, long.path));

    let mut faults = Vec::new();
    for (what, is, bound) in [
        ("median of files", file(50), FILE_MEDIAN_LINES),
        ("95th percentile of files", file(95), FILE_P95_LINES),
        ("95th percentile of functions", function(95), FUNCTION_P95_LINES),
    ] {
        if is > bound {
            faults.push(format!("{what}: {is} lines, at most {bound}"));
        }
    }
    for long in functions.iter().filter(|function| function.lines > FUNCTION_LINES) {
        faults.push(format!("{}: {} has {} lines, at most {FUNCTION_LINES}", long.path, long.name, long.lines));
    }
    none(&faults);
}

#[test]
fn files_say_what_they_own() {
    let mut faults = Vec::new();
    for file in sources() {
        let stem = Path::new(&file.path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if stem == "mod" {
            faults.push(format!("{}: a module is `name.rs` beside `name/`", file.path));
        }
        if NAMES_THAT_SAY_NOTHING.iter().any(|name| stem.split('_').any(|word| word == *name)) {
            faults.push(format!("{}: the name says nothing", file.path));
        }
        // A file's text may come from a document that others read too.
        if !file.text.starts_with("//! ") && !file.text.starts_with("#![doc = include_str!") {
            faults.push(format!("{}: starts with a `//!` sentence: what it owns and may not touch", file.path));
        }
    }
    none(&faults);
}

#[test]
fn nothing_is_unfinished_or_ignored() {
    let mut faults = Vec::new();
    for file in sources() {
        for (word, line, next) in &file.words {
            if *next == Some('!') && MACROS_OF_UNFINISHED_CODE.contains(&&**word) {
                faults.push(format!("{}:{line}: {word}!", file.path));
            }
        }
        let ignored = file.text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("#[ignore"));
        faults
            .extend(ignored.map(|(line, _)| format!("{}:{}: a test runs, or says why it can't", file.path, line + 1)));
    }
    none(&faults);
}

/// Where this was built is nobody's business, and works nowhere else.
#[test]
fn no_file_names_the_machine_it_was_written_on() {
    let root = workspace().to_str().expect("a path in UTF-8").to_owned();
    let home = std::env::var("HOME").ok().filter(|home| home.len() > "/root".len());
    let mut faults = Vec::new();
    source::walk(workspace(), &mut |path| {
        let Ok(text) = fs::read_to_string(path) else { return };
        for (line, _) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| line.contains(&root) || home.as_ref().is_some_and(|home| line.contains(home)))
        {
            faults.push(format!("{}:{}", path.display(), line + 1));
        }
    });
    none(&faults);
}

/// The part of deny.toml that needs no cargo-deny.
#[test]
fn dependencies_have_allowed_licences_and_sources() {
    let text = fs::read_to_string(workspace().join("deny.toml")).expect("deny.toml is in the workspace");
    let deny: toml::Table = text.parse().expect("deny.toml is TOML");
    let words = |table: &str, key: &str| -> BTreeSet<String> {
        let list = deny[table][key].as_array().expect("a list");
        list.iter().map(|word| word.as_str().expect("a list of strings").to_owned()).collect()
    };
    let (licences, registries) = (words("licenses", "allow"), words("sources", "allow-registry"));
    let mut faults = Vec::new();
    for package in packages::resolved(workspace()) {
        let Some(source) = &package.source else { continue };
        let name = format!("{} {}", package.name, package.version);
        if !source.strip_prefix("registry+").is_some_and(|registry| registries.contains(registry)) {
            faults.push(format!("{name} comes from {source}"));
        }
        match &package.license {
            Some(licence) if packages::is_allowed(licence, &licences) => {}
            licence => faults.push(format!("{name} has the licence {licence:?}")),
        }
    }
    none(&faults);
}

#[test]
fn licence_expressions_are_read_as_spdx() {
    let allowed: BTreeSet<_> = ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    let check = |expression, expected| assert_eq!(packages::is_allowed(expression, &allowed), expected, "{expression}");
    check("MIT", true);
    check("GPL-3.0", false);
    check("GPL-3.0 OR MIT", true);
    check("Apache-2.0/MIT", true);
    check("MIT AND GPL-3.0", false);
    check("(GPL-3.0 OR MIT) AND Zlib", true);
    check("GPL-3.0 OR MIT AND Zlib", true);
    check("Apache-2.0 WITH LLVM-exception", true);
    check("Apache-2.0", false);
    check("MIT AND (Zlib", false);
    check("", false);
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the agent's crate is in the workspace")
}

fn sources() -> &'static [Source] {
    static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| source::read(workspace(), &FOLDERS, &VENDORS));
    assert!(SOURCES.len() > FOLDERS.len(), "the sources were found");
    &SOURCES
}

/// Whether the file is `home.rs`, `home_….rs` or below `home/`.
fn is_below(path: &str, home: &str) -> bool {
    path.strip_prefix(home).is_some_and(|rest| rest.starts_with(['.', '/', '_']))
}

/// The index of the percentile in a sorted list (nearest rank).
fn rank(len: usize, percent: usize) -> usize {
    (len * percent).div_ceil(100).saturating_sub(1)
}

fn none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
