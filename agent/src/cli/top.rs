//! `sherd top`: what each slot uses, and who else uses its CPUs, from two of the agent's reports at a time.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use sherd_topology::plan::{GroupName, SlotId};

use super::table::{Table, bytes};
use super::{Failure, print};
use crate::client::Client;
use crate::status::{SlotUsage, UsageReport};

/// Between two looks. Ticks are samples: a shorter one would show noise.
const INTERVAL: Duration = Duration::from_secs(2);
/// Clears the screen and what was scrolled out of it while redrawing, and begins at the top.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Show what slots use, and who else uses their CPUs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
100 is one CPU.
  CPU      the slot's shard
  OTHERS   other tasks on the slot's CPUs: processes, kernel threads, shards of groups that share them
  IRQ      interrupts on the slot's CPUs, and the work they leave (softirq)
  STEAL    what the hypervisor took from the slot's CPUs
  RELAY    the slot's relay worker
  REMOTE   percentage of the shard's memory that is on other NUMA nodes than the slot's

Examples:
  sherd top
  sherd top web --no-stream")]
pub(super) struct Args {
    /// Only this group.
    group: Option<GroupName>,
    /// Print once: what was used within two seconds.
    #[arg(long)]
    no_stream: bool,
}

pub(super) async fn run(args: Args, client: Client) -> Result<ExitCode, Failure> {
    let mut before = client.usage().await?;
    if let Some(group) = args.group.as_ref().filter(|group| before.slots.iter().all(|slot| slot.group != **group)) {
        return Err(Failure::new(format!("there is no group {group} with a slot: `sherd ps` lists them")));
    }
    let start = if io::stdout().is_terminal() && !args.no_stream { CLEAR } else { "" };
    loop {
        tokio::time::sleep(INTERVAL).await;
        let after = client.usage().await?;
        print(&format!("{start}{}", table(&before, &after, args.group.as_ref())))?;
        if args.no_stream {
            return Ok(ExitCode::SUCCESS);
        }
        before = after;
    }
}

/// What was used between two reports.
fn table(before: &UsageReport, after: &UsageReport, only: Option<&GroupName>) -> Table {
    let mut table = Table::new([
        "GROUP", "SLOT", "CPUS", "STATE", "CPU", "OTHERS", "IRQ", "STEAL", "RELAY", "MEMORY", "REMOTE", "CONNS/S",
        "OPEN",
    ]);
    let former: BTreeMap<(&GroupName, SlotId), &SlotUsage> =
        before.slots.iter().map(|slot| ((&slot.group, slot.slot), slot)).collect();
    let seconds = after.at_seconds - before.at_seconds;
    for slot in after.slots.iter().filter(|slot| only.is_none_or(|only| slot.group == *only)) {
        table.push(row(former.get(&(&slot.group, slot.slot)).copied(), slot, seconds));
    }
    table
}

/// A cell is empty where there is no rate: no time has passed, or the slot or its shard is new.
fn row(before: Option<&SlotUsage>, after: &SlotUsage, seconds: f64) -> [String; 13] {
    let rate = |used: &dyn Fn(&SlotUsage) -> Option<f64>| {
        let used = used(after)? - used(before?)?;
        (seconds > 0.0).then(|| used.max(0.0) / seconds)
    };
    let percent = |used: &dyn Fn(&SlotUsage) -> Option<f64>| {
        rate(used).map(|rate| format!("{:.1}", 100.0 * rate)).unwrap_or_default()
    };
    let same_shard = before.is_some_and(|before| before.generation == after.generation);
    let remote = after.memory_local_bytes.zip(after.memory_remote_bytes).filter(|(local, remote)| local + remote > 0);
    [
        after.group.to_string(),
        after.slot.to_string(),
        after.cpus.to_string(),
        after.state.to_string(),
        percent(&|slot| slot.shard_cpu_seconds.filter(|_| same_shard)),
        percent(&|slot| Some(slot.foreign.others)),
        percent(&|slot| Some(slot.foreign.irq + slot.foreign.softirq)),
        percent(&|slot| Some(slot.foreign.steal)),
        percent(&|slot| Some(slot.foreign.relay)),
        after.memory_bytes.map(bytes).unwrap_or_default(),
        remote
            .map(|(local, remote)| format!("{:.0}%", 100.0 * remote as f64 / (local + remote) as f64))
            .unwrap_or_default(),
        rate(&|slot| Some(slot.accepted as f64)).map(|rate| format!("{rate:.0}")).unwrap_or_default(),
        after.connections.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{ForeignSeconds, SlotState};

    fn slot(generation: u64, cpu: Option<f64>, others: f64, accepted: u64) -> SlotUsage {
        SlotUsage {
            group: "web".parse().unwrap(),
            slot: SlotId(0),
            cpus: "2-3".parse().unwrap(),
            state: SlotState::Ready,
            generation,
            shard_cpu_seconds: cpu,
            throttled_seconds: None,
            foreign: ForeignSeconds { irq: others / 4.0, softirq: others / 4.0, steal: 0.0, relay: 0.0, others },
            memory_bytes: Some(3 << 20),
            memory_local_bytes: Some(300),
            memory_remote_bytes: Some(100),
            connections: 7,
            accepted,
        }
    }

    #[test]
    fn rates_are_there_where_they_can_be_known() {
        let check = |before: Option<SlotUsage>, after: SlotUsage, seconds, expected: [&str; 9]| {
            assert_eq!(row(before.as_ref(), &after, seconds)[4..], expected);
        };
        check(
            Some(slot(1, Some(1.0), 4.0, 100)),
            slot(1, Some(2.5), 5.0, 250),
            2.0,
            ["75.0", "50.0", "25.0", "0.0", "0.0", "3.0MiB", "25%", "75", "7"],
        );
        let restarted = ["", "50.0", "25.0", "0.0", "0.0", "3.0MiB", "25%", "75", "7"];
        check(Some(slot(1, Some(9.0), 4.0, 100)), slot(2, Some(2.5), 5.0, 250), 2.0, restarted);
        let new = ["", "", "", "", "", "3.0MiB", "25%", "", "7"];
        check(None, slot(1, Some(2.5), 5.0, 250), 2.0, new);
        check(Some(slot(1, Some(1.0), 4.0, 100)), slot(1, Some(1.0), 4.0, 100), 0.0, new);
        let unknown = SlotUsage {
            memory_bytes: None,
            memory_local_bytes: Some(0),
            memory_remote_bytes: Some(0),
            ..slot(1, None, 0.0, 0)
        };
        check(None, unknown, 1.0, ["", "", "", "", "", "", "", "", "7"]);
    }
}
