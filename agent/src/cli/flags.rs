//! The flags of `sherd run` as a specification: written as TOML and read like any other, so that one place checks both.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use toml::{Table, Value};

use super::Failure;
use crate::spec::{GroupSpec, SpecFault};

mod body;
mod health;
mod naming;

use self::health::HealthFlags;

/// What runs, where, and behind which ports.
#[derive(Debug, Args)]
pub(super) struct SpecFlags {
    /// Name of the group; taken from the image or the program by default.
    #[arg(short, long, value_name = "GROUP")]
    group: Option<String>,
    /// Publish a TCP port; without IP on every address, IPv4 and IPv6.
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER")]
    publish: Vec<String>,
    /// What each shard gets a whole of: pu, core, l2, l3, die, numa or package.
    #[arg(short, long, value_name = "UNIT", help_heading = "Placement")]
    unit: Option<String>,
    /// Number of shards, or `auto` for one per unit.
    #[arg(short = 'n', long, value_name = "N", help_heading = "Placement")]
    shards: Option<String>,
    /// Put shards apart (`spread`) or together (`pack`).
    #[arg(long, value_name = "HOW", help_heading = "Placement")]
    placement: Option<String>,
    /// Threads of a core: `share` all, one shard for `each`, or only the `first`.
    #[arg(long, value_name = "HOW", help_heading = "Placement")]
    smt: Option<String>,
    /// Kind of core: any, performance or efficiency.
    #[arg(long, value_name = "KIND", help_heading = "Placement")]
    core_kind: Option<String>,
    /// Near this network interface or PCI device.
    #[arg(long, value_name = "DEVICE", help_heading = "Placement")]
    near: Option<String>,
    /// Only on these PUs.
    #[arg(long, value_name = "LIST", help_heading = "Placement")]
    cpus: Option<String>,
    /// Share PUs with other shared groups.
    #[arg(long, help_heading = "Placement")]
    shared: bool,
    /// Bind memory to the PUs' nodes (`bind`), `prefer` them, or `none`.
    #[arg(long, value_name = "HOW", help_heading = "Placement")]
    memory_binding: Option<String>,
    /// Who accepts connections: containers (`direct`), a worker of the agent (`relay`), or `auto`, the default: containers
    /// where that can be had.
    #[arg(long, value_name = "PATH", help_heading = "Connections")]
    path: Option<String>,
    /// How a connection finds its slot: connection, client, local or balanced.
    #[arg(long, value_name = "POLICY", help_heading = "Connections")]
    policy: Option<String>,
    /// Publish shards that listen on loopback only: they see every client as a local one.
    #[arg(long, help_heading = "Connections")]
    loopback: bool,
    /// How long connections may go on when a slot is drained.
    #[arg(long, value_name = "DURATION", help_heading = "Connections")]
    drain: Option<String>,
    /// docker: IMAGE and its arguments; process: a program and its arguments.
    #[arg(long, value_enum, default_value_t = Runtime::Docker, value_name = "RUNTIME")]
    runtime: Runtime,
    /// Same as --runtime process.
    #[arg(long, conflicts_with = "runtime")]
    process: bool,
    /// Set an environment variable; without a value, to the one it has here.
    #[arg(short, long, value_name = "K[=V]")]
    env: Vec<String>,
    /// Working directory of the shards.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User to run as.
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    // A heading goes on to what follows, so these come last.
    #[command(flatten)]
    health: HealthFlags,
    #[command(flatten)]
    container: ContainerFlags,
    /// Image and its arguments; with --process the program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "IMAGE")]
    command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Container")]
struct ContainerFlags {
    /// Docker's create body as JSON: what has no flag here.
    #[arg(short = 'c', long, value_name = "FILE")]
    create_body: Option<PathBuf>,
    /// Mount a directory or a volume.
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTIONS]")]
    volume: Vec<String>,
    /// Memory limit of each shard.
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// Memory limit of the group, divided by its shards.
    #[arg(long, value_name = "SIZE")]
    group_memory: Option<String>,
    /// Replace the image's entrypoint.
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Add a capability.
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// Drop a capability.
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    /// Docker's network.
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Log driver.
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Option of the log driver.
    #[arg(long, value_name = "K=V", requires = "log_driver")]
    log_opt: Vec<String>,
    /// Resource limit.
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Label of the containers.
    #[arg(short, long, value_name = "K=V")]
    label: Vec<String>,
    /// Mount a tmpfs.
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Mount the root file system read-only.
    #[arg(long)]
    read_only: bool,
    /// Docker's security option.
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// When to pull the image: missing, always or never.
    #[arg(long, value_name = "WHEN")]
    pull: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Runtime {
    Docker,
    Process,
}

impl SpecFlags {
    /// The specification that the flags stand for.
    pub(super) fn specification(&self) -> Result<GroupSpec, Failure> {
        let text = self.table()?.to_string();
        GroupSpec::parse("command line", &text)
            .map_err(|faults| Failure::Faults(faults.faults.into_iter().map(|fault| self.in_flags(fault)).collect()))
    }

