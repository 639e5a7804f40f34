//! `sherd doctor`: asks the agent, the engine and the host, and prints what is wrong with what mends it.

use std::path::Path;
use std::process::ExitCode;

use super::{Failure, print};
use crate::client::{Client, ClientError};
use crate::config::{AgentConfig, DockerHost};
use crate::doctor::{Diagnosis, EngineFacts, Finding, Severity, Unread, examine, gather};
use crate::runtime::docker::describe_engine;
use crate::status::AgentStatus;

/// Say what is wrong on this host, and what mends it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It looks at the kernel, its settings, the container engine, the agent and its holder, and changes nothing. Without an
agent it can't tell what concerns slots and published ports.

  error    a function of sherd does not work
  warning  it costs speed or safety
  note     good to know

What is set by sysctl or echo lasts until the next boot: /etc/sysctl.d and tmpfiles.d(5) keep it.

The exit code is 1 if there is an error, else 0.

Examples:
  sherd doctor
  sherd doctor --json | jq -r '.findings[] | select(.severity == \"warning\") | .remedy'")]
pub(super) struct Args {
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, client: Client) -> Result<ExitCode, Failure> {
    let (config, settings) = match AgentConfig::load(None) {
        Ok(config) => (config, Ok(())),
        Err(error) => (AgentConfig::default(), Err(error.to_string())),
    };
    let agent = client.status().await.map(Some).map_err(|error| unread(client.socket(), &error));
    let engine = engine(agent.as_ref().ok().and_then(Option::as_ref), &config.docker).await;
    let run_dir = client.socket().parent().unwrap_or(Path::new("/")).to_owned();
    let diagnosis = examine(&gather(Path::new("/"), &run_dir, agent, engine, settings));
    if args.json {
        let json = serde_json::to_string_pretty(&diagnosis).map_err(|error| Failure::new(error.to_string()))?;
        print(&format!("{json}\n"))?;
    } else {
        print(&text(&diagnosis))?;
    }
    Ok(if diagnosis.count(Severity::Error) > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The agent that runs knows whether it has an engine; without it the settings do.
async fn engine(agent: Option<&AgentStatus>, docker: &DockerHost) -> Result<Option<EngineFacts>, Unread> {
    let has_engine = agent.is_none_or(|status| status.runtimes.iter().any(|runtime| runtime.name == "docker"));
    let Some(socket) = docker.socket().filter(|_| has_engine) else { return Ok(None) };
    let described = describe_engine(socket).await;
    described.map(Some).map_err(|reason| Unread { source: socket.display().to_string(), reason })
}

fn unread(socket: &Path, error: &ClientError) -> Unread {
    let reason = match error {
        ClientError::NotRunning { .. } => "nobody listens there".to_owned(),
        ClientError::Forbidden { .. } => "only root and the group `sherd` may ask".to_owned(),
        other => other.to_string(),
    };
    Unread { source: socket.display().to_string(), reason }
}

fn text(diagnosis: &Diagnosis) -> String {
    let mut text: String = diagnosis.findings.iter().map(paragraph).collect();
    for unchecked in &diagnosis.unchecked {
        text.push_str(&format!("could not check {}: {}: {}\n", unchecked.check, unchecked.source, unchecked.reason));
    }
    let count = |severity, one: &str| match diagnosis.count(severity) {
        1 => format!("1 {one}"),
        count => format!("{count} {one}s"),
    };
    text.push_str(&format!(
        "{}, {}, {} from {} checks\n",
        count(Severity::Error, "error"),
        count(Severity::Warning, "warning"),
        count(Severity::Note, "note"),
        diagnosis.checks
    ));
    text
}

fn paragraph(finding: &Finding) -> String {
    let Finding { check, severity, what, why, remedy, source } = finding;
    format!(
        "{:<7} {check}: {what}\n        why:  {why}\n        do:   {remedy}\n        from: {source}\n",
        severity.name()
    )
}
