//! sherd's relay path, by its public interfaces alone: an agent of its own with directories of its own, a group of
//! process shards given by a specification. The shards it starts are those of all contestants.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::unistd::Pid;

use super::{
    Contestant, Facts, StartError,
    child::{Child, Launch},
    free_address,
};
use crate::{load::fetch, measure::cpus, shard::Announcement};

/// Its name in tables.
pub const NAME: &str = "sherd";

const GROUP: &str = "bench";
const AGENT_DEADLINE: Duration = Duration::from_secs(15);
const GROUP_DEADLINE: Duration = Duration::from_secs(30);

/// A running agent with its group; dropping it stops the group and ends the agent.
#[derive(Debug)]
pub struct Sherd {
    facts: Facts,
    addresses: [SocketAddr; 1],
    shards: Vec<Announcement>,
    client: Client,
    agent: Child,
}

/// How the command line reaches the agent.
#[derive(Debug)]
struct Client {
    program: PathBuf,
    run_dir: PathBuf,
}

impl Sherd {
    /// Starts the agent and one shard on each of `cpus`. `connections` is what each slot must be able to hold.
    pub fn start(
        program: Option<&Path>,
        scratch: &Path,
        cpus: &[usize],
        connections: usize,
    ) -> Result<Self, StartError> {
        let program = program.ok_or_else(|| StartError::Missing {
            name: NAME,
            reason: "there is no `sherd` beside sherd-bench and none was given".into(),
            install: "cargo build --release -p sherd".into(),
        })?;
        let fail = |source| StartError::Failed { name: NAME.into(), action: "be given its files".into(), source };
        let version = version(program).map_err(fail)?;
        let address = free_address().map_err(fail)?;
        let announced = scratch.join("sherd-shards");
        let client = Client { program: program.to_owned(), run_dir: scratch.join("run") };
        let specification = scratch.join(format!("{GROUP}.toml"));
        let shard = std::env::current_exe().map_err(fail)?;
        let text = specification_text(&shard, &announced, address, cpus, connections);
        fs::create_dir(&announced).and_then(|()| fs::write(&specification, &text)).map_err(fail)?;
        let mut agent = Child::spawn(Launch {
            name: NAME,
            program: program.as_os_str(),
            arguments: agent_arguments(&client.run_dir, &scratch.join("state")),
            environment: Vec::new(),
            // It plans with the CPUs that it may use itself, and pins its workers.
            cpus: &[],
            scratch,
        })?;
        agent.wait_until("its API answered", AGENT_DEADLINE, || client.run(&["ps".as_ref()]).ok())?;
        client
            .run(&["apply".as_ref(), "--wait".as_ref(), specification.as_os_str()])
            .map_err(|source| StartError::Failed { name: NAME.into(), action: "start its group".into(), source })?;
        let shards = agent.wait_until("its shards announced themselves", GROUP_DEADLINE, || {
            Announcement::read_all(&announced).ok().filter(|shards| shards.len() == cpus.len())
        })?;
        agent.wait_until("its published port answered", GROUP_DEADLINE, || fetch(address, 1).ok())?;
        let facts = Facts { name: NAME.into(), version, program: Some(program.to_owned()), configuration: text };
        Ok(Self { facts, addresses: [address], shards, client, agent })
    }

    /// The shards it started.
    pub fn shards(&self) -> &[Announcement] {
        &self.shards
    }
}

impl Contestant for Sherd {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The agent: its relay workers are threads of it. What supervises the shards is not in any connection's way.
    fn balancer(&self) -> Vec<Pid> {
        vec![self.agent.pid()]
    }
}

impl Drop for Sherd {
    fn drop(&mut self) {
        // Best effort: the shards outlive their agent by design, and what is left then is the keeper's to kill.
        let _ = self.client.run(&["stop", "-g", GROUP, "--purge"].map(OsStr::new));
    }
}

impl Client {
    fn run(&self, arguments: &[&OsStr]) -> io::Result<()> {
        let output = Command::new(&self.program)
            .arg("--run-dir")
            .arg(&self.run_dir)
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

fn version(program: &Path) -> io::Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().nth(1).unwrap_or("unknown").to_owned())
}

/// An agent that has nothing to do with the one this host may have: its own name, directories and no fixed port.
fn agent_arguments(run_dir: &Path, state_dir: &Path) -> Vec<OsString> {
    let instance = format!("bench-{}", std::process::id());
    let words: [&OsStr; 15] = [
        "--run-dir".as_ref(),
        run_dir.as_ref(),
        "agent".as_ref(),
        "--state-dir".as_ref(),
        state_dir.as_ref(),
        "--instance".as_ref(),
        instance.as_ref(),
        "--reserved-cpus".as_ref(),
        "none".as_ref(),
        "--metrics".as_ref(),
        "off".as_ref(),
        "--docker".as_ref(),
        "off".as_ref(),
        "--log-format".as_ref(),
        "text".as_ref(),
    ];
    words.map(OsString::from).into()
}

fn specification_text(
    shard: &Path,
    announced: &Path,
    address: SocketAddr,
    cpus: &[usize],
    connections: usize,
) -> String {
    let command = [shard.display().to_string(), "shard".into(), "--announce".into(), announced.display().to_string()];
    // A TOML basic string is written as a JSON string is.
    let command = serde_json::to_string(&command).expect("texts are JSON");
    format!(
        "name = \"{GROUP}\"\ndrain = \"2s\"\nstop_grace = \"2s\"\n\n[layout]\nunit = \"pu\"\nshards = {count}\ncpus = \"{cpus}\"\n\n\
         [process]\ncommand = {command}\n\n\
         [[ports]]\npublish = \"{address}:80\"\nloopback = true\n\n\
         [relay]\nmax_connections = {connections}\n",
        count = cpus.len(),
        cpus = cpus::list(cpus),
    )
}
