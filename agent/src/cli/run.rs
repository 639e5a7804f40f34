//! `sherd run`: flags to a specification, apply it, and wait until every shard is ready.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use super::flags::SpecFlags;
use super::progress::{self, Waiting};
use super::{Failure, print};
use crate::client::Client;
use crate::spec::units::parse_duration;

/// Run a service: one pinned shard per core, and one port in front.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "\
sherd run [OPTIONS] [--] IMAGE [ARG]...
       sherd run [OPTIONS] --process [--] PROGRAM [ARG]...",
    after_help = "\
Without --detach the command ends when every shard is ready (exit code 0), or says which are not and what they wrote.
The group stays either way: see it with `sherd ps`, end it with `sherd stop`.

Examples:
  sherd run -g web -p 8080:80 nginx:1.27
  sherd run -g api -p 443:8443 -u l3 -n 4 -e LOG=warn -m 2GiB registry.example/api:7 --verbose
  sherd run --process -p 8080:80 -- ./server --config server.conf    it listens on $PORT
  sherd run --print -p 8080:80 nginx:1.27 > web.toml                 for `sherd apply web.toml`"
)]
pub(super) struct Args {
    #[command(flatten)]
    spec: SpecFlags,
    /// Don't wait for the shards.
    #[arg(short, long)]
    detach: bool,
    /// How long to wait for the shards.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    timeout: Duration,
    /// Print the specification and do nothing.
    #[arg(long)]
    print: bool,
}

pub(super) async fn run(args: Args, client: Client) -> Result<ExitCode, Failure> {
    let spec = args.spec.specification()?;
    let text = spec.to_toml();
    if args.print {
        print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let events = if args.detach { None } else { Some(client.events().await?) };
    client.apply(&spec.name, &format!("{}.toml", spec.name), text, false).await?;
    let Some(events) = events else {
        print(&format!("{} applied: `sherd ps` shows its shards\n", spec.name))?;
        return Ok(ExitCode::SUCCESS);
    };
    let live = std::io::stderr().is_terminal();
    progress::wait(&client, Waiting { group: &spec.name, timeout: args.timeout, live }, events).await
}
