//! A load that somebody else brings: a command that is told where to go and tells a number; owns its process.

use std::{
    env,
    fs::{self, File},
    io,
    net::SocketAddr,
    path::Path,
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{UsageWho, getrusage};

use crate::{contestant::STAGE_COMMAND, interrupt::Interrupt, measure::cpus};

/// In its environment: where the program answers.
pub const ADDRESS_VARIABLE: &str = "SHERD_BENCH_ADDRESS";
/// How much of its words an error shows.
const TAIL: usize = 400;

/// A command told no number.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be run.
    #[error("the load's command cannot be run")]
    Run(#[source] io::Error),
    /// It failed.
    #[error("the load's command ended with {status}; the end of what it wrote: {words}")]
    Failed {
        /// How it ended.
        status: process::ExitStatus,
        /// On either output.
        words: String,
    },
    /// It took too long.
    #[error("the load's command took more than {longest:?}: give a longer --budget or a shorter load")]
    Late {
        /// As long as it might have taken.
        longest: Duration,
    },
    /// Its last line is no score.
    #[error("the last line of the load's command must be a number above 0, and is {line:?}")]
    NoNumber {
        /// That line.
        line: String,
    },
    /// Somebody wants the run to end.
    #[error("interrupted")]
    Interrupted,
}

/// Runs `command` by a shell on `cpus`; gives its number. What it writes goes through files in `scratch`: a pipe could be held
/// open by what it leaves running.
pub(super) fn run(
    command: &str,
    scratch: &Path,
    address: SocketAddr,
    cpus: &[usize],
    longest: Duration,
    interrupt: &Interrupt,
) -> Result<f64, CommandError> {
    // Through the stage, because signals that this process has blocked are to reach it.
    let (written, complaint) = (scratch.join("load.out"), scratch.join("load.err"));
    let mut child = Command::new(env::current_exe().map_err(CommandError::Run)?)
        .args([STAGE_COMMAND, "--parent", &process::id().to_string(), "--cpus", &cpus::list(cpus), "--"])
        .args(["/bin/sh", "-c", command])
        .env(ADDRESS_VARIABLE, address.to_string())
        .stdin(Stdio::null())
        .stdout(File::create(&written).map_err(CommandError::Run)?)
        .stderr(File::create(&complaint).map_err(CommandError::Run)?)
        .spawn()
        .map_err(CommandError::Run)?;
    let status = wait(&mut child, longest, interrupt)?;
    let read = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let (written, complaint) =
        (read(&written).map_err(CommandError::Run)?, read(&complaint).map_err(CommandError::Run)?);
    if !status.success() {
        return Err(CommandError::Failed { status, words: tail(&(written + &complaint)) });
    }
    number(&written)
}

/// CPU time of all commands that have ended.
pub(super) fn cpu_time() -> Duration {
    // It knows no way to fail with these arguments (getrusage(2)).
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Duration::ZERO };
    let micros = |time: nix::sys::time::TimeVal| {
        Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).try_into().unwrap_or(0))
    };
    micros(usage.user_time()) + micros(usage.system_time())
}

/// The number that the last line is.
fn number(written: &str) -> Result<f64, CommandError> {
    let line = written.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let number = line.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| CommandError::NoNumber { line: tail(line) })
}

fn tail(text: &str) -> String {
    let text = text.trim();
    let start = text.char_indices().rev().nth(TAIL - 1).map_or(0, |(index, _)| index);
    text[start..].to_owned()
}

fn wait(child: &mut Child, longest: Duration, interrupt: &Interrupt) -> Result<process::ExitStatus, CommandError> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(CommandError::Run)? {
            return Ok(status);
        }
        let error = match () {
            () if interrupt.is_raised() => CommandError::Interrupted,
            () if start.elapsed() > longest => CommandError::Late { longest },
            () => {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        // What it has started itself is its keeper's to end, with this run.
        child.kill().and_then(|()| child.wait()).map_err(CommandError::Run)?;
        return Err(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_number() {
        for (written, expected) in [("12.5\n", 12.5), ("Requests: 3\n 1e3 \n\n", 1000.0)] {
            assert_eq!(number(written).expect("a number"), expected, "{written:?}");
        }
        for written in ["", "fast\n", "0\n", "-1\n", "NaN\n", "7 requests/s\n"] {
            assert!(matches!(number(written), Err(CommandError::NoNumber { .. })), "{written:?}");
        }
    }

    #[test]
    fn an_error_shows_the_end_of_what_was_written() {
        assert_eq!(tail(&"ä".repeat(2 * TAIL)).chars().count(), TAIL);
        assert_eq!(tail(" short "), "short");
    }
}
