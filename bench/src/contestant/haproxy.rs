//! HAProxy in TCP mode: one thread pinned to each CPU, each with a listener of its own (`shards by-thread`, as nginx has
//! them; by default one listener is shared). No one configuration is its best under every load, so there are several.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Site, StartError, free_address,
    install::haproxy_candidates,
    peer::{Peer, Plan},
};

/// Pipes for splicing, one for each direction that splices at a time. By default a quarter of the connections, which only
/// costs files: bulk loads have few connections.
const MAX_PIPES: usize = 512;

/// How it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `splice-auto`: in this release it hardly ever splices, which is best for small answers.
    Auto,
    /// `splice-request` and `splice-response`: always, which is best for large ones.
    Splice,
    /// As [`Variant::Auto`], and each thread sends to the shard on its own CPU: sharded by hand, without fail-over.
    PerCore,
}

impl Variant {
    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "haproxy",
            Self::Splice => "haproxy-splice",
            Self::PerCore => "haproxy-percore",
        }
    }
}

/// Starts it. `program` is used where given, else the newest that is installed.
pub fn start(variant: Variant, site: &Site<'_>, program: Option<&Path>) -> Result<Peer, StartError> {
    start_as(variant.name(), variant, site, program)
}

/// The same under another name, where several have the same configuration and other shards.
pub fn start_as(
    name: &'static str,
    variant: Variant,
    site: &Site<'_>,
    program: Option<&Path>,
) -> Result<Peer, StartError> {
    let fail = |source| StartError::Failed { name: name.into(), action: "be given a port".into(), source };
    let (program, version) = find(name, site.peers, program)?;
    let address = free_address().map_err(fail)?;
    let path = Peer::configuration_path(name, site);
    let plan = Plan {
        name,
        version,
        program,
        address,
        configuration: configuration(variant, address, site),
        arguments: vec!["-db".into(), "-f".into(), path.into()],
    };
    Peer::start(plan, site)
}

fn find(name: &'static str, peers: &Path, given: Option<&Path>) -> Result<(PathBuf, String), StartError> {
    let candidates = given.map_or_else(|| haproxy_candidates(peers), |given| vec![given.to_owned()]);
    let found = candidates.iter().find_map(|program| Some((program.clone(), version(program)?)));
    found.ok_or_else(|| StartError::Missing {
        name,
        reason: format!("none of {candidates:?} runs"),
        install: "sherd-bench install".into(),
    })
}

fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("-v").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.lines().next()?.strip_prefix("HAProxy version ")?.split_whitespace().next()?.to_owned())
}

fn configuration(variant: Variant, address: SocketAddr, site: &Site<'_>) -> String {
    let mut text = format!("global\n    nbthread {}\n    maxconn {}\n", site.cpus.len(), site.connections);
    writeln!(text, "    maxpipes {MAX_PIPES}").expect("text grows");
    for (thread, cpu) in site.cpus.iter().enumerate() {
        writeln!(text, "    cpu-map 1/{} {cpu}", thread + 1).expect("text grows");
    }
    let splice = match variant {
        Variant::Auto | Variant::PerCore => "option splice-auto",
        Variant::Splice => "option splice-request\n    option splice-response",
    };
    write!(
        text,
        "defaults\n    mode tcp\n    {splice}\n    maxconn {}\n    timeout connect 5s\n    timeout client 10m\n    \
         timeout server 10m\n    balance roundrobin\n",
        site.connections,
    )
    .expect("text grows");
    if variant == Variant::PerCore {
        for (index, shard) in site.shards.iter().enumerate() {
            let thread = index % site.cpus.len() + 1;
            write!(text, "listen bench{index}\n    bind {address} thread {thread} backlog 4096\n").expect("text grows");
            writeln!(text, "    server shard{index} {shard}").expect("text grows");
        }
        return text;
    }
    write!(text, "listen bench\n    bind {address} shards by-thread backlog 4096\n").expect("text grows");
    for (index, shard) in site.shards.iter().enumerate() {
        writeln!(text, "    server shard{index} {shard}").expect("text grows");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: [&str; 3] = ["nbthread 2", "cpu-map 1/1 2", "cpu-map 1/2 5"];

    fn check(variant: Variant, lines: &[&str]) {
        let site = Site {
            scratch: Path::new("/s"),
            cpus: &[2, 5],
            shards: &[SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2))],
            connections: 1000,
            peers: Path::new("/p"),
        };
        let text = configuration(variant, SocketAddr::from(([127, 0, 0, 1], 80)), &site);
        for line in COMMON.iter().chain(lines) {
            assert!(text.lines().any(|found| found.trim() == *line), "{line} in\n{text}");
        }
    }

    #[test]
    fn what_haproxy_is_told() {
        let by_thread = "bind 127.0.0.1:80 shards by-thread backlog 4096";
        check(Variant::Auto, &["option splice-auto", by_thread, "server shard1 127.0.0.1:2"]);
        check(Variant::Splice, &["option splice-request", "option splice-response", by_thread]);
        let second = "bind 127.0.0.1:80 thread 2 backlog 4096";
        check(Variant::PerCore, &["option splice-auto", second, "server shard1 127.0.0.1:2"]);
    }
}
