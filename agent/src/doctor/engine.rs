//! Checks of the container engine.

use super::{Check, Findings, Severity, facts::HostFacts};
use crate::runtime::docker::OLDEST_API;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "engine", source: "the engine's socket", run: answers },
    Check { name: "engine-version", source: "GET /version of the engine", run: version },
    Check { name: "live-restore", source: "GET /info of the engine", run: live_restore },
];

/// Whether a group needs the engine.
fn is_needed(facts: &HostFacts) -> bool {
    facts.status().is_some_and(|status| status.groups.iter().any(|group| group.runtime == "docker"))
}

fn answers(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Err(unread) = &facts.engine else { return };
    let of_agent = facts.status().and_then(|status| status.runtimes.iter().find(|runtime| runtime.name == "docker"));
    if of_agent.is_some_and(|runtime| runtime.available) {
        // The agent was given another socket than its settings name.
        findings.known(&facts.engine);
        return;
    }
    let what = format!("no container engine answers on {}: {}", unread.source, unread.reason);
    let remedy = "systemctl start docker, or in /etc/sherd/sherd.toml docker = \"/run/podman/podman.sock\" or \"off\"";
    match is_needed(facts) {
        true => findings.add(Severity::Error, what, "shards that are containers can't be started or stopped", remedy),
        false => findings.add(Severity::Note, what, "only groups of plain processes can run", remedy),
    }
}

fn version(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Ok(Some(engine)) = &facts.engine else { return };
    if engine.api < OLDEST_API {
        findings.add(
            Severity::Error,
            format!("{} {} speaks API {}.{}", engine.name, engine.version, engine.api.0, engine.api.1),
            format!("the agent needs {}.{}: no container can run", OLDEST_API.0, OLDEST_API.1),
            "install Docker Engine 20.10 or later",
        );
    }
}

fn live_restore(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Ok(Some(engine)) = &facts.engine else { return };
    // Podman has no daemon that its containers could end with.
    if !engine.live_restore && !engine.name.contains("Podman") {
        findings.add(
            Severity::Warning,
            format!("{} {} runs without live-restore", engine.name, engine.version),
            "a restart or an upgrade of the engine ends every shard at once",
            "\"live-restore\": true in /etc/docker/daemon.json, then systemctl reload docker",
        );
    }
}
