//! `sherd make-listeners`: the process in the guard's cgroup, with the agent's socket as standard input. Does nothing else.

use std::{io, os::fd::AsFd, path::PathBuf, process::ExitCode};

use sherd_lb::guard::maker;

use super::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The guard's cgroup.
    cgroup: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    maker::serve(io::stdin().as_fd(), &args.cgroup).map_err(Failure::system)?;
    Ok(ExitCode::SUCCESS)
}
