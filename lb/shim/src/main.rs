//! `sherd-shim`: the entrypoint in front of a container's own. Has the program's listen(2) trapped, gives the trap to
//! the agent, and turns into the program. Leaves nothing else behind: no signal, descriptor or variable of its own.
#![cfg_attr(not(test), no_main)]
// The entry point is not in the tests' binary, and everything is reached from there.
#![cfg_attr(test, allow(dead_code))]

mod arguments;
mod broker;
mod filter;
mod program;
mod stdio;
mod sys;

use std::{
    convert::Infallible,
    ffi::{CStr, c_int},
    io::{self, Write},
};

/// EX_USAGE of sysexits.h.
const EXIT_USAGE: c_int = 64;
/// EX_TEMPFAIL of sysexits.h: the same container may well start later.
const EXIT_TRY_AGAIN: c_int = 75;
/// The shell's and Docker's codes for a program that can't be run, and for one that isn't there.
const EXIT_CANNOT_RUN: c_int = 126;
const EXIT_NOT_FOUND: c_int = 127;

/// Why the program does not run.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Usage(#[from] arguments::UsageError),
    #[error(transparent)]
    Broker(#[from] broker::BrokerError),
    #[error(transparent)]
    Program(#[from] program::ExecError),
}

/// Becomes the program, or says why not and gives the exit code.
fn run(words: &[&CStr], environment: &[&CStr]) -> c_int {
    let failure = match become_program(words, environment) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    // One write, so that the line stays whole; where standard error is closed there is nobody to tell.
    let _ = io::stderr().write_all(format!("sherd-shim: {failure}\n").as_bytes());
    match failure {
        Failure::Usage(_) => EXIT_USAGE,
        Failure::Broker(_) => EXIT_TRY_AGAIN,
        Failure::Program(error) if error.is_not_found() => EXIT_NOT_FOUND,
        Failure::Program(_) => EXIT_CANNOT_RUN,
    }
}

fn become_program(words: &[&CStr], environment: &[&CStr]) -> Result<Infallible, Failure> {
    let order = arguments::parse(words)?;
    let trap = filter::install();
    broker::ask(order.socket, order.wait, &trap)?;
    // Ours ends here; the broker's copy keeps the trap alive.
    drop(trap);
    Ok(program::exec(order.command, environment)?)
}
