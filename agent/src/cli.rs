//! The command line: its grammar, and one module per subcommand. Talks to the agent through its API only.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client::Client;
use crate::config;
use crate::runtime::process::{ExecPinnedArgs, ShimArgs, exec_pinned_main, shim_main};

pub use self::failure::Failure;

mod agent;
mod apply;
mod doctor;
mod draw;
mod explain;
mod failure;
mod flags;
mod holder;
mod logs;
mod make_listeners;
mod plan;
mod progress;
mod ps;
mod rollout;
mod run;
mod stop;
mod table;
mod top;
mod topology;

const EXAMPLES: &str = "\
Examples:
  sherd run -g web -p 8080:80 nginx:1.27         one nginx per core, one port in front
  sherd run --process -p 8080:80 -- ./server     the same for a program that listens on $PORT
  sherd ps                                       groups, slots, CPUs, states, connections
  sherd top                                      what each slot uses, and who else uses its CPUs
  sherd logs -f web                              what the shards write
  sherd explain 192.0.2.1:51234 web              which slot a connection goes to, and why
  sherd rollout status                           how far changes are; undo brings back what ran before
  sherd stop -g web --purge                      drain, stop and forget
  sherd doctor                                   what is wrong on this host, and what mends it
  sherd topology                                 a picture of this machine";

/// One pinned shard of a service per core, and one port in front of them.
#[derive(Debug, Parser)]
#[command(name = "sherd", version, after_help = EXAMPLES, disable_help_subcommand = true, max_term_width = 110)]
struct Line {
    /// Directory of the agent's sockets.
    #[arg(long, global = true, env = "SHERD_RUN_DIR", value_name = "DIR")]
    run_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Ps(ps::Args),
    Top(top::Args),
    Stop(stop::Args),
    Apply(apply::Args),
    Logs(logs::Args),
    Explain(explain::Args),
    Rollout(rollout::Args),
    Doctor(doctor::Args),
    Plan(plan::Args),
    Topology(topology::Args),
    Agent(agent::Args),
    /// Serves JSON about the shard it is, for trying things out.
    #[command(hide = true)]
    Demo,
    /// Keeps listening sockets while the agent is away.
    #[command(hide = true)]
    Holder(holder::Args),
    /// Makes listeners in the guard's cgroup.
    #[command(hide = true)]
    MakeListeners(make_listeners::Args),
    /// Supervises one process shard.
    #[command(hide = true)]
    Shim(ShimArgs),
    /// Becomes one process shard's program.
    #[command(hide = true)]
    ExecPinned(ExecPinnedArgs),
}

/// Runs the command line; `args` start with the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line = match Line::try_parse_from(args) {
        Ok(line) => line,
        Err(error) => {
            // Help and version are answers, on stdout; a closed pipe is nobody's fault.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match line.run() {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

impl Line {
    fn run(self) -> Result<ExitCode, Failure> {
        let run_dir = self.run_dir.clone();
        let client = || Client::new(run_dir.unwrap_or_else(|| config::DEFAULT_RUN_DIR.into()).join(config::API_SOCKET));
        match self.command {
            Command::Run(args) => wait_for(run::run(*args, client())),
            Command::Ps(args) => wait_for(ps::run(args, client())),
            Command::Top(args) => wait_for(top::run(args, client())),
            Command::Stop(args) => wait_for(stop::run(args, client())),
            Command::Apply(args) => wait_for(apply::run(args, client())),
            Command::Logs(args) => wait_for(logs::run(args, client())),
            Command::Explain(args) => wait_for(explain::run(args, client())),
            Command::Rollout(args) => wait_for(rollout::run(args, client())),
            Command::Doctor(args) => wait_for(doctor::run(args, client())),
            Command::Plan(args) => wait_for(plan::run(args, client())),
            Command::Topology(args) => topology::run(&args),
            Command::Agent(args) => agent::run(args, self.run_dir.as_deref()),
            Command::Demo => crate::demo::run().map(|()| ExitCode::SUCCESS).map_err(Failure::from),
            Command::Holder(args) => holder::run(&args),
            Command::MakeListeners(args) => make_listeners::run(&args),
            Command::Shim(args) => Ok(shim_main(&args)),
            Command::ExecPinned(args) => Ok(exec_pinned_main(&args)),
        }
    }
}

fn wait_for(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::system)?;
    let code = runtime.block_on(command);
    // A log stream may be in the middle of a blocking read of nothing we need.
    runtime.shutdown_background();
    code
}

/// Writes to standard output; a reader that went away ends the command quietly (see [`Failure`]).
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_holds_together() {
        Line::command().debug_assert();
    }

    #[test]
    fn every_option_is_explained() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no description");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {} has no help", argument.get_id());
            }
            for command in command.get_subcommands() {
                assert!(command.is_hide_set() || command.get_after_help().is_some(), "{path} shows no example");
                check(command, &path);
            }
        }
        check(&Line::command(), "");
    }
}
