//! What `cargo metadata` says of the crates of the workspace and of everything they are built from; builds nothing.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde::Deserialize;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// A crate, of the workspace or from a registry.
#[derive(Deserialize)]
pub(crate) struct Package {
    pub name: String,
    pub version: String,
    /// An SPDX expression; older crates write `A/B` for `A OR B`.
    pub license: Option<String>,
    /// `None` for a crate of the workspace.
    pub source: Option<String>,
    pub dependencies: Vec<Dependency>,
}

/// One line of a crate's manifest.
#[derive(Deserialize)]
pub(crate) struct Dependency {
    pub name: String,
    /// `dev`, `build` or, for an ordinary one, nothing.
    pub kind: Option<String>,
    /// Set for a crate of the workspace.
    pub path: Option<String>,
}

/// Every package that the workspace resolves to on Linux, the workspace's own first.
///
/// # Panics
/// When cargo can't say, with what it printed.
pub(crate) fn resolved(workspace: &Path) -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(workspace)
        .output()
        .expect("cargo runs: it started this test");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo's format version 1");
    let (mut own, foreign): (Vec<_>, Vec<_>) =
        metadata.packages.into_iter().partition(|package| package.source.is_none());
    own.extend(foreign);
    own
}

/// Whether the SPDX expression can be met with licences of `allowed` alone.
pub(crate) fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(rest, allowed);
    while let Some(("OR", tail)) = rest.split_first().map(|(word, tail)| (*word, tail)) {
        *rest = tail;
        met |= all_of(rest, allowed);
    }
    met
}

fn all_of(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = one(rest, allowed);
    while let Some(("AND", tail)) = rest.split_first().map(|(word, tail)| (*word, tail)) {
        *rest = tail;
        met &= one(rest, allowed);
    }
    met
}

fn one(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    match *rest {
        ["(", tail @ ..] => {
            *rest = tail;
            let met = any_of(rest, allowed);
            match *rest {
                [")", tail @ ..] => *rest = tail,
                _ => return false,
            }
            met
        }
        [licence, "WITH", exception, tail @ ..] => {
            *rest = tail;
            allowed.contains(&format!("{licence} WITH {exception}"))
        }
        [licence, tail @ ..] => {
            *rest = tail;
            allowed.contains(*licence)
        }
        [] => false,
    }
}