    fn runtime(&self) -> Runtime {
        if self.process { Runtime::Process } else { self.runtime }
    }

    fn table(&self) -> Result<Table, Failure> {
        let mut root = Table::new();
        let name = self.group.clone().unwrap_or_else(|| naming::group_of(&self.command[0]));
        root.insert("name".to_owned(), name.into());
        put(&mut root, "path", self.path.as_ref());
        put(&mut root, "drain", self.drain.as_ref());
        root.insert("layout".to_owned(), Value::Table(self.layout()));
        let ports: Vec<Value> = self.publish.iter().map(|publish| Value::Table(self.port(publish))).collect();
        root.insert("ports".to_owned(), ports.into());
        self.health.put(&mut root);
        root.insert("environment".to_owned(), Value::Table(self.environment()?));
        match self.runtime() {
            Runtime::Docker => root.insert("container".to_owned(), Value::Table(self.container()?)),
            Runtime::Process => root.insert("process".to_owned(), Value::Table(self.process()?)),
        };
        Ok(root)
    }

    fn layout(&self) -> Table {
        let mut table = Table::new();
        put(&mut table, "unit", self.unit.as_ref());
        if let Some(shards) = &self.shards {
            let number = shards.parse::<i64>().map_or_else(|_| shards.clone().into(), Value::Integer);
            table.insert("shards".to_owned(), number);
        }
        put(&mut table, "placement", self.placement.as_ref());
        put(&mut table, "smt", self.smt.as_ref());
        put(&mut table, "core_kind", self.core_kind.as_ref());
        put(&mut table, "near", self.near.as_ref());
        put(&mut table, "cpus", self.cpus.as_ref());
        if self.shared {
            table.insert("sharing".to_owned(), "shared".into());
        }
        put(&mut table, "memory", self.memory_binding.as_ref());
        put(&mut table, "memory_limit", self.container.group_memory.as_ref());
        table
    }

    fn port(&self, publish: &str) -> Table {
        let mut table = Table::new();
        table.insert("publish".to_owned(), publish.into());
        put(&mut table, "policy", self.policy.as_ref());
        if self.loopback {
            table.insert("loopback".to_owned(), true.into());
        }
        table
    }

    fn environment(&self) -> Result<Table, Failure> {
        let mut table = Table::new();
        for given in &self.env {
            let (name, value) = match given.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => match std::env::var(given) {
                    Ok(value) => (given.as_str(), value),
                    Err(_) => {
                        return Err(Failure::new(format!("-e {given}: it is not set here: write -e {given}=VALUE")));
                    }
                },
            };
            table.insert(name.to_owned(), value.into());
        }
        Ok(table)
    }

    fn process(&self) -> Result<Table, Failure> {
        if let Some(flag) = self.container.first_given() {
            return Err(Failure::new(format!("{flag} is for containers: leave it out, or run an image")));
        }
        let mut table = Table::new();
        table.insert("command".to_owned(), self.command.clone().into());
        // A process has no image to give it a directory: like any program, it starts where it is called.
        let here = std::env::current_dir().ok().map(|path| path.display().to_string());
        put(&mut table, "working_dir", self.workdir.as_ref().or(here.as_ref()));
        put(&mut table, "user", self.user.as_ref());
        Ok(table)
    }

