//! A Docker Engine, by its command line: images and containers of one run, all of them labelled, and their removal by whoever
//! survives the run; owns no process, and touches nothing without the run's label.

use std::{
    env, fs,
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

pub use self::own::OwnEngine;
use super::{StartError, containers::PORT};

pub(super) mod guard;
mod own;

/// The label of all that a run makes. Containers inherit their image's, so sherd's have it as well.
const LABEL: &str = "sherd-bench.run";
/// In the scratch directory: which engine a run uses. Written before anything is made there.
const RECORD: &str = "engine.json";
/// How long one call may take. An engine that starts a container on a busy host takes seconds.
const DEADLINE: Duration = Duration::from_secs(30);
/// Listings without any container before the removal ends: the engine goes on with a call whose caller was killed.
const QUIET_LISTINGS: usize = 2;
const BETWEEN_LISTINGS: Duration = Duration::from_millis(250);
const MAX_LISTINGS: usize = 40;
const NAME: &str = "the container engine";

/// A Docker Engine that answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Engine {
    socket: PathBuf,
    run: String,
}

/// A container's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// One of its own, on the engine's bridge.
    Bridge,
    /// The same, and the engine publishes its port 80 at this address of the host.
    Published(SocketAddr),
}

/// What a container is made of.
#[derive(Debug)]
pub(super) struct Order<'a> {
    pub(super) image: &'a str,
    pub(super) network: Network,
    /// As `--cpuset-cpus` and `--cpuset-mems`.
    pub(super) cpus: String,
    pub(super) mems: String,
    pub(super) command: Vec<String>,
}

impl Engine {
    /// The socket that a user of this environment means.
    pub fn default_socket() -> PathBuf {
        let host = env::var("DOCKER_HOST").ok().and_then(|host| host.strip_prefix("unix://").map(PathBuf::from));
        let of_tests = env::var_os("SHERD_TEST_DOCKER").map(PathBuf::from);
        of_tests.or(host).unwrap_or_else(|| "/var/run/docker.sock".into())
    }

    /// The engine at `socket`, noted in `scratch` for [`sweep`]; gives its version too.
    pub fn open(socket: &Path, scratch: &Path) -> Result<(Self, String), StartError> {
        let run = scratch.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let engine = Self { socket: socket.to_owned(), run };
        let version =
            engine.docker(&["version", "--format", "{{.Server.Version}}"]).map_err(|error| StartError::Missing {
                name: NAME,
                reason: format!("no Docker Engine answers at {}: {error}", socket.display()),
                install: "apt-get install docker.io, then run this under .ci/with-engines.sh, or give --docker SOCKET"
                    .into(),
            })?;
        let record = serde_json::to_vec(&engine).expect("paths and texts are JSON");
        fs::write(scratch.join(RECORD), record).map_err(failed("be noted for its keeper"))?;
        Ok((engine, version))
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The name of the run, which no other run has at the same time.
    pub fn run_name(&self) -> &str {
        &self.run
    }

    /// The label that all bears which a run makes, and its value.
    pub fn label(&self) -> (&'static str, &str) {
        (LABEL, &self.run)
    }

    /// Makes an image with the tag `tag` of the files below `root`; gives its name.
    pub(super) fn import(&self, root: &Path, tag: &str) -> Result<String, StartError> {
        let archive = root.with_extension("tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(root).arg("-cf").arg(&archive).arg(".");
        bounded(tar).map_err(failed("be given an image"))?;
        let name = format!("{}:{tag}", self.run);
        let label = format!("LABEL {LABEL}={}", self.run);
        let archive = archive.to_string_lossy();
        self.docker(&["import", "--change", &label, &archive, &name]).map_err(failed("be given an image"))?;
        Ok(name)
    }

    /// Starts a container; gives its id.
    pub(super) fn start(&self, order: &Order<'_>) -> Result<String, StartError> {
        let network = match order.network {
            Network::Host => "host",
            Network::Bridge | Network::Published(_) => "bridge",
        };
        let published = match order.network {
            Network::Published(at) => Some(format!("{at}:{PORT}")),
            Network::Host | Network::Bridge => None,
        };
        let mut words = vec!["run", "--detach", "--network", network, "--cpuset-cpus", &order.cpus];
        if let Some(published) = &published {
            words.extend(["--publish", published]);
        }
        words.extend(["--cpuset-mems", &order.mems, order.image]);
        words.extend(order.command.iter().map(String::as_str));
        self.docker(&words).map_err(failed("start a container"))
    }

    /// Its first process and its address on the engine's bridge, as far as it has them.
    pub(super) fn inspect(&self, container: &str) -> io::Result<(Option<Pid>, Option<IpAddr>)> {
        let format = "{{.State.Pid}} {{.NetworkSettings.IPAddress}}";
        let text = self.docker(&["inspect", "--format", format, container])?;
        let mut words = text.split(' ');
        let pid = words.next().and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw);
        Ok((pid, words.next().and_then(|address| address.parse().ok())))
    }

    /// Gives a running container other CPUs and memory nodes.
    pub(super) fn confine_to(&self, container: &str, cpus: &str, mems: &str) -> io::Result<()> {
        self.docker(&["update", "--cpuset-cpus", cpus, "--cpuset-mems", mems, container]).map(|_| ())
    }

    /// What a container has written.
    pub(super) fn logs(&self, container: &str) -> String {
        self.docker(&["logs", "--tail", "20", container]).unwrap_or_else(|error| error.to_string())
    }

    /// What each running container of the run has written last.
    pub fn all_logs(&self) -> io::Result<Vec<String>> {
        let filter = format!("label={LABEL}={}", self.run);
        let containers = lines(&self.docker(&["ps", "--quiet", "--no-trunc", "--filter", &filter])?);
        containers.iter().map(|id| self.docker(&["logs", "--tail", "20", id])).collect()
    }

    /// Ends and removes containers.
    pub(super) fn remove(&self, containers: &[String]) -> io::Result<()> {
        let words = ["rm", "--force", "--volumes"].into_iter().chain(containers.iter().map(String::as_str));
        self.docker(&words.collect::<Vec<_>>()).map(|_| ())
    }

    /// Removes all that bears the run's label, whoever made it.
    pub fn remove_all(&self) -> io::Result<()> {
        let filter = format!("label={LABEL}={}", self.run);
        let mut quiet = 0;
        for _ in 0..MAX_LISTINGS {
            let containers = lines(&self.docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter])?);
            let images = lines(&self.docker(&["images", "--quiet", "--no-trunc", "--filter", &filter])?);
            if containers.is_empty() && images.is_empty() {
                quiet += 1;
                if quiet == QUIET_LISTINGS {
                    return Ok(());
                }
            } else {
                quiet = 0;
                // What fails is there in the next listing; somebody else may be removing it.
                let _ = containers.is_empty() || self.remove(&containers).is_ok();
                for image in images {
                    let _ = self.docker(&["rmi", "--force", &image]);
                }
            }
            thread::sleep(BETWEEN_LISTINGS);
        }
        Err(io::Error::other(format!("containers or images with the label {LABEL}={} are left", self.run)))
    }

    fn docker(&self, words: &[&str]) -> io::Result<String> {
        tell(&self.socket, words)
    }
}

