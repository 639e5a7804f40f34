//! `sherd logs`: what a group's shards write.

use std::io::{self, Write};
use std::process::ExitCode;

use sherd_topology::plan::{GroupName, SlotId};

use super::Failure;
use crate::client::{Client, LogsQuery};

/// Show what a group's shards write.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Standard output and standard error of the shards go where they belong.

Examples:
  sherd logs -f web
  sherd logs --tail 20 --slot 3 web")]
pub(super) struct Args {
    /// The group.
    group: GroupName,
    /// Go on with new lines.
    #[arg(short, long)]
    follow: bool,
    /// Lines of each shard to begin with; all by default.
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// Only this slot, without its name before each line.
    #[arg(long, value_name = "N")]
    slot: Option<u32>,
}

pub(super) async fn run(args: Args, client: Client) -> Result<ExitCode, Failure> {
    let slot = args.slot.map(SlotId);
    let query = LogsQuery { follow: args.follow, tail: args.tail, slot };
    let mut lines = client.logs(&args.group, &query).await?;
    let mut code = ExitCode::SUCCESS;
    while let Some(record) = lines.next().await? {
        let name = match slot {
            Some(_) => String::new(),
            None => format!("{}/{} | ", args.group, record.slot),
        };
        if let Some(text) = record.text {
            let line = format!("{name}{text}\n");
            let written = match record.output.as_deref() {
                Some("stderr") => io::stderr().lock().write_all(line.as_bytes()),
                _ => io::stdout().lock().write_all(line.as_bytes()),
            };
            written.map_err(Failure::Output)?;
        }
        if let Some(error) = record.error {
            eprintln!("sherd: logs of {}/{}: {error}", args.group, record.slot);
            code = ExitCode::FAILURE;
        }
    }
    io::stdout().flush().map_err(Failure::Output)?;
    Ok(code)
}
