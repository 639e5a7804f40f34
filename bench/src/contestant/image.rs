//! The image of all containers of a run, made FROM scratch of files of this machine: nothing is pulled; owns its files below
//! the scratch directory and no container.

use std::{
    env, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use super::{CONFINE_COMMAND, StartError, engine::Engine};

/// This program in the image.
const BENCH: &str = "/sherd-bench";
const GO_SERVER: &str = "/go-server";

/// The program that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// [`crate::shard`]: one epoll, one thread, the least a server can be.
    Shard,
    /// net/http of Go.
    Go,
}

/// A name is no server's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no server {name:?}: choose shard or go")]
pub struct ServerError {
    name: String,
}

impl Server {
    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shard => "shard",
            Self::Go => "go",
        }
    }
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(name: &str) -> Result<Self, ServerError> {
        let found = [Self::Shard, Self::Go].into_iter().find(|server| server.name() == name);
        found.ok_or_else(|| ServerError { name: name.to_owned() })
    }
}

/// An image in an engine; whoever removes the run's things removes it.
#[derive(Debug)]
pub struct Image {
    name: String,
    server: Server,
    arguments: Vec<String>,
}

impl Image {
    /// Makes it.
    pub fn make(engine: &Engine, server: Server, scratch: &Path) -> Result<Self, StartError> {
        let name = assemble(engine, &scratch.join("image"), "latest", |root| match server {
            Server::Shard => Ok(()),
            Server::Go => build_go(scratch, include_str!("image/server.go"), &root.join(&GO_SERVER[1..])),
        })?;
        Ok(Self { name, server, arguments: Vec::new() })
    }

    /// Has its server told more than its address.
    #[must_use]
    pub fn with_arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Its name in the engine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What serves at `address`.
    pub fn command(&self, address: SocketAddr) -> Vec<String> {
        let words = match self.server {
            Server::Shard => [BENCH, "shard", "--listen"].as_slice(),
            Server::Go => &[GO_SERVER],
        };
        let words = words.iter().map(|word| (*word).to_owned()).chain([address.to_string()]);
        words.chain(self.arguments.iter().cloned()).collect()
    }

    /// The same, confined as sherd's shim would.
    pub fn confined_command(&self, address: SocketAddr) -> Vec<String> {
        confined(self.command(address))
    }

    /// The same, with `threads` threads in one process. A Go server has as many as its CPUs by itself.
    pub fn threaded_command(&self, address: SocketAddr, threads: usize) -> Vec<String> {
        let mut command = self.command(address);
        if self.server == Server::Shard {
            command.extend(["--threads".to_owned(), threads.to_string()]);
        }
        confined(command)
    }
}

/// What confines itself, in an image that was assembled here, as sherd's shim would, and becomes `command`.
pub(super) fn confined(command: Vec<String>) -> Vec<String> {
    [BENCH, CONFINE_COMMAND, "--"].map(str::to_owned).into_iter().chain(command).collect()
}

/// Makes an image with the tag `tag` of this program and of what `fill` puts below `root`; gives its name.
pub(super) fn assemble(
    engine: &Engine,
    root: &Path,
    tag: &str,
    fill: impl FnOnce(&Path) -> Result<(), StartError>,
) -> Result<String, StartError> {
    let copy = || -> io::Result<()> {
        fs::create_dir_all(root)?;
        let bench = env::current_exe()?;
        // Not linked statically: the C library's own copy is what a container of Debian's would have.
        copy_libraries(root, &bench)?;
        fs::copy(&bench, root.join(&BENCH[1..])).map(|_| ())
    };
    let fail = |source| StartError::Failed { name: "the image".into(), action: "be put together".into(), source };
    copy().map_err(fail)?;
    fill(root)?;
    engine.import(root, tag)
}

/// A program and the libraries that it needs, where they are on this machine; what is below `root` already stays.
pub(super) fn copy_with_libraries(root: &Path, program: &Path) -> io::Result<()> {
    if !program.starts_with(root) {
        copy_into(root, program)?;
    }
    copy_libraries(root, program)
}

fn copy_libraries(root: &Path, program: &Path) -> io::Result<()> {
    libraries(program)?.iter().filter(|library| !library.starts_with(root)).try_for_each(|file| copy_into(root, file))
}

/// Libraries and loader that a dynamic program needs, as ldd(1) finds them.
fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn copy_into(root: &Path, file: &Path) -> io::Result<()> {
    let target = root.join(file.strip_prefix("/").map_err(io::Error::other)?);
    target.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::copy(file, target).map(|_| ())
}

/// Builds a Go program of one file.
pub(super) fn build_go(scratch: &Path, text: &str, target: &Path) -> Result<(), StartError> {
    let fail = |source| StartError::Failed { name: "the Go server".into(), action: "be built".into(), source };
    let source = scratch.join("server.go");
    fs::write(&source, text).map_err(fail)?;
    let output = Command::new("go")
        .current_dir(scratch)
        .env("GOCACHE", scratch.join("go-cache"))
        // What it leaves there when it is killed goes with the run.
        .env("GOTMPDIR", scratch)
        .envs([("CGO_ENABLED", "0"), ("GO111MODULE", "off"), ("GOFLAGS", "")])
        .args(["build", "-ldflags", "-s -w", "-o"])
        .args([target, &source])
        .output()
        .map_err(|error| StartError::Missing {
            name: "the Go server",
            reason: format!("go does not run: {error}"),
            install: "apt-get install golang-go".into(),
        })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(fail(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_brings_its_loader() {
        let found = libraries(&env::current_exe().expect("this test")).expect("ldd is there");
        assert!(found.iter().any(|library| library.to_string_lossy().contains("/ld-linux")), "{found:?}");
    }

    #[test]
    fn names_lead_back_to_their_server() {
        for server in [Server::Shard, Server::Go] {
            assert_eq!(server.name().parse(), Ok(server));
        }
        assert!("node".parse::<Server>().is_err());
    }
}