/// Has the engine at `socket` do what `docker WORDS` says; gives what that writes.
pub fn tell(socket: &Path, words: &[&str]) -> io::Result<String> {
    let mut command = Command::new("docker");
    command.arg("--host").arg(format!("unix://{}", socket.display())).args(words);
    bounded(command)
}

/// Removes all that the run in `scratch` has made in an engine, and the control groups of its agents. To be called by whoever
/// survives the run.
pub fn sweep(scratch: &Path) -> io::Result<()> {
    // Agents with an engine and without are named after the run.
    let run = scratch.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let removed = match fs::read(scratch.join(RECORD)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // One of the run's own has ended with it, and its images and containers are files below the scratch directory.
        Ok(_) if own::is_in(scratch) => own::sweep(scratch),
        record => record.and_then(|record| serde_json::from_slice::<Engine>(&record)?.remove_all()),
    };
    guard::remove_all(&run).and(removed)
}

fn failed(action: &str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Failed { name: NAME.into(), action: action.into(), source }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// What a short command writes; an error is what it says on standard error, or that it took too long.
pub(super) fn bounded(mut command: Command) -> io::Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let outputs = (read_aside(child.stdout.take()), read_aside(child.stderr.take()));
    let status = wait_bounded(&mut child)?;
    let [written, complaint] = [outputs.0, outputs.1].map(|output| output.join().unwrap_or_default().trim().to_owned());
    match status.success() {
        true => Ok(written),
        false => Err(io::Error::other(complaint)),
    }
}

/// Both pipes are read while it runs: a full one would stop it.
fn read_aside(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read is all there is to show.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait_bounded(child: &mut Child) -> io::Result<std::process::ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() > DEADLINE {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {DEADLINE:?}")));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_says_what_it_wrote_or_why_not() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            bounded(command)
        };
        assert_eq!(shell("echo yes; echo no >&2").expect("it succeeds"), "yes");
        assert_eq!(shell("echo yes; echo no >&2; false").expect_err("it fails").to_string(), "no");
        // More than a pipe holds.
        assert_eq!(shell("head -c 300000 /dev/zero | tr '\\0' x").expect("it succeeds").len(), 300_000);
    }

    #[test]
    fn a_run_without_an_engine_has_nothing_to_sweep() {
        let scratch = tempfile::tempdir().expect("a directory for the test");
        sweep(scratch.path()).expect("nothing to do");
    }

    #[test]
    fn without_an_engine_the_remedy_is_told() {
        let scratch = tempfile::tempdir().expect("a directory for the test");
        let error = Engine::open(Path::new("/nowhere.sock"), scratch.path()).expect_err("nobody is there");
        assert!(
            matches!(&error, StartError::Missing { .. }) && error.to_string().contains("apt-get install"),
            "{error}"
        );
    }
}
