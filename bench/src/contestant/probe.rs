//! Programs that use a crate of sherd's as anybody could (its examples), and print what they measure: the harness itself knows
//! no crate of sherd's; owns no process longer than one call.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{self, Command},
};

use super::{Facts, STAGE_COMMAND, StartError, engine::bounded};
use crate::measure::cpus;

/// A built program.
#[derive(Debug, Clone)]
pub struct Probe {
    program: PathBuf,
}

impl Probe {
    /// Looks for `name` in `directory`; without one, where cargo puts examples of the build that this program is of.
    pub fn find(name: &'static str, directory: Option<&Path>) -> Result<Self, StartError> {
        let beside = || Some(env::current_exe().ok()?.parent()?.join("examples"));
        let program = directory.map(Path::to_owned).or_else(beside).unwrap_or_default().join(name);
        if program.is_file() {
            return Ok(Self { program });
        }
        Err(StartError::Missing {
            name,
            reason: format!("{} is not there", program.display()),
            install: "cargo build --release -p sherd-lb --examples".into(),
        })
    }

    /// Runs it on `cpu`; gives what it prints.
    pub fn run(&self, cpu: usize, arguments: &[&str]) -> io::Result<String> {
        let mut command = Command::new(env::current_exe()?);
        command
            .args([STAGE_COMMAND, "--parent", &process::id().to_string(), "--cpus", &cpus::list(&[cpu]), "--"])
            .arg(&self.program)
            .args(arguments);
        bounded(command)
    }

    /// What a report says of it.
    pub fn facts(&self, name: &str, configuration: &str) -> Facts {
        Facts {
            name: name.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            program: Some(self.program.clone()),
            configuration: configuration.into(),
        }
    }
}
