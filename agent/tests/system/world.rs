//! One agent for one test: starts it, talks to it through the command line alone, and leaves nothing behind.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use sherd_testkit::eventually;

/// The program under test.
pub(crate) const SHERD: &str = env!("CARGO_BIN_EXE_sherd");

/// Whether the long forms run (`make prove`).
pub(crate) fn proving() -> bool {
    std::env::var("SHERD_PROVE").as_deref() == Ok("1")
}

/// The short form's number, or the long form's.
pub(crate) fn scaled(short: usize, long: usize) -> usize {
    if proving() { long } else { short }
}

/// An agent with its directories. Dropping it stops every group and everything that it started.
pub(crate) struct World {
    dir: PathBuf,
    instance: String,
    agent: Option<Child>,
}

impl World {
    /// An agent without a container engine.
    pub(crate) fn new(test: &str) -> Self {
        Self::with_engine(test, "off")
    }

    /// An agent with this engine's socket, or `off`.
    pub(crate) fn with_engine(test: &str, docker: &str) -> Self {
        let world = Self::prepare(test, docker);
        world.started(&[])
    }

    /// Everything but the agent.
    pub(crate) fn prepare(test: &str, docker: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let instance = format!("t{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(format!("sherd-{instance}"));
        fs::create_dir_all(&dir).expect("a directory for the test");
        let config = format!(
            "instance = \"{instance}\"\nrun_dir = \"{dir}/run\"\nstate_dir = \"{dir}/state\"\nreserved_cpus = \"none\"\n\
             metrics = \"127.0.0.1:9478\"\ndocker = \"{docker}\"\n[log]\nfilter = \"debug\"\nformat = \"text\"\n",
            dir = dir.display()
        );
        fs::write(dir.join("sherd.toml"), config).expect("the agent's settings");
        eprintln!("{test}: {}", dir.display());
        Self { dir, instance, agent: None }
    }

    fn started(mut self, variables: &[(&str, &str)]) -> Self {
        self.start(variables);
        self.wait_for_api();
        self
    }

    /// Starts the agent; returns at once.
    pub(crate) fn start(&mut self, variables: &[(&str, &str)]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("agent.log")).expect("a log");
        let child = Command::new(SHERD)
            .arg("agent")
            .arg("--config")
            .arg(self.dir.join("sherd.toml"))
            .env_remove("DOCKER_HOST")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the agent starts");
        self.agent = Some(child);
    }

