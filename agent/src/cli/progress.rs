//! Waiting for a group's shards: a live table on a terminal, lines elsewhere, and at the end what became of it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use sherd_topology::plan::{GroupName, SlotId};
use tokio::time::Instant;

use super::ps::{group_remarks, slot_remark, table};
use super::{Failure, print};
use crate::client::{Client, Lines, LogsQuery};
use crate::status::{Event, GroupState, GroupStatus, SlotState, SlotStatus};

pub(super) use self::screen::Screen;

mod screen;

/// How often the agent is asked; it answers from memory.
const POLL: Duration = Duration::from_millis(150);
/// A shard that was restarted this often will not be ready by waiting longer.
const HOPELESS_RESTARTS: u64 = 4;
/// Last lines of a shard that are shown when it isn't ready.
const LAST_LINES: usize = 10;
/// Shards whose last lines are shown; the others fail the same way.
const SHOWN_FAILURES: usize = 3;

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting<'w> {
    pub(super) group: &'w GroupName,
    pub(super) timeout: Duration,
    /// Redraw a table instead of printing lines.
    pub(super) live: bool,
}

/// What a look at the group says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ready,
    Going,
    Hopeless,
}

/// Waits until every shard of the group is ready; fails when the time is up or when some never will be.
pub(super) async fn wait(client: &Client, waiting: Waiting<'_>, events: Lines<Event>) -> Result<ExitCode, Failure> {
    let deadline = Instant::now() + waiting.timeout;
    let mut screen = Screen::new(waiting.live);
    let mut events = Some(events);
    loop {
        let group = find(client, waiting.group).await?;
        let verdict = verdict(&group);
        screen.show(&group);
        if verdict == Verdict::Ready {
            screen.finish();
            return ready(&group);
        }
        if verdict == Verdict::Hopeless || Instant::now() >= deadline {
            screen.finish();
            return Err(explain(client, waiting, &group, verdict).await);
        }
        note_progress(&mut events, waiting.group, &mut screen).await;
    }
}

async fn find(client: &Client, name: &GroupName) -> Result<GroupStatus, Failure> {
    let groups = client.status().await?.groups;
    let gone = || Failure::new(format!("group {name} is gone: somebody has stopped it"));
    groups.into_iter().find(|group| group.name == *name).ok_or_else(gone)
}

fn verdict(group: &GroupStatus) -> Verdict {
    let waiting: Vec<&SlotStatus> = group.slots.iter().filter(|slot| !slot.ready).collect();
    if waiting.is_empty() && !group.slots.is_empty() && group.state == GroupState::Ready {
        return Verdict::Ready;
    }
    let hopeless = |slot: &&SlotStatus| slot.state == SlotState::Failed || slot.restarts >= HOPELESS_RESTARTS;
    match !waiting.is_empty() && waiting.iter().all(hopeless) {
        true => Verdict::Hopeless,
        false => Verdict::Going,
    }
}

/// Until the next look: shows what the agent says it is doing (pulling an image can take minutes).
async fn note_progress(events: &mut Option<Lines<Event>>, group: &GroupName, screen: &mut Screen) {
    let until = Instant::now() + POLL;
    while let Some(lines) = events {
        match tokio::time::timeout_at(until, lines.next()).await {
            Err(_) => return,
            Ok(Ok(Some(event))) if event.group.as_ref() == Some(group) && event.kind == "progress" => {
                screen.note(&event.message);
            }
            Ok(Ok(Some(_))) => {}
            // Without events the table still tells.
            Ok(Ok(None) | Err(_)) => *events = None,
        }
    }
    tokio::time::sleep_until(until).await;
}

fn ready(group: &GroupStatus) -> Result<ExitCode, Failure> {
    let ports: Vec<String> = group.ports.iter().map(|port| port.address.to_string()).collect();
    let at = if ports.is_empty() { String::new() } else { format!(" on {}", ports.join(" and ")) };
    print(&format!("{}: {} shards ready{at}\n\n", group.name, group.slots.len()))?;
    print(&table(std::slice::from_ref(group), SystemTime::now()))?;
    Ok(ExitCode::SUCCESS)
}

/// Says which shards are not ready and what they wrote last.
async fn explain(client: &Client, waiting: Waiting<'_>, group: &GroupStatus, verdict: Verdict) -> Failure {
    let missing: Vec<&SlotStatus> = group.slots.iter().filter(|slot| slot.state != SlotState::Ready).collect();
    let why = match verdict {
        Verdict::Hopeless => "they fail again and again".to_owned(),
        _ => format!("after {}", crate::spec::units::format_duration(waiting.timeout)),
    };
    eprintln!("sherd: {}: {} of {} shards are not ready, {why}", group.name, missing.len(), group.slots.len());
    for remark in group_remarks(group) {
        eprintln!("sherd: {remark}");
    }
    for slot in missing.iter().filter(|slot| slot_remark(group, slot).is_none()) {
        eprintln!("sherd: {}/{} is {}", group.name, slot.slot, slot.state);
    }
    let slots: Vec<SlotId> = missing.iter().take(SHOWN_FAILURES).map(|slot| slot.slot).collect();
    for slot in slots {
        last_lines(client, group, slot).await;
    }
    eprintln!(
        "sherd: the agent goes on trying: see `sherd ps` and `sherd logs {0}`, or `sherd stop -g {0}`",
        group.name
    );
    Failure::Said
}

async fn last_lines(client: &Client, group: &GroupStatus, slot: SlotId) {
    let query = LogsQuery { follow: false, tail: Some(LAST_LINES), slot: Some(slot) };
    // A shard that was never made has no log; that it isn't ready has been said.
    let Ok(mut lines) = client.logs(&group.name, &query).await else { return };
    let mut heading = Some(format!("last lines of {}/{slot}:", group.name));
    while let Ok(Some(record)) = lines.next().await {
        let Some(text) = record.text else { continue };
        if let Some(heading) = heading.take() {
            eprintln!("sherd: {heading}");
        }
        eprintln!("  {text}");
    }
}

/// How many slots are in each state, in words.
fn states(group: &GroupStatus) -> String {
    let mut counts: BTreeMap<SlotState, usize> = BTreeMap::new();
    for slot in &group.slots {
        *counts.entry(slot.state).or_default() += 1;
    }
    counts.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}
