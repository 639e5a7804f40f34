//! Load generators of others, to hold ours against: run for some seconds each, and asked how many requests a second were answered;
//! owns no process longer than one call.

use std::{
    env, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{self, Command},
};

use super::{Facts, STAGE_COMMAND, StartError, engine::bounded};
use crate::measure::cpus;

/// A load generator for HTTP/1.1 in a closed loop on kept connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generator {
    /// wrk (C, epoll).
    Wrk,
    /// oha (Rust, tokio and hyper).
    Oha,
}

/// One that runs on this machine.
#[derive(Debug)]
pub struct Installed {
    generator: Generator,
    program: PathBuf,
    facts: Facts,
}

/// What a generator is told.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// Whom to ask.
    pub target: SocketAddr,
    /// How long each answer's body is.
    pub answer_bytes: usize,
    /// Connections at a time.
    pub connections: usize,
    /// One thread on each of these.
    pub cpus: &'a [usize],
    /// How long.
    pub seconds: u64,
}

impl Generator {
    /// Its name in tables, and that of its program.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wrk => "wrk",
            Self::Oha => "oha",
        }
    }

    const fn install(self) -> &'static str {
        match self {
            Self::Wrk => "apt-get install wrk",
            Self::Oha => "cargo install oha --locked",
        }
    }

    /// Looks for it on the PATH, or at `given`.
    pub fn find(self, given: Option<&Path>) -> Result<Installed, StartError> {
        let program = given.map_or_else(|| self.name().into(), Path::to_owned);
        let output = Command::new(&program).arg("--version").output().map_err(|error| StartError::Missing {
            name: self.name(),
            reason: format!("{} does not run: {error}", program.display()),
            install: self.install().into(),
        })?;
        // wrk tells it, and then that the URL is missing.
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().nth(1).unwrap_or("unknown").to_owned();
        let facts = Facts {
            name: self.name().into(),
            version,
            program: Some(program.clone()),
            configuration: "one thread on each CPU of the load".into(),
        };
        Ok(Installed { generator: self, program, facts })
    }

    fn arguments(self, order: Order<'_>) -> Vec<String> {
        let Order { target, answer_bytes, connections, cpus, seconds } = order;
        let url = format!("http://{target}/{answer_bytes}");
        match self {
            Self::Wrk => vec![format!("-t{}", cpus.len()), format!("-c{connections}"), format!("-d{seconds}s"), url],
            Self::Oha => vec!["--no-tui".into(), format!("-c{connections}"), format!("-z{seconds}s"), url],
        }
    }
}

impl Installed {
    /// What a report says of it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Runs it; gives what it says.
    pub fn requests_per_second(&self, order: Order<'_>) -> io::Result<f64> {
        let mut command = Command::new(env::current_exe()?);
        command
            .args([STAGE_COMMAND, "--parent", &process::id().to_string(), "--cpus", &cpus::list(order.cpus), "--"])
            .arg(&self.program)
            .args(self.generator.arguments(order));
        let text = bounded(command)?;
        told(&text).ok_or_else(|| io::Error::other(format!("it does not say how many requests a second: {text}")))
    }
}

/// Both write a line like `Requests/sec:  12345.67`.
fn told(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_they_say() {
        let wrk = "Running 1s test @ http://127.0.0.1:1/\n  1 threads and 2 connections\nRequests/sec:  81234.56\n";
        let oha = "Summary:\n  Success rate:\t100.00%\n  Requests/sec:\t50123.4000\n";
        assert_eq!((told(wrk), told(oha), told("nothing")), (Some(81_234.56), Some(50_123.4), None));
    }

    #[test]
    fn one_that_is_not_there_is_missing() {
        let found = Generator::Oha.find(Some(Path::new("/nowhere")));
        assert!(matches!(found, Err(StartError::Missing { name: "oha", .. })), "{found:?}");
    }
}