    /// Waits until the agent answers.
    pub(crate) fn wait_for_api(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.try_sherd(&["ps"]).status.success() {
            let ended = self.agent.as_mut().and_then(|agent| agent.try_wait().expect("the agent's state"));
            assert!(ended.is_none(), "the agent ended with {ended:?}:\n{}", self.log());
            assert!(Instant::now() < deadline, "the agent does not answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where this test's files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The agent's instance: the label of what it makes.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// The agent's process.
    pub(crate) fn agent_pid(&self) -> u32 {
        self.agent.as_ref().expect("an agent runs").id()
    }

    /// The agent's log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("an agent runs");
        agent.kill().expect("SIGKILL");
        agent.wait().expect("its end");
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn end_agent(&mut self) {
        let Some(mut agent) = self.agent.take() else { return };
        signal(agent.id(), Signal::SIGTERM);
        eventually("the agent ends after SIGTERM", Duration::from_secs(30), || agent.try_wait().expect("its state"));
    }

    /// Waits for an agent that kills itself at a fault point; false if it is still there after `bound`.
    pub(crate) fn agent_died(&mut self, bound: Duration) -> bool {
        let deadline = Instant::now() + bound;
        while Instant::now() < deadline {
            let agent = self.agent.as_mut().expect("an agent runs");
            if let Some(status) = agent.try_wait().expect("its state") {
                assert_eq!(status.signal(), Some(9), "the agent ended by itself:\n{}", self.log());
                self.agent = None;
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// A `sherd` command against this agent.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(SHERD);
        command.env("SHERD_RUN_DIR", self.dir.join("run")).stdin(Stdio::null());
        command
    }

    /// Runs `sherd ARGS`.
    pub(crate) fn try_sherd(&self, args: &[&str]) -> Output {
        self.command().args(args).output().expect("sherd runs")
    }

    /// Runs `sherd ARGS`, which must succeed; its standard output.
    pub(crate) fn sherd(&self, args: &[&str]) -> String {
        let output = self.try_sherd(args);
        assert!(
            output.status.success(),
            "sherd {args:?}: {}\n{}{}\nagent:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            tail(&self.log(), 60),
        );
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs `sherd ARGS`, which must fail; its standard error.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let output = self.try_sherd(args);
        assert!(!output.status.success(), "sherd {args:?} succeeded:\n{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).expect("text")
    }

    /// Writes a specification and applies it.
    pub(crate) fn apply(&self, group: &str, text: &str) -> String {
        let path = self.dir.join(format!("{group}.toml"));
        fs::write(&path, text).expect("a specification");
        self.sherd(&["apply", path.to_str().expect("a path")])
    }

    /// `sherd ps --json`.
    pub(crate) fn ps(&self) -> Value {
        serde_json::from_str(&self.sherd(&["ps", "--json"])).expect("JSON")
    }

    /// The slots of a group, as `ps --json` has them; none if there is no such group.
    pub(crate) fn slots(&self, group: &str) -> Vec<Value> {
        let groups = self.ps()["groups"].as_array().cloned().unwrap_or_default();
        let group = groups.into_iter().find(|found| found["name"] == group);
        group.and_then(|group| group["slots"].as_array().cloned()).unwrap_or_default()
    }

    /// Waits until all slots of a group are ready, and there are `count` of them.
    pub(crate) fn wait_ready(&self, group: &str, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let slots = self.slots(group);
            if slots.len() == count && slots.iter().all(|slot| slot["ready"] == true) {
                return slots;
            }
            assert!(Instant::now() < deadline, "{group} is not ready: {slots:#?}\n{}", tail(&self.log(), 80));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processes that belong to this test: their command line or environment names its directory or its instance.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let mark = self.dir.display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            if pid == std::process::id() {
                continue;
            }
            let text = |file: &str| {
                let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).replace('\0', " ")
            };
            let (line, environment) = (text("cmdline"), text("environ"));
            let marked = |text: &str| text.contains(&mark) || text.contains(&format!("SHERD_SHARD={}", self.instance));
            if marked(&line) || marked(&environment) {
                found.push((pid, line));
            }
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of the agent's log:\n{}", tail(&self.log(), 120));
        }
        if self.agent.is_some() {
            for group in self.try_sherd(&["ps", "--json"]).stdout_json()["groups"].as_array().into_iter().flatten() {
                let name = group["name"].as_str().unwrap_or_default();
                let _ = self.try_sherd(&["stop", "-g", name, "--purge"]);
            }
        }
        if let Some(mut agent) = self.agent.take() {
            signal(agent.id(), Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline && matches!(agent.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = agent.kill();
            let _ = agent.wait();
        }
        // The holder ends by itself, a little later; what a failed test left doesn't.
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && !self.processes().is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let left = self.processes();
        for (pid, _) in &left {
            signal(*pid, Signal::SIGKILL);
        }
        let _ = fs::remove_dir_all(&self.dir);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }
}

trait Json {
    fn stdout_json(&self) -> Value;
}

impl Json for Output {
    fn stdout_json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or(Value::Null)
    }
}

/// Sends a signal to a process that may be gone.
pub(crate) fn signal(pid: u32, signal: Signal) {
    assert!(pid > 0, "that would be this test's own process group");
    let _ = kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), signal);
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A specification of the demo service as processes: one shard on each of the first `shards` CPUs, shared with others.
pub(crate) fn demo_spec(group: &str, shards: usize, publish: &str, more: &str) -> String {
    format!(
        "name = \"{group}\"\n{more}\n[layout]\nunit = \"pu\"\nshards = {shards}\nsharing = \"shared\"\nmemory = \"none\"\n\
         [process]\ncommand = [\"{SHERD}\", \"demo\"]\n[[ports]]\npublish = \"{publish}\"\nloopback = true\n"
    )
}
