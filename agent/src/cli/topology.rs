//! `sherd topology`: a picture of a machine.

use std::process::ExitCode;

use sherd_topology::plan::Plan;

use super::Failure;
use super::draw::{Form, Source};

/// Show the machine: packages, NUMA nodes, caches, cores, PUs and devices.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sherd topology
  sherd topology --svg machine.svg
  sherd topology --synthetic 'package:2 [numa] l3:2 core:4 pu:2'
  lstopo big.xml && sherd topology --xml big.xml --json")]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    form: Form,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let host = args.source.host()?;
    args.form.draw(&host, &Plan::default(), &host)?;
    Ok(ExitCode::SUCCESS)
}
