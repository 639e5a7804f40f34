//! A Docker Engine of a run's own, for what nobody may do to the host's: all it writes is below the scratch directory, it has no
//! bridge, and it takes nothing with it but its own containers.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::Signal,
};

use super::{failed, guard::remove_tree, tell};
use crate::contestant::{
    StartError,
    child::{Child, Launch},
};

/// In the scratch directory. Short: a unix socket's path has 108 bytes, and containerd's is below it.
const DIRECTORY: &str = "engine";
const DEADLINE: Duration = Duration::from_secs(60);
/// Each container may take its time to stop, and containerd after them.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// A running engine; dropping it ends it and removes what it leaves mounted.
#[derive(Debug)]
pub struct OwnEngine {
    scratch: PathBuf,
    directory: PathBuf,
    arguments: Vec<OsString>,
    child: Child,
}

impl OwnEngine {
    /// Starts it, and waits until it answers.
    pub fn start(scratch: &Path) -> Result<Self, StartError> {
        let directory = scratch.join(DIRECTORY);
        fs::create_dir_all(&directory)
            .and_then(|()| fs::write(directory.join("daemon.json"), "{}"))
            .map_err(failed("be given its files"))?;
        let arguments = arguments(scratch, &directory);
        let child = spawn(&arguments, &directory)?;
        let mut engine = Self { scratch: scratch.to_owned(), directory, arguments, child };
        engine.wait_until_it_answers()?;
        Ok(engine)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        socket(&self.directory)
    }

    /// Ends it as a service manager does, and its containers with it; comes back when it has ended.
    pub fn stop(&mut self) -> Result<(), StartError> {
        self.child.end_by(Signal::SIGTERM, STOP_GRACE).map_err(failed("be stopped"))
    }

    /// Starts it again; comes back at once.
    pub fn begin_again(&mut self) -> Result<(), StartError> {
        self.child = spawn(&self.arguments, &self.directory)?;
        Ok(())
    }

    fn wait_until_it_answers(&mut self) -> Result<(), StartError> {
        let socket = self.socket();
        let answers = || tell(&socket, &["version", "--format", "{{.Server.Version}}"]).ok();
        self.child.wait_until("it answered", DEADLINE, answers).map(|_| ())
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        // One that stopped already is what we want; what is left then is the keeper's.
        let _ = self.child.end_by(Signal::SIGTERM, STOP_GRACE);
        let _ = sweep(&self.scratch);
    }
}

/// Whether the run in `scratch` has an engine of its own.
pub(super) fn is_in(scratch: &Path) -> bool {
    scratch.join(DIRECTORY).is_dir()
}

/// Removes what an engine of the run's own, which has ended, leaves outside its directory: mounts and control groups.
pub(super) fn sweep(scratch: &Path) -> io::Result<()> {
    let below = format!("{}/", scratch.join(DIRECTORY).display());
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    points.retain(|point| point.starts_with(&below));
    // The deepest first.
    points.sort_unstable();
    for point in points.into_iter().rev() {
        umount2(point, MntFlags::MNT_DETACH)?;
    }
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return Ok(()) };
    for hierarchy in hierarchies.flatten() {
        for parent in
            [hierarchy.path().join(cgroup_parent(scratch)), Path::new("/sys/fs/cgroup").join(cgroup_parent(scratch))]
        {
            if parent.is_dir() {
                remove_tree(&parent)?;
            }
        }
    }
    Ok(())
}

fn cgroup_parent(scratch: &Path) -> String {
    let run = scratch.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{run}-engine")
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("docker.sock")
}

fn arguments(scratch: &Path, directory: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    for (option, file) in
        [("--config-file", "daemon.json"), ("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")]
    {
        words.extend([option.into(), directory.join(file).into()]);
    }
    words.extend(["--host".into(), format!("unix://{}", socket(directory).display()).into()]);
    // Nothing of it is in the host's network.
    let fixed = ["--iptables=false", "--ip6tables=false", "--bridge=none"];
    words.extend(fixed.map(OsString::from));
    // Where systemd rules the cgroup tree, its driver is the only right one.
    if !Path::new("/run/systemd/system").is_dir() {
        words.extend(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent"].map(OsString::from));
        words.push(format!("/{}", cgroup_parent(scratch)).into());
    }
    words
}

fn spawn(arguments: &[OsString], directory: &Path) -> Result<Child, StartError> {
    Child::spawn(Launch {
        name: "dockerd",
        program: "dockerd".as_ref(),
        arguments: arguments.to_vec(),
        environment: Vec::new(),
        cpus: &[],
        scratch: directory,
    })
}
