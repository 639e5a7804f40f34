//! `sherd-bench`: the command line; owns arguments and exit codes.

#![forbid(unsafe_code)]

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::run().unwrap_or_else(|error| {
        eprintln!("sherd-bench: {error:#}");
        ExitCode::FAILURE
    })
}
