//! `sherd stop`: drain a group and stop its shards.

use std::process::ExitCode;

use sherd_topology::plan::GroupName;

use super::{Failure, print};
use crate::client::Client;

/// Drain a group and stop its shards.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Established connections have the specification's `drain` time to end, and shards its `stop_grace` after SIGTERM.

Examples:
  sherd stop -g web            it can be started again with `sherd apply`
  sherd stop -g web --purge    also remove its shards and its specification")]
pub(super) struct Args {
    /// The group.
    #[arg(short, long, value_name = "GROUP")]
    group: GroupName,
    /// Also remove its shards and its specification.
    #[arg(long)]
    purge: bool,
}

pub(super) async fn run(args: Args, client: Client) -> Result<ExitCode, Failure> {
    let stopped = client.stop(&args.group, args.purge).await?;
    print(&format!("{} {}\n", stopped.group, if stopped.purged { "stopped and purged" } else { "stopped" }))?;
    Ok(ExitCode::SUCCESS)
}
