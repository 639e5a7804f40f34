//! An agent of sherd's that has nothing to do with the one this host may have: its name, directories and log are its own;
//! reached by the command line alone.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;

use super::{
    Api, StartError,
    child::{Child, Launch},
    engine::bounded,
};

/// The group of every agent here.
pub const GROUP: &str = "bench";

const API_DEADLINE: Duration = Duration::from_secs(15);
/// A hand-over of relayed connections takes up to 10 s.
const END_GRACE: Duration = Duration::from_secs(20);

/// A running agent; dropping it stops its group and ends it.
#[derive(Debug)]
pub(super) struct Agent {
    name: String,
    version: String,
    directory: PathBuf,
    client: Client,
    arguments: Vec<OsString>,
    child: Child,
}

/// How to start one.
#[derive(Debug)]
pub(super) struct AgentLaunch<'a> {
    /// What errors call it; also the name of its log.
    pub(super) name: &'a str,
    pub(super) program: Option<&'a Path>,
    /// Its name among all agents of the host.
    pub(super) instance: &'a str,
    /// The socket of its container engine.
    pub(super) docker: Option<&'a Path>,
    /// Where it serves metrics.
    pub(super) metrics: Option<SocketAddr>,
    /// For its directories; nobody else's.
    pub(super) directory: PathBuf,
}

/// How the command line reaches the agent.
#[derive(Debug)]
pub(super) struct Client {
    program: PathBuf,
    run_dir: PathBuf,
}

impl Agent {
    /// Starts it and waits until it can be asked.
    pub(super) fn start(launch: AgentLaunch<'_>) -> Result<Self, StartError> {
        let name = launch.name;
        let program = launch.program.ok_or_else(|| StartError::Missing {
            name: "sherd",
            reason: "there is no `sherd` beside sherd-bench and none was given".into(),
            install: "cargo build --release -p sherd".into(),
        })?;
        let fail = |source| StartError::Failed { name: name.into(), action: "be given its files".into(), source };
        let version = version(program).map_err(fail)?;
        fs::create_dir_all(&launch.directory).map_err(fail)?;
        let client = Client { program: program.to_owned(), run_dir: launch.directory.join("run") };
        let arguments = arguments(&launch, &client.run_dir);
        let child = spawn(name, program, &arguments, &launch.directory)?;
        let mut agent = Self { name: name.into(), version, directory: launch.directory, client, arguments, child };
        agent.wait_for_api()?;
        Ok(agent)
    }

    /// Ends its process by `signal`, and nothing else of it; comes back when it has ended.
    pub(super) fn end_by(&mut self, signal: Signal) -> Result<(), StartError> {
        let name = self.name.clone();
        self.child.end_by(signal, END_GRACE).map_err(|source| StartError::Failed {
            name,
            action: format!("be ended by {signal}"),
            source,
        })
    }

    /// Starts it again as it was; comes back at once.
    pub(super) fn begin_again(&mut self) -> Result<(), StartError> {
        self.child = spawn(&self.name, &self.client.program, &self.arguments, &self.directory)?;
        Ok(())
    }

    /// Waits until it can be asked.
    pub(super) fn wait_for_api(&mut self) -> Result<(), StartError> {
        let client = &self.client;
        self.child.wait_until("its API answered", API_DEADLINE, || client.run(&["ps"].map(OsStr::new)).ok()).map(|_| ())
    }

    /// Its API.
    pub(super) fn api(&self) -> Api {
        Api::at(self.client.run_dir.join("sherd.sock"))
    }

    /// Starts the group that `specification` describes, and waits until it serves.
    pub(super) fn apply(&self, specification: &str) -> Result<(), StartError> {
        self.apply_with(specification, &["--wait"], "start its group")
    }

    /// Changes its group; comes back when that has begun.
    pub(super) fn change(&self, specification: &str) -> Result<(), StartError> {
        self.apply_with(specification, &[], "change its group")
    }

    fn apply_with(&self, specification: &str, options: &[&str], action: &str) -> Result<(), StartError> {
        let path = self.directory.join(format!("{GROUP}.toml"));
        let words: Vec<&OsStr> = ["apply"].iter().chain(options).map(OsStr::new).chain([path.as_os_str()]).collect();
        fs::write(&path, specification)
            .and_then(|()| self.client.run(&words))
            .map(|_| ())
            .map_err(|source| StartError::Failed { name: self.name.clone(), action: action.into(), source })
    }

    /// Waits until `condition` gives something; fails when the agent ends first or the time is over.
    pub(super) fn wait_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut(&Client) -> Option<T>,
    ) -> Result<T, StartError> {
        self.child.wait_until(what, deadline, || condition(&self.client))
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn program(&self) -> &Path {
        &self.client.program
    }

    pub(super) fn pid(&self) -> Pid {
        self.child.pid()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Best effort: the shards outlive their agent by design, and what is left then is the keeper's to end.
        // An agent without its engine would never come to the end of it.
        let _ = bounded(self.client.command(&["stop", "-g", GROUP, "--purge"].map(OsStr::new)));
    }
}

impl Client {
    /// The group's slots, as `sherd ps --json` tells them.
    pub(super) fn slots(&self) -> io::Result<Vec<Value>> {
        let status: Value = serde_json::from_str(&self.run(&["ps", "--json"].map(OsStr::new))?)?;
        let group = status["groups"].as_array().and_then(|groups| groups.iter().find(|group| group["name"] == GROUP));
        Ok(group.and_then(|group| group["slots"].as_array()).cloned().unwrap_or_default())
    }

    fn command(&self, arguments: &[&OsStr]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--run-dir").arg(&self.run_dir).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&OsStr]) -> io::Result<String> {
        let output = self.command(arguments).output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

fn spawn(name: &str, program: &Path, arguments: &[OsString], directory: &Path) -> Result<Child, StartError> {
    Child::spawn(Launch {
        name,
        program: program.as_os_str(),
        arguments: arguments.to_vec(),
        environment: Vec::new(),
        // It plans with the CPUs that it may use itself, and pins its workers.
        cpus: &[],
        scratch: directory,
    })
}

fn version(program: &Path) -> io::Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().nth(1).unwrap_or("unknown").to_owned())
}

fn arguments(launch: &AgentLaunch<'_>, run_dir: &Path) -> Vec<OsString> {
    let state_dir = launch.directory.join("state");
    let docker = launch.docker.map_or_else(|| "off".into(), |socket| format!("unix://{}", socket.display()));
    let metrics = launch.metrics.map_or_else(|| "off".to_owned(), |address| address.to_string());
    let words: [&OsStr; 15] = [
        "--run-dir".as_ref(),
        run_dir.as_ref(),
        "agent".as_ref(),
        "--state-dir".as_ref(),
        state_dir.as_ref(),
        "--instance".as_ref(),
        launch.instance.as_ref(),
        "--reserved-cpus".as_ref(),
        "none".as_ref(),
        "--metrics".as_ref(),
        metrics.as_ref(),
        "--docker".as_ref(),
        docker.as_ref(),
        "--log-format".as_ref(),
        "text".as_ref(),
    ];
    words.map(OsString::from).into()
}