    fn container(&self) -> Result<Table, Failure> {
        let flags = &self.container;
        let mut table = Table::new();
        table.insert("image".to_owned(), self.command[0].clone().into());
        put_all(&mut table, "command", &self.command[1..]);
        put_all(&mut table, "entrypoint", flags.entrypoint.as_slice());
        put_all(&mut table, "volumes", &flags.volume);
        put(&mut table, "memory", flags.memory.as_ref());
        put(&mut table, "user", self.user.as_ref());
        put_all(&mut table, "cap_add", &flags.cap_add);
        put_all(&mut table, "cap_drop", &flags.cap_drop);
        put(&mut table, "network", flags.network.as_ref());
        put(&mut table, "working_dir", self.workdir.as_ref());
        put_all(&mut table, "security_opt", &flags.security_opt);
        put(&mut table, "pull", flags.pull.as_ref());
        if flags.read_only {
            table.insert("read_only".to_owned(), true.into());
        }
        table.insert("labels".to_owned(), Value::Table(pairs("--label", &flags.label)?));
        let tmpfs = |text: &String| match text.split_once(':') {
            Some((target, options)) => (target.to_owned(), options.into()),
            None => (text.clone(), "".into()),
        };
        table.insert("tmpfs".to_owned(), Value::Table(flags.tmpfs.iter().map(tmpfs).collect()));
        if let Some(driver) = &flags.log_driver {
            let mut logging = Table::new();
            logging.insert("driver".to_owned(), driver.clone().into());
            logging.insert("options".to_owned(), Value::Table(pairs("--log-opt", &flags.log_opt)?));
            table.insert("logging".to_owned(), Value::Table(logging));
        }
        let ulimits: Result<Vec<Value>, Failure> = flags.ulimit.iter().map(|text| ulimit(text)).collect();
        table.insert("ulimits".to_owned(), ulimits?.into());
        if let Some(path) = &flags.create_body {
            table.insert("extra".to_owned(), Value::Table(body::read(path)?));
        }
        Ok(table)
    }

    /// Says a fault in the words of the command line, which has no lines and no keys.
    fn in_flags(&self, fault: SpecFault) -> SpecFault {
        SpecFault { key: naming::flag_of(&fault.key, &self.publish), line: 0, file: String::new(), ..fault }
    }
}

impl ContainerFlags {
    /// A flag that only a container can have.
    fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("-c", self.create_body.is_some()),
            ("-v", !self.volume.is_empty()),
            ("-m", self.memory.is_some()),
            ("--group-memory", self.group_memory.is_some()),
            ("--entrypoint", self.entrypoint.is_some()),
            ("--cap-add", !self.cap_add.is_empty()),
            ("--cap-drop", !self.cap_drop.is_empty()),
            ("--network", self.network.is_some()),
            ("--log-driver", self.log_driver.is_some()),
            ("--ulimit", !self.ulimit.is_empty()),
            ("--label", !self.label.is_empty()),
            ("--tmpfs", !self.tmpfs.is_empty()),
            ("--read-only", self.read_only),
            ("--security-opt", !self.security_opt.is_empty()),
            ("--pull", self.pull.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }
}

fn put(table: &mut Table, key: &str, given: Option<&String>) {
    if let Some(given) = given {
        table.insert(key.to_owned(), given.clone().into());
    }
}

fn put_all(table: &mut Table, key: &str, given: &[String]) {
    if !given.is_empty() {
        table.insert(key.to_owned(), given.to_vec().into());
    }
}

fn pairs(flag: &str, given: &[String]) -> Result<Table, Failure> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.into())),
        None => Err(Failure::new(format!("{flag} {text}: write K=V"))),
    };
    given.iter().map(pair).collect()
}

fn ulimit(text: &str) -> Result<Value, Failure> {
    let wrong = || Failure::new(format!("--ulimit {text}: write NAME=SOFT[:HARD], for example nofile=65536:65536"));
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| text.parse::<i64>().map(Value::Integer).map_err(|_| wrong());
    let fields = [("name", name.into()), ("soft", number(soft)?), ("hard", number(hard)?)];
    Ok(Value::Table(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()))
}
