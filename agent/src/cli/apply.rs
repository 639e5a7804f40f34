//! `sherd apply`: specifications from files. All of them are read and checked before the first is applied.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::progress::{self, Waiting};
use super::{Failure, print};
use crate::client::Client;
use crate::spec::document::MAX_TEXT_BYTES;
use crate::spec::units::parse_duration;
use crate::spec::{GroupSpec, SpecFault};

/// Make the host run what specifications say.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every fault of every file is reported, and nothing is applied, if there is one.

Examples:
  sherd apply web.toml api.toml
  sherd apply --dry-run /etc/sherd/groups/*.toml
  sherd run --print -p 8080:80 nginx | sherd apply --wait -")]
pub(super) struct Args {
    /// Specifications; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    /// Wait until every shard is ready, group by group.
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// How long to wait for each group.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    timeout: Duration,
}

/// A specification and where it came from.
pub(super) struct Specification {
    pub(super) file: String,
    pub(super) text: String,
    pub(super) spec: GroupSpec,
}

pub(super) async fn run(args: Args, client: Client) -> Result<ExitCode, Failure> {
    let specs = read_all(&args.files)?;
    for Specification { file, text, spec } in &specs {
        let events = if args.wait { Some(client.events().await?) } else { None };
        let report = client.apply(&spec.name, file, text.clone(), args.dry_run).await?;
        let would = if report.dry_run { "would change" } else { "applied" };
        let changes = report.changes.iter().map(|change| format!("  {}\n", change.message));
        print(&format!("{} {would}\n{}", spec.name, changes.collect::<String>()))?;
        if let Some(events) = events {
            let live = std::io::stderr().is_terminal();
            progress::wait(&client, Waiting { group: &spec.name, timeout: args.timeout, live }, events).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads files; every fault of all of them is reported together.
pub(super) fn read_all(files: &[PathBuf]) -> Result<Vec<Specification>, Failure> {
    let (mut specs, mut faults) = (Vec::new(), Vec::new());
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for path in files {
        let (file, text) = read(path)?;
        match GroupSpec::parse(&file, &text) {
            Ok(spec) => {
                if let Some(other) = names.insert(spec.name.to_string(), file.clone()) {
                    let message = format!("group {} is in {other} too: give each group one file", spec.name);
                    faults.push(SpecFault { file: file.clone(), line: 1, key: "name".to_owned(), message });
                }
                specs.push(Specification { file, text, spec });
            }
            Err(found) => faults.extend(found.faults),
        }
    }
    if faults.is_empty() { Ok(specs) } else { Err(Failure::Faults(faults)) }
}

fn read(path: &Path) -> Result<(String, String), Failure> {
    let file = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let limit = MAX_TEXT_BYTES as u64 + 1;
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().take(limit).read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)),
    };
    read.map_err(|source| Failure::File { path: file.clone(), action: "read", source })?;
    Ok((file, text))
}
