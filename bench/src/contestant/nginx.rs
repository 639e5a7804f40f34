//! nginx's stream module: one worker pinned to each CPU, each with a reuseport listener of its own.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Site, StartError, free_address,
    install::nginx_candidates,
    peer::{Peer, Plan},
};

/// Its name in tables.
pub const NAME: &str = "nginx";

/// Each relayed connection is two, and a worker may get more than its share.
const SLACK_CONNECTIONS: usize = 4096;

/// An nginx that can do streams.
#[derive(Debug)]
struct Found {
    program: PathBuf,
    version: String,
    /// The stream module, where it isn't compiled in.
    module: Option<PathBuf>,
}

/// Starts it. `program` is used where given, else the first installed one with a stream module.
pub fn start(site: &Site<'_>, program: Option<&Path>) -> Result<Peer, StartError> {
    start_as(NAME, site, program)
}

/// The same under another name, where its shards are others.
pub fn start_as(name: &'static str, site: &Site<'_>, program: Option<&Path>) -> Result<Peer, StartError> {
    let fail = |source| StartError::Failed { name: name.into(), action: "be given a port".into(), source };
    let found = find(name, site.peers, program)?;
    let address = free_address().map_err(fail)?;
    let path = Peer::configuration_path(name, site);
    let plan = Plan {
        name,
        configuration: configuration(address, site, found.module.as_deref()),
        version: found.version,
        program: found.program,
        address,
        arguments: vec!["-p".into(), site.scratch.into(), "-e".into(), "stderr".into(), "-c".into(), path.into()],
    };
    Peer::start(plan, site)
}

fn find(name: &'static str, peers: &Path, given: Option<&Path>) -> Result<Found, StartError> {
    let candidates = given.map_or_else(|| nginx_candidates(peers), |given| vec![given.to_owned()]);
    candidates.iter().find_map(|program| examine(program)).ok_or_else(|| StartError::Missing {
        name,
        reason: format!("none of {candidates:?} runs and has the stream module"),
        install: "sherd-bench install".into(),
    })
}

fn examine(program: &Path) -> Option<Found> {
    let output = Command::new(program).arg("-V").output().ok()?;
    let text = String::from_utf8(output.stderr).ok()?;
    let version = text.lines().find_map(|line| line.strip_prefix("nginx version: nginx/"))?.to_owned();
    let arguments: Vec<&str> = text.split_whitespace().collect();
    if arguments.contains(&"--with-stream") {
        return Some(Found { program: program.to_owned(), version, module: None });
    }
    // Debian's modules lie beside the program's own tree, wherever that was unpacked.
    let usr = program.parent()?.parent()?;
    let module = usr.join("lib/nginx/modules/ngx_stream_module.so");
    let fits = arguments.contains(&"--with-stream=dynamic") && module.exists();
    fits.then(|| Found { program: program.to_owned(), version, module: Some(module) })
}

fn configuration(address: SocketAddr, site: &Site<'_>, module: Option<&Path>) -> String {
    let mut text = String::new();
    if let Some(module) = module {
        writeln!(text, "load_module {};", module.display()).expect("text grows");
    }
    if nix::unistd::geteuid().is_root() {
        // The user that was compiled in need not exist here.
        text.push_str("user root root;\n");
    }
    let masks: Vec<String> = site.cpus.iter().map(|cpu| format!("1{}", "0".repeat(*cpu))).collect();
    let connections = 2 * site.connections + SLACK_CONNECTIONS;
    write!(
        text,
        "daemon off;\npid nginx.pid;\nworker_processes {workers};\nworker_cpu_affinity {masks};\n\
         events {{\n    use epoll;\n    worker_connections {connections};\n}}\n\
         stream {{\n    access_log off;\n    upstream shards {{\n",
        workers = site.cpus.len(),
        masks = masks.join(" "),
    )
    .expect("text grows");
    for shard in site.shards {
        writeln!(text, "        server {shard} max_fails=0;").expect("text grows");
    }
    write!(
        text,
        "    }}\n    server {{\n        listen {address} reuseport backlog=4096;\n        proxy_pass shards;\n        \
         proxy_connect_timeout 5s;\n        proxy_timeout 10m;\n    }}\n}}\n"
    )
    .expect("text grows");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nginx_is_told() {
        let site = Site {
            scratch: Path::new("/s"),
            cpus: &[0, 3],
            shards: &[SocketAddr::from(([127, 0, 0, 1], 1))],
            connections: 1000,
            peers: Path::new("/p"),
        };
        let text = configuration(SocketAddr::from(([127, 0, 0, 1], 80)), &site, Some(Path::new("/m.so")));
        for line in [
            "load_module /m.so;",
            "worker_processes 2;",
            "worker_cpu_affinity 1 1000;",
            "worker_connections 6096;",
            "listen 127.0.0.1:80 reuseport backlog=4096;",
        ] {
            assert!(text.lines().any(|found| found.trim() == line), "{line} in\n{text}");
        }
    }
}
