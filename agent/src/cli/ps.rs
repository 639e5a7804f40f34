//! `sherd ps`: what runs, one line per slot.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::failure::eprint_lines;
use super::table::{Table, age};
use super::{Failure, print};
use crate::client::Client;
use crate::status::{AgentStatus, BesideStatus, GroupStatus, Path, PortStatus, SlotState, SlotStatus};

/// Show groups and their slots.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sherd ps
  sherd ps --json | jq '.groups[].slots[] | select(.ready | not)'")]
pub(super) struct Args {
    /// Print the agent's status as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, client: Client) -> Result<ExitCode, Failure> {
    let status = client.status().await?;
    if args.json {
        let json = serde_json::to_string_pretty(&status).map_err(|error| Failure::new(error.to_string()))?;
        print(&format!("{json}\n"))?;
    } else {
        print(&table(&status.groups, SystemTime::now()))?;
        eprint_lines(&remarks(&status));
    }
    Ok(ExitCode::SUCCESS)
}

/// One line per slot; a group without slots has one of its own.
pub(super) fn table(groups: &[GroupStatus], now: SystemTime) -> String {
    let mut table =
        Table::new(["GROUP", "SLOT", "CPUS", "NODE", "STATE", "PATH", "CONNS", "SHARD", "UPTIME", "RESTARTS", "PORTS"]);
    for group in groups {
        let ports = ports(&group.ports);
        for slot in &group.slots {
            table.push(row(group, slot, &ports, now));
        }
        if group.slots.is_empty() {
            let none = String::new;
            let name = group.name.to_string();
            let state = group.state.name().to_owned();
            table.push([name, none(), none(), none(), state, none(), none(), none(), none(), none(), ports]);
        }
    }
    table.to_string()
}

fn row(group: &GroupStatus, slot: &SlotStatus, ports: &str, now: SystemTime) -> [String; 11] {
    let started = slot.shard_started_unix_ms.map(|started| UNIX_EPOCH + Duration::from_millis(started));
    let uptime = started.map(|started| now.duration_since(started).unwrap_or_default());
    let path = slot.path.map(|path| match path {
        Path::Direct => "direct",
        Path::Relay => "relay",
    });
    [
        group.name.to_string(),
        slot.slot.to_string(),
        slot.cpus.to_string(),
        slot.node.to_string(),
        slot.state.to_string(),
        path.unwrap_or_default().to_owned(),
        slot.connections.to_string(),
        slot.shard.as_deref().map(short).unwrap_or_default().to_owned(),
        uptime.map(age).unwrap_or_default(),
        slot.restarts.to_string(),
        ports.to_owned(),
    ]
}

/// A container's id is shown as Docker does; other names whole.
fn short(shard: &str) -> &str {
    let is_id = shard.len() == 64 && shard.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { &shard[..12] } else { shard }
}

/// Published addresses; both families' wildcards are one entry.
fn ports(ports: &[PortStatus]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for port in ports {
        let host = match port.address.ip().is_unspecified() {
            true => format!(":{}", port.address.port()),
            false => port.address.to_string(),
        };
        let text = format!("{host}->{}", port.container_port);
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts.join(",")
}

/// What the table has no room for: why something isn't as it should be.
fn remarks(status: &AgentStatus) -> String {
    let mut lines = status.warnings.clone();
    for runtime in &status.runtimes {
        let needed = status.groups.iter().any(|group| group.runtime == runtime.name);
        if let Some(error) = runtime.error.as_ref().filter(|_| needed) {
            lines.push(format!("runtime {}: {error}", runtime.name));
        }
    }
    for group in &status.groups {
        lines.extend(group_remarks(group));
        let relayed = group.slots.iter().filter_map(|slot| Some((slot.slot, slot.path_reason.as_ref()?)));
        lines.extend(relayed.map(|(slot, reason)| format!("{}/{slot} is relayed: {reason}", group.name)));
        let ports = group.ports.iter().filter_map(|port| Some((port.address, port.path_reason.as_ref()?)));
        lines.extend(ports.map(|(address, reason)| format!("{}: {address} is relayed: {reason}", group.name)));
        let hung = group.slots.iter().filter(|slot| slot.state == SlotState::Ready);
        let hung = hung.filter_map(|slot| Some((slot.slot, slot.cause.as_ref()?)));
        lines.extend(hung.map(|(slot, cause)| format!("{}/{slot}: {cause}", group.name)));
        lines.extend(group.slots.iter().flat_map(|slot| beside(group, slot)));
    }
    lines.join("\n")
}

/// A slot's other shards while one replaces the other.
fn beside(group: &GroupStatus, slot: &SlotStatus) -> impl Iterator<Item = String> {
    let name = format!("{}/{}", group.name, slot.slot);
    let line = move |shard: &BesideStatus| format!("{name}: {} {}", short(&shard.shard), shard.message);
    slot.next.iter().chain(&slot.former).map(line).collect::<Vec<_>>().into_iter()
}

/// Why a group isn't ready: its slots' reasons and its ports', or its own where they have none.
pub(super) fn group_remarks(group: &GroupStatus) -> Vec<String> {
    let port =
        |port: &PortStatus| port.error.as_ref().map(|error| format!("{}: {}: {error}", group.name, port.address));
    let mut lines: Vec<String> = group.ports.iter().filter_map(port).collect();
    lines.extend(group.slots.iter().filter_map(|slot| slot_remark(group, slot)));
    if lines.is_empty() {
        lines.extend(group.message.as_ref().map(|message| format!("{}: {message}", group.name)));
    }
    lines
}

/// Why a slot isn't ready; nothing while it is being made or ended, which is no fault.
pub(super) fn slot_remark(group: &GroupStatus, slot: &SlotStatus) -> Option<String> {
    use SlotState::{Failed, Starting, Unhealthy, Unready, Waiting};
    let in_trouble = matches!(slot.state, Waiting | Starting | Unready | Unhealthy | Failed);
    let cause = slot.cause.as_ref().or(slot.last_error.as_ref()).filter(|_| in_trouble)?;
    Some(format!("{}/{} is {}: {cause}", group.name, slot.slot, slot.state))
}
