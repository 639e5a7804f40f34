//! The `sherd` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sherd::cli::main(std::env::args_os())
}
