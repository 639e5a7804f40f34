//! `sherd plan`: where shards would be, without touching anything; with what runs, if the agent answers.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use sherd_topology::model::Host;
use sherd_topology::plan::{Layout, LayoutRequest, MemoryBinding, Plan, Slot, plan};

use super::apply::{Specification, read_all};
use super::draw::{Form, Source};
use super::failure::eprint_lines;
use super::{Failure, print};
use crate::api::wire::{PlanBody, PlanText};
use crate::client::{Client, ClientError};
use crate::config::ReservedCpus;
use crate::status::PlanReport;

/// Show where shards would be placed, without touching anything.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
On this machine, with an agent running, the plan is made with the groups that run; else with the given ones alone.
The exit code is 1 if a group can't be placed.

Examples:
  sherd plan web.toml
  sherd plan web.toml api.toml --svg plan.svg
  sherd plan web.toml --synthetic 'package:2 [numa] l3:8 core:8 pu:2' --reserved-cpus 0-1")]
pub(super) struct Args {
    /// Specifications; `-` is standard input.
    #[arg(value_name = "SPEC")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    source: Source,
    /// PUs that no group gets, where no agent says: a list, `auto` or `none`.
    #[arg(long, value_name = "LIST", default_value = "auto")]
    reserved_cpus: ReservedCpus,
    #[command(flatten)]
    form: Form,
}

/// A plan, whoever made it.
#[derive(Debug, Serialize)]
struct Outcome {
    plan: Plan,
    changes: Vec<String>,
    faults: Vec<String>,
    notes: Vec<String>,
}

pub(super) async fn run(args: Args, client: Client) -> Result<ExitCode, Failure> {
    let specs = read_all(&args.files)?;
    let asked = if args.source.is_this_host() { ask(&client, &specs).await? } else { None };
    let (host, outcome) = match asked {
        Some(answer) => answer,
        None => {
            let host = args.source.host()?;
            let outcome = alone(&host, &args.reserved_cpus, &specs);
            (host, outcome)
        }
    };
    args.form.draw(&host, &outcome.plan, &outcome)?;
    if !args.form.json && args.form.svg.is_none() {
        let changes: String = outcome.changes.iter().map(|change| format!("{change}\n")).collect();
        print(&if changes.is_empty() { changes } else { format!("\n{changes}") })?;
    }
    eprint_lines(&outcome.notes.join("\n"));
    eprint_lines(&outcome.faults.join("\n"));
    Ok(if outcome.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A plan by the agent; none without one.
async fn ask(client: &Client, specs: &[Specification]) -> Result<Option<(Host, Outcome)>, Failure> {
    let text = |spec: &Specification| PlanText { file: spec.file.clone(), text: spec.text.clone() };
    let body = PlanBody { specs: specs.iter().map(text).collect() };
    let report = match client.plan(&body).await {
        Ok(report) => report,
        Err(ClientError::NotRunning { .. } | ClientError::Forbidden { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some((client.topology().await?, Outcome::of_agent(report))))
}

fn alone(host: &Host, reserved: &ReservedCpus, specs: &[Specification]) -> Outcome {
    let requests: Vec<LayoutRequest> = specs.iter().map(|spec| spec.spec.layout.clone()).collect();
    let plan = plan(host, &reserved.on(host), &requests, &[]);
    Outcome {
        changes: plan.changes.iter().map(ToString::to_string).collect(),
        faults: plan.faults.iter().map(ToString::to_string).collect(),
        notes: plan.notes.iter().map(ToString::to_string).collect(),
        plan,
    }
}

impl Outcome {
    /// The agent's plan with what a picture needs.
    fn of_agent(report: PlanReport) -> Self {
        let layouts = report.layouts.into_iter().map(|layout| {
            let slots = layout.slots.into_iter().map(|slot| Slot {
                id: slot.slot,
                cpus: slot.cpus,
                mems: slot.mems,
                memory: MemoryBinding::None,
                memory_limit_bytes: None,
            });
            Layout { group: layout.group, slots: slots.collect() }
        });
        Self {
            plan: Plan { layouts: layouts.collect(), ..Plan::default() },
            changes: report.changes.into_iter().map(|change| change.message).collect(),
            faults: report.faults,
            notes: Vec::new(),
        }
    }
}
