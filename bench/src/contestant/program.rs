//! Programs whose layouts are compared, in images made FROM scratch of files of this machine: nothing is pulled. Each answers
//! `GET /N` with N bytes; owns their files below the scratch directory and no container.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use super::{
    StartError,
    engine::Engine,
    image::{assemble, build_go, copy_with_libraries},
    install::nginx_candidates,
};
use crate::shard::body_byte;

/// Of a JVM's own modules, what its HTTP server needs.
const JAVA_MODULES: &str = "java.base,jdk.httpserver";

/// A JVM that is killed would leave its counters there.
const NO_FILES_IN_TMP: &str = "-J-XX:-UsePerfData";

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Go's net/http; each request makes about two thousand small allocations.
    GoAllocates,
    /// Go's net/http; each request reads a JSON document and hashes 40 KiB.
    GoComputes,
    /// nginx; static files.
    Nginx,
    /// The JDK's own HTTP server.
    Jvm,
}

/// A name is no program's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no program {name:?}: choose from {}", Program::ALL.map(Program::name).join(", "))]
pub struct ProgramError {
    name: String,
}

impl Program {
    /// All.
    pub const ALL: [Self; 4] = [Self::GoAllocates, Self::GoComputes, Self::Nginx, Self::Jvm];

    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GoAllocates => "go-allocates",
            Self::GoComputes => "go-computes",
            Self::Nginx => "nginx",
            Self::Jvm => "jvm",
        }
    }

    /// What it does, in a few words.
    pub const fn description(self) -> &'static str {
        match self {
            Self::GoAllocates => "Go's net/http, about 2,000 small allocations for each request",
            Self::GoComputes => "Go's net/http, a JSON document read and 40 KiB hashed for each request",
            Self::Nginx => "nginx, static files, as many workers as CPUs",
            Self::Jvm => {
                "the JDK's HTTP server, as many threads as CPUs, a heap of 256 MiB at most, the JVM's own choice of a collector"
            }
        }
    }

    /// Makes its image; gives that's name in the engine. Its files are below `scratch` in a directory of its name, and what
    /// several programs can use in `scratch` itself. Files of nginx have the lengths `answers`, in bytes.
    pub fn make_image(
        self,
        engine: &Engine,
        scratch: &Path,
        peers: &Path,
        answers: &[usize],
    ) -> Result<String, StartError> {
        assemble(engine, &scratch.join(self.name()).join("image"), self.name(), |root| match self {
            Self::GoAllocates | Self::GoComputes => {
                build_go(scratch, include_str!("program/server.go"), &root.join("server"))
            }
            Self::Nginx => fill_nginx(root, peers, answers),
            Self::Jvm => fill_jvm(root, scratch),
        })
    }

    /// What runs it at `address` with `cpus` CPUs.
    pub fn command(self, address: SocketAddr, cpus: usize) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        match self {
            Self::GoAllocates => words(&["/server", "allocate", &address.to_string()]),
            Self::GoComputes => words(&["/server", "compute", &address.to_string()]),
            Self::Nginx => {
                // nginx takes a listener's address from a file alone.
                let write = "printf %s \"$1\" >/tmp/nginx.conf && exec /nginx -e stderr -c /tmp/nginx.conf";
                words(&["/bin/sh", "-c", write, "nginx", &nginx_configuration(address, cpus)])
            }
            Self::Jvm => words(&[
                "/jvm/bin/java",
                "-Xshare:auto",
                "-Xmx256m",
                "-Djava.net.preferIPv4Stack=true",
                "-Dsun.net.httpserver.nodelay=true",
                "-Dsun.net.httpserver.maxIdleConnections=10000",
                "-cp",
                "/srv",
                "Server",
                &host,
                &port,
            ]),
        }
    }

    /// What it is told, where sherd's agent would tell it of its slot alone, to use as many CPUs as there are.
    pub fn environment_of_all(self, cpus: usize) -> Option<(&'static str, String)> {
        match self {
            Self::GoAllocates | Self::GoComputes => Some(("GOMAXPROCS", cpus.to_string())),
            Self::Nginx => None,
            Self::Jvm => Some(("JAVA_TOOL_OPTIONS", format!("-XX:ActiveProcessorCount={cpus}"))),
        }
    }

    /// Whether it gets faster while it runs.
    pub const fn warms_up(self) -> bool {
        matches!(self, Self::Jvm)
    }
}

