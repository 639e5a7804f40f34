//! Checks of sherd itself: the agent, what it may do, its holder, their units.

use super::{
    Check, Findings, Severity,
    facts::{HostFacts, ProcessFacts},
    kernel::parse_release,
};
use crate::status::RuntimeStatus;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "agent", source: "the agent's API", run: answers },
    Check { name: "settings", source: "/etc/sherd/sherd.toml", run: settings },
    Check { name: "agent-warnings", source: "the agent's API", run: warnings },
    Check { name: "agent-capabilities", source: "/proc/AGENT/status", run: capabilities },
    Check { name: "agent-files", source: "/proc/AGENT/limits and /proc/AGENT/fd", run: agent_files },
    Check { name: "agent-version", source: "/proc/AGENT/exe", run: agent_version },
    Check { name: "holder", source: "/proc/*/cmdline", run: holder },
    Check { name: "holder-files", source: "/proc/HOLDER/limits and /proc/HOLDER/fd", run: holder_files },
    Check { name: "holder-version", source: "/proc/HOLDER/exe", run: holder_version },
    Check { name: "units", source: "/run/systemd/system and systemd's unit directories", run: units },
];

/// Bit (linux/capability.h), name and use. sherd.service lists the same.
const CAPABILITIES: [(u32, &str, &str); 8] = [
    (21, "CAP_SYS_ADMIN", "enter shards' network namespaces"),
    (12, "CAP_NET_ADMIN", "attach the steering program"),
    (10, "CAP_NET_BIND_SERVICE", "publish ports below 1024"),
    (19, "CAP_SYS_PTRACE", "reach shards that run as another user"),
    (2, "CAP_DAC_READ_SEARCH", "name the process that holds a port"),
    (23, "CAP_SYS_NICE", "pin shards that run as another user"),
    (5, "CAP_KILL", "stop shards that run as another user"),
    (24, "CAP_SYS_RESOURCE", "raise a shard's limits above the agent's own"),
];
/// What sherd can do without: a message is less exact, a limit can't be raised.
const DISPENSABLE: [&str; 2] = ["CAP_DAC_READ_SEARCH", "CAP_SYS_RESOURCE"];
/// Since Linux 5.8; before, CAP_SYS_ADMIN is enough.
const CAP_BPF: (u32, &str, &str) = (39, "CAP_BPF", "load the steering program");

/// Fewer are soon used up. A relayed connection takes 2 descriptors, up to 6 while it is spliced.
const AGENT_FILES: u64 = 65_536;
/// A listener for each slot, port and family, twice on the direct path.
const HOLDER_FILES: u64 = 16_384;
/// Percentage of the files that a process may have open.
const FILES_ERROR_PERCENT: u64 = 90;

fn answers(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Err(unread) = &facts.agent else { return };
    let is_meant_to_run = facts.units.as_ref().is_ok_and(|units| units.is_some_and(|units| units.agent_enabled));
    let what = format!("no agent answers on {}: {}", unread.source, unread.reason);
    let why = "nobody restarts shards or repairs their pinning; and what groups have was not looked at here";
    let (severity, remedy) = match is_meant_to_run {
        true => (Severity::Error, "systemctl status sherd; journalctl -u sherd"),
        false => (Severity::Note, "systemctl start sherd, or --run-dir of the agent that is meant"),
    };
    findings.add(severity, what, why, remedy);
}

fn settings(facts: &HostFacts, findings: &mut Findings<'_>) {
    if let Err(faults) = &facts.settings {
        findings.add(
            Severity::Error,
            faults.trim_end().replace('\n', "; "),
            "the agent does not start with such settings",
            "as it says, in that file",
        );
    }
}

fn warnings(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(status) = facts.status() else { return };
    for warning in &status.warnings {
        findings.add(Severity::Error, warning, "the agent says that it can't do all of its work", "as it says");
    }
    for RuntimeStatus { name, error, .. } in &status.runtimes {
        let groups = status.groups.iter().filter(|group| group.runtime == *name);
        let groups: Vec<&str> = groups.map(|group| group.name.as_str()).collect();
        if let (Some(error), false) = (error, groups.is_empty()) {
            findings.add(
                Severity::Error,
                format!("runtime {name} doesn't answer: {error}"),
                format!("nobody restarts shards of {}", groups.join(", ")),
                if name == "docker" { "systemctl restart docker" } else { "journalctl -u sherd" },
            );
        }
    }
}

