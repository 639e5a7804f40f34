//! One container that has all CPUs and serves with a thread on each: what people run before they shard; on the host's network,
//! or behind a port that the engine publishes.
//!
//! A published port leads to one container: the engine has no way to several. So this is what a user of `docker run -p` has.

use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    str,
    time::{Duration, Instant},
};

use nix::unistd::Pid;

use super::{
    Contestant, Facts, StartError,
    containers::{Containers, Ground, PORT, failed},
    engine::Network,
    free_address,
};
use crate::measure::{cpus, pin_thread};

/// The engine's userland proxy: one process for each published port and address.
const PROXY: &str = "docker-proxy";
/// How long it may take to be seen, once the port answers.
const PROXY_DEADLINE: Duration = Duration::from_millis(500);

/// A running container; dropping it removes it.
#[derive(Debug)]
pub struct Whole {
    facts: Facts,
    containers: Containers,
    proxy: Vec<Pid>,
}

impl Whole {
    /// On the host's network.
    pub fn on_the_host(name: &'static str, ground: Ground<'_>, engine_version: &str) -> Result<Self, StartError> {
        let address = free_address().map_err(failed(name, "be given a port"))?;
        let command = ground.image.threaded_command(address, ground.cpus.len());
        let told = format!("docker run --network host --cpuset-cpus {}", cpus::list(ground.cpus));
        let configuration = format!("{told} IMAGE {}", command.join(" "));
        let containers = Containers::one(name, ground, Network::Host, address, command)?;
        let facts = Facts { name: name.into(), version: version(engine_version), program: None, configuration };
        Ok(Self { facts, containers, proxy: Vec::new() })
    }

    /// On the engine's bridge, at a port that it publishes on loopback.
    pub fn behind_a_published_port(
        name: &'static str,
        ground: Ground<'_>,
        engine_version: &str,
    ) -> Result<Self, StartError> {
        let address = free_address().map_err(failed(name, "be given a port"))?;
        let listens = SocketAddr::from(([0, 0, 0, 0], PORT));
        let command = ground.image.threaded_command(listens, ground.cpus.len());
        let told = format!("docker run --publish {address}:{PORT} --cpuset-cpus {}", cpus::list(ground.cpus));
        let configuration = format!("{told} IMAGE {}", command.join(" "));
        let containers = Containers::one(name, ground, Network::Published(address), listens, command)?;
        let proxy = wait_for_proxy(address);
        for process in &proxy {
            pin(*process, ground.cpus).map_err(failed(name, "have the engine's proxy pinned"))?;
        }
        // With the proxy on, the engine's own rules leave loopback to it; without it, they are all there is.
        let way = match proxy.first() {
            Some(pid) => format!("through the engine's userland proxy ({PROXY}, process {pid}), on the same CPUs"),
            None => "through the kernel's NAT: the engine runs no userland proxy".to_owned(),
        };
        let configuration = format!("{configuration}\n{way}");
        let facts = Facts { name: name.into(), version: version(engine_version), program: None, configuration };
        Ok(Self { facts, containers, proxy })
    }

    /// The container's first process, which is all of its server.
    pub fn server(&self) -> &[Pid] {
        self.containers.processes()
    }
}

impl Contestant for Whole {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn addresses(&self) -> &[SocketAddr] {
        self.containers.addresses()
    }

    /// The engine's proxy, where there is one. The kernel's NAT is charged to who sends and receives.
    fn balancer(&self) -> Vec<Pid> {
        self.proxy.clone()
    }
}

fn version(engine: &str) -> String {
    format!("Docker {engine}")
}

/// The engine starts it before the container, so it is there when the port answers; but it may still be about to become
/// its program.
fn wait_for_proxy(published: SocketAddr) -> Vec<Pid> {
    let start = Instant::now();
    loop {
        let found = proxies_of(published);
        if !found.is_empty() || start.elapsed() > PROXY_DEADLINE {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn proxies_of(published: SocketAddr) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw));
    pids.filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| is_proxy_of(&line, published)))
        .collect()
}

/// `docker-proxy -proto tcp -host-ip 127.0.0.1 -host-port 21000 -container-ip 172.17.0.2 -container-port 80`, with zeros
/// between the words.
fn is_proxy_of(command_line: &[u8], published: SocketAddr) -> bool {
    let words: Vec<&str> = command_line.split(|byte| *byte == 0).filter_map(|word| str::from_utf8(word).ok()).collect();
    let is_proxy =
        words.first().is_some_and(|program| Path::new(program).file_name().is_some_and(|name| name == PROXY));
    let option = |name: &str| words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
    let port = published.port().to_string();
    is_proxy
        && option("-proto") == Some("tcp")
        && option("-host-ip") == Some(&published.ip().to_string())
        && option("-host-port") == Some(&port)
}

/// All threads it has; those that it makes later inherit it.
fn pin(process: Pid, cpus: &[usize]) -> io::Result<()> {
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = thread?.file_name().to_string_lossy().parse().map_err(io::Error::other)?;
        pin_thread(Pid::from_raw(thread), cpus)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_known_by_its_port() {
        let line =
            "/usr/sbin/docker-proxy\0-proto\0tcp\0-host-ip\x00127.0.0.1\0-host-port\x0021000\0-container-port\080\0";
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert!(is_proxy_of(line.as_bytes(), at(21000)));
        assert!(!is_proxy_of(line.as_bytes(), at(2100)));
        assert!(!is_proxy_of(line.replace("127.0.0.1", "0.0.0.0").as_bytes(), at(21000)));
        assert!(!is_proxy_of(line.replace("docker-proxy", "docker").as_bytes(), at(21000)));
        assert!(!is_proxy_of(b"", at(21000)));
    }
}