impl FromStr for Program {
    type Err = ProgramError;

    fn from_str(name: &str) -> Result<Self, ProgramError> {
        let found = Self::ALL.into_iter().find(|program| program.name() == name);
        found.ok_or_else(|| ProgramError { name: name.to_owned() })
    }
}

fn nginx_configuration(address: SocketAddr, workers: usize) -> String {
    format!(
        "daemon off;\nuser root root;\npid /tmp/nginx.pid;\nworker_processes {workers};\n\
         events {{\n    worker_connections 16384;\n}}\n\
         http {{\n    access_log off;\n    sendfile on;\n    keepalive_requests 1000000000;\n    \
         server {{\n        listen {address} backlog=4096;\n        root /srv;\n    }}\n}}\n"
    )
}

fn fill_nginx(root: &Path, peers: &Path, answers: &[usize]) -> Result<(), StartError> {
    let candidates = nginx_candidates(peers);
    let runs =
        |program: &&PathBuf| Command::new(program).arg("-v").output().is_ok_and(|output| output.status.success());
    let nginx = candidates.iter().find(runs).ok_or_else(|| StartError::Missing {
        name: "nginx",
        reason: format!("none of {candidates:?} runs"),
        install: "sherd-bench install".into(),
    })?;
    let fill = || -> io::Result<()> {
        for part in ["var/log/nginx", "var/lib/nginx", "run", "tmp", "etc", "srv"] {
            fs::create_dir_all(root.join(part))?;
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
        fs::write(root.join("etc/group"), "root:x:0:\n")?;
        for (program, target) in [(nginx.as_path(), "nginx"), (Path::new("/bin/sh"), "bin/sh")] {
            copy_with_libraries(root, program)?;
            fs::create_dir_all(root.join("bin"))?;
            fs::copy(program, root.join(target))?;
        }
        for bytes in answers {
            fs::write(root.join("srv").join(bytes.to_string()), (0..*bytes).map(body_byte).collect::<Vec<u8>>())?;
        }
        Ok(())
    };
    fill().map_err(failed("nginx", "be put into an image"))
}

fn fill_jvm(root: &Path, scratch: &Path) -> Result<(), StartError> {
    let jvm = root.join("jvm");
    let source = scratch.join("Server.java");
    fs::write(&source, include_str!("program/Server.java")).map_err(failed("the JVM", "be put into an image"))?;
    let mut link = Command::new("jlink");
    link.args([
        NO_FILES_IN_TMP,
        "--strip-debug",
        "--no-man-pages",
        "--no-header-files",
        "--add-modules",
        JAVA_MODULES,
        "--output",
    ]);
    run(link.arg(&jvm))?;
    run(Command::new("javac").arg(NO_FILES_IN_TMP).arg("-d").arg(root.join("srv")).arg(&source))?;
    let fill = || -> io::Result<()> {
        fs::create_dir_all(root.join("tmp"))?;
        for part in ["bin/java", "lib/server/libjvm.so", "lib/libnet.so", "lib/libnio.so", "lib/libzip.so"] {
            copy_with_libraries(root, &jvm.join(part))?;
        }
        Ok(())
    };
    fill().map_err(failed("the JVM", "be put into an image"))
}

fn run(command: &mut Command) -> Result<(), StartError> {
    let program = command.get_program().to_owned();
    let missing = |error: io::Error| StartError::Missing {
        name: "the JVM",
        reason: format!("{} does not run: {error}", program.display()),
        install: "apt-get install openjdk-17-jdk-headless".into(),
    };
    let output = command.output().map_err(missing)?;
    let complaint = || io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    if output.status.success() { Ok(()) } else { Err(failed("the JVM", "be put into an image")(complaint())) }
}

fn failed(name: &'static str, action: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Failed { name: name.into(), action: action.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_program() {
        for program in Program::ALL {
            assert_eq!(program.name().parse(), Ok(program));
        }
        assert!("perl".parse::<Program>().is_err());
    }

    #[test]
    fn commands_say_where_and_how_wide() {
        let address = SocketAddr::from(([127, 0, 0, 1], 4711));
        for program in Program::ALL {
            let words = program.command(address, 3).join(" ");
            assert!(words.contains("4711") && words.contains("127.0.0.1"), "{words}");
        }
        assert!(Program::Nginx.command(address, 3)[4].contains("worker_processes 3;\n"));
    }
}