fn capabilities(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(agent) = findings.known(&facts.processes.agent) else { return };
    let Some(held) = findings.known(&agent.capabilities) else { return };
    let kernel = findings.known(&facts.kernel.release).and_then(|release| parse_release(release));
    let has_bpf = kernel.is_some_and(|kernel| kernel >= (5, 8));
    let needed = CAPABILITIES.iter().chain(has_bpf.then_some(&CAP_BPF));
    let missing: Vec<_> = needed.filter(|(bit, ..)| held & (1 << bit) == 0).collect();
    if missing.is_empty() {
        return;
    }
    let names: Vec<&str> = missing.iter().map(|(_, name, _)| *name).collect();
    let uses: Vec<&str> = missing.iter().map(|(.., purpose)| *purpose).collect();
    let severity = match names.iter().all(|name| DISPENSABLE.contains(name)) {
        true => Severity::Warning,
        false => Severity::Error,
    };
    findings.add(
        severity,
        format!("the agent (pid {}) lacks {}", agent.pid, names.join(", ")),
        format!("it can't {}", uses.join(", ")),
        "run it as root with the CapabilityBoundingSet= that sherd.service has: systemctl revert sherd",
    );
}

fn agent_files(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(agent) = findings.known(&facts.processes.agent) else { return };
    let why = "a relayed connection takes 2 to 6 of them; what doesn't fit is refused";
    let remedy =
        "LimitNOFILE=8388608 in sherd.service (systemctl edit sherd), or `ulimit -n` where it is started by hand";
    files(("agent", agent), AGENT_FILES, (why, remedy), findings);
}

fn holder_files(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(holder) = findings.known(&facts.processes.holder) else { return };
    let why = "it keeps a listener or two for each slot, port and family; what doesn't fit is lost with the agent";
    let remedy = "LimitNOFILE=1048576 in sherd-holder.service: systemctl edit sherd-holder";
    files(("holder", holder), HOLDER_FILES, (why, remedy), findings);
}

fn files(
    (name, process): (&str, &ProcessFacts),
    enough: u64,
    (why, remedy): (&str, &str),
    findings: &mut Findings<'_>,
) {
    let (Some(max), Some(open)) = (findings.known(&process.max_files), findings.known(&process.open_files)) else {
        return;
    };
    let severity = match open.saturating_mul(100) / (*max).max(1) {
        FILES_ERROR_PERCENT.. => Severity::Error,
        _ if *max < enough => Severity::Warning,
        _ => return,
    };
    let what = format!("the {name} (pid {}) may have {max} files open, and has {open}", process.pid);
    findings.add(severity, what, why, remedy);
}

fn agent_version(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(agent) = findings.known(&facts.processes.agent) else { return };
    if findings.known(&agent.is_replaced) == Some(&true) {
        findings.add(
            Severity::Warning,
            format!("the agent (pid {}) runs a program that has been replaced", agent.pid),
            "the new version is not in use yet",
            "systemctl restart sherd",
        );
    }
}

fn holder(facts: &HostFacts, findings: &mut Findings<'_>) {
    if facts.status().is_some() && matches!(facts.processes.holder, Ok(None)) {
        findings.add(
            Severity::Error,
            "no holder runs",
            "when the agent ends, its listeners do too: connections are refused until it is back",
            "systemctl start sherd-holder && systemctl restart sherd",
        );
    } else {
        findings.known(&facts.processes.holder);
    }
}

fn holder_version(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(holder) = findings.known(&facts.processes.holder) else { return };
    if findings.known(&holder.is_replaced) == Some(&true) {
        findings.add(
            Severity::Note,
            format!("the holder (pid {}) runs a program that has been replaced", holder.pid),
            "it goes on with what it holds; a restart would lose the connections that wait, so it waits for a quiet moment",
            "when no group has to be up: systemctl restart sherd-holder sherd",
        );
    }
}

fn units(facts: &HostFacts, findings: &mut Findings<'_>) {
    // Without systemd there are no units to miss.
    let Some(units) = findings.known(&facts.units) else { return };
    if !units.installed {
        findings.add(
            Severity::Note,
            "sherd is not installed as a unit of systemd",
            "nobody starts it after a reboot, or again when it ends",
            "make install && systemctl enable --now sherd",
        );
        return;
    }
    let both = [("sherd", units.agent_enabled), ("sherd-holder", units.holder_enabled)];
    let disabled: Vec<&str> = both.iter().filter(|(_, enabled)| !enabled).map(|(name, _)| *name).collect();
    if !disabled.is_empty() {
        findings.add(
            Severity::Warning,
            format!("not enabled: {}", disabled.join(" and ")),
            "after a reboot no group runs until somebody starts it",
            format!("systemctl enable {}", disabled.join(" ")),
        );
    }
}
