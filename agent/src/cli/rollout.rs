//! `sherd rollout`: how far a group's change is, and what is to become of it.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use sherd_topology::plan::GroupName;

use super::table::{Table, age};
use super::{Failure, print};
use crate::client::Client;
use crate::control::RolloutAction;
use crate::status::{RolloutPhase, RolloutStage, RolloutStatus};

/// How often the agent is asked with `--watch`; it answers from memory.
const POLL: Duration = Duration::from_millis(200);

/// Show, pause, resume or undo a group's change.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A change of a group's specification replaces its shards slot by slot, as its [rollout] section says.

Examples:
  sherd rollout status               every group that was changed
  sherd rollout status web --watch   until it has come to its end; fails if it was rolled back
  sherd rollout pause web            what is under way comes to its end, and no more
  sherd rollout undo web             bring back what ran before")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// How far it is.
    #[command(after_help = "Example:\n  sherd rollout status web --json | jq -r .phase")]
    Status {
        /// Only this group.
        group: Option<GroupName>,
        /// Until it has come to its end; fails if it didn't bring the new specification.
        #[arg(long, short, requires = "group", conflicts_with = "json")]
        watch: bool,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Replace nothing more when what is under way has come to its end.
    #[command(after_help = "Example:\n  sherd rollout pause web")]
    Pause {
        /// The group.
        group: GroupName,
    },
    /// Go on with what was paused; what failed is tried again.
    #[command(after_help = "Example:\n  sherd rollout resume web")]
    Resume {
        /// The group.
        group: GroupName,
    },
    /// Bring back what ran before.
    #[command(after_help = "Example:\n  sherd rollout undo web && sherd rollout status web --watch")]
    Undo {
        /// The group.
        group: GroupName,
    },
}

pub(super) async fn run(args: Args, client: Client) -> Result<ExitCode, Failure> {
    match args.action {
        Action::Status { group: None, json, .. } => all(&client, json).await,
        Action::Status { group: Some(group), watch: true, .. } => watch(&client, &group).await,
        Action::Status { group: Some(group), json, .. } => {
            let status = client.rollout(&group, RolloutAction::Status).await?;
            if json {
                print_json(&status)?;
            } else {
                print(&text(&group, &status))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Action::Pause { group } => act(&client, &group, RolloutAction::Pause).await,
        Action::Resume { group } => act(&client, &group, RolloutAction::Resume).await,
        Action::Undo { group } => act(&client, &group, RolloutAction::Undo).await,
    }
}

async fn act(client: &Client, group: &GroupName, action: RolloutAction) -> Result<ExitCode, Failure> {
    let status = client.rollout(group, action).await?;
    print(&text(group, &status))?;
    Ok(ExitCode::SUCCESS)
}

async fn all(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let groups = client.status().await?.groups;
    let changed = groups.iter().filter_map(|group| Some((&group.name, group.rollout.as_ref()?)));
    if json {
        print_json(&changed.collect::<std::collections::BTreeMap<_, _>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["GROUP", "PHASE", "REPLACED", "AGE", "REASON"]);
    for (name, status) in changed {
        let replaced = format!("{}/{}", status.done(), status.slots.len());
        let reason = status.reason.clone().unwrap_or_default();
        table.push([name.to_string(), status.phase.to_string(), replaced, age(since(status.started_unix_s)), reason]);
    }
    print(&table.to_string())?;
    Ok(ExitCode::SUCCESS)
}

async fn watch(client: &Client, group: &GroupName) -> Result<ExitCode, Failure> {
    let mut said = String::new();
    loop {
        let status = client.rollout(group, RolloutAction::Status).await?;
        let text = line(group, &status);
        if text != said {
            print(&format!("{text}\n"))?;
            said = text;
        }
        match status.phase {
            RolloutPhase::Completed => return Ok(ExitCode::SUCCESS),
            RolloutPhase::RolledBack | RolloutPhase::Failed | RolloutPhase::Paused => return Ok(ExitCode::FAILURE),
            RolloutPhase::Progressing | RolloutPhase::RollingBack => tokio::time::sleep(POLL).await,
        }
    }
}

/// As in "web: progressing, 3 of 8 slots done, slot 3 is on trial".
pub(super) fn line(group: &GroupName, status: &RolloutStatus) -> String {
    let mut text = format!("{group}: {}, {} of {} slots done", status.phase, status.done(), status.slots.len());
    for (stage, word) in [(RolloutStage::Replacing, "being replaced"), (RolloutStage::Trial, "on trial")] {
        let slots: Vec<String> =
            status.slots.iter().filter(|slot| slot.stage == stage).map(|slot| slot.slot.to_string()).collect();
        match &slots[..] {
            [] => {}
            [one] => text.push_str(&format!(", slot {one} is {word}")),
            many => text.push_str(&format!(", slots {} are {word}", many.join(", "))),
        }
    }
    if let Some(reason) = &status.reason {
        text.push_str(&format!(": {reason}"));
    }
    text
}

fn text(group: &GroupName, status: &RolloutStatus) -> String {
    let mut text = format!("{}\n", line(group, status));
    let span = match status.ended_unix_s {
        Some(ended) => format!("took {}", age(Duration::from_secs(ended.saturating_sub(status.started_unix_s)))),
        None => format!("began {} ago", age(since(status.started_unix_s))),
    };
    let in_need = status.slots.iter().filter_map(|slot| Some((slot.slot, slot.stop_first.as_ref()?)));
    for (slot, why) in in_need {
        text.push_str(&format!("  slot {slot} is replaced stop-first: {why}\n"));
    }
    text.push_str(&format!("  {span}"));
    match status.can_undo {
        true => text.push_str(&format!("; `sherd rollout undo {group}` brings back what ran before\n")),
        false => text.push_str("; nothing ran before\n"),
    }
    text
}

fn since(unix_s: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(unix_s))
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).map_err(|error| Failure::new(error.to_string()))?;
    print(&format!("{json}\n"))
}
