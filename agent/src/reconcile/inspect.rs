//! Finds out how a shard is reached and whether it takes connections. Looks into the shard's network namespace;
//! changes nothing that the shard has.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use sherd_lb::{
    graft::Answering,
    netns::{Family, Loopback, Netns},
    ready::{self, Route},
    relay::Target,
    sockdiag::{self, Listening},
};

use crate::{
    runtime::RuntimeError,
    spec::{Check, ContainerPort, HttpCheck},
};

/// Where a worker connects to reach a shard.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    /// The shard's network namespace; absent when it is the agent's own.
    pub(super) netns: Option<Arc<Netns>>,
    /// Where each container port is listened on.
    pub(super) ports: Vec<(ContainerPort, Target)>,
}

/// One container port and where its listener is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PortQuestion {
    pub(super) container: ContainerPort,
    /// The port inside the shard's namespace: the container port, or the one that a process was told.
    pub(super) port: u16,
    /// A listener on loopback only will do.
    pub(super) loopback: bool,
}

/// What is asked of a shard.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) pid: u32,
    pub(super) ports: Vec<PortQuestion>,
    /// Ports whose connections the shard accepts itself, and how those listeners are reached.
    pub(super) direct: Vec<(ContainerPort, Target)>,
    /// Absent where the shard's listen(2) isn't trapped.
    pub(super) answering: Option<Answering>,
    /// The shard has shown before that it accepts what comes to those listeners.
    pub(super) proven: bool,
    /// It was made from a former specification, and is going to be replaced: until then it serves what it can.
    pub(super) former: bool,
    pub(super) check: Check,
    /// The only port that is probed; absent: as the check has it.
    pub(super) only: Option<ContainerPort>,
    pub(super) timeout: Duration,
}

/// Why a shard gets no connections.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreached {
    #[error("its network namespace can't be entered")]
    Namespace(#[source] std::io::Error),
    #[error("nothing listens on port {port}{}", elsewhere(others))]
    NotListening { port: u16, others: Vec<u16> },
    #[error("its listen(2) on port {port} is not answered yet")]
    NotAnswered { port: u16 },
    #[error(
        "listens on {address} only: a program that is reached through loopback may trust its clients; \
         let it listen on all addresses, or set `loopback = true` for the port"
    )]
    LoopbackOnly { address: SocketAddr },
    #[error(
        "its namespace has no address but loopback: give the host an address, or set `loopback = true` for the port"
    )]
    NoAddress,
    #[error(transparent)]
    Probe(#[from] ready::ProbeError),
    #[error("its check ended with exit code {code}: {output}")]
    Command { code: i32, output: String },
    #[error("its check did not end within {after:?} and was killed: {output}")]
    CommandTimedOut { after: Duration, output: String },
    #[error("its check did not end within {after:?} and can't be killed: {output}")]
    CommandEscaped { after: Duration, output: String },
    #[error("its HEALTHCHECK has not succeeded yet")]
    Starting,
    #[error("its HEALTHCHECK fails: {output}")]
    Unhealthy { output: String },
    #[error("its container has no HEALTHCHECK: it was made when its image had none")]
    NoHealthcheck,
    #[error("it can't be asked")]
    Runtime(#[source] RuntimeError),
}

impl Unreached {
    /// Nobody said anything: as from a program that doesn't accept.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::Probe(ready::ProbeError::NotAccepted { .. } | ready::ProbeError::TimedOut { .. }))
    }
}

fn elsewhere(others: &[u16]) -> String {
    let ports: Vec<String> = others.iter().take(8).map(u16::to_string).collect();
    if ports.is_empty() { String::new() } else { format!(" (it listens on {})", ports.join(", ")) }
}

impl Question {
    /// Finds the listeners, where they aren't known yet, and probes them. Blocks for at most the time-out of each
    /// probe; must not run on a thread that serves others.
    ///
    /// Unless that is `proven`, a direct listener has to be accepted from: a program that holds it and polls something else
    /// would leave its clients in the queue. Later a busy program may be slow to accept, and is none the worse for it.
    pub(super) fn ask(&self, known: Option<Reach>, proven: bool) -> Result<Reach, Unreached> {
        let reach = match known {
            Some(reach) => reach,
            None => self.find()?,
        };
        for (container, target) in &reach.ports {
            if self.is_probed(*container, &reach, proven) {
                self.probe(&reach, target, proven)?;
            }
        }
        Ok(reach)
    }

    fn is_probed(&self, container: ContainerPort, reach: &Reach, proven: bool) -> bool {
        match (self.only, &self.check) {
            // What isn't asked over the network must have shown once that it accepts what it is to serve.
            (_, Check::Command(_) | Check::Image) => !proven,
            (Some(only), _) => only == container,
            (None, Check::Tcp) => true,
            (None, Check::Http(_)) => reach.ports.first().is_some_and(|(first, _)| *first == container),
        }
    }

    fn probe(&self, reach: &Reach, target: &Target, proven: bool) -> Result<(), ready::ProbeError> {
        // A direct listener is in the host's namespace.
        let netns = reach.netns.as_ref().filter(|_| target.force.is_none()).map(|netns| netns.as_fd());
        let route = Route { netns, address: target.address, force: target.force.as_ref() };
        match &self.check {
            Check::Http(http) => probe_http(&route, http, self.timeout),
            Check::Tcp | Check::Command(_) | Check::Image if target.force.is_some() && !proven => {
                ready::probe_accept(&route, self.timeout)
            }
            Check::Tcp | Check::Command(_) | Check::Image => ready::probe_tcp(&route, self.timeout),
        }
    }

    fn find(&self) -> Result<Reach, Unreached> {
        let netns = Netns::of_pid(self.pid).map_err(Unreached::Namespace)?;
        let own = Netns::current().map_err(Unreached::Namespace)?;
        let same = |a: &Netns, b: &Netns| Ok(a.id()? == b.id()?);
        let is_own = same(&netns, &own).map_err(Unreached::Namespace)?;
        let listeners = netns.with(sockdiag::all_listeners).and_then(|found| found).map_err(Unreached::Namespace)?;
        let mut ports: Vec<(ContainerPort, Target)> = Vec::with_capacity(self.ports.len());
        let mut missing = None;
        for question in &self.ports {
            if let Some(direct) = self.direct.iter().find(|(container, _)| *container == question.container) {
                ports.push(direct.clone());
                continue;
            }
            // After the listeners were looked at: once it is answered, another question is asked of what it came to.
            if self.answering.as_ref().is_some_and(|answering| answering.is_for(question.port)) {
                return Err(Unreached::NotAnswered { port: question.port });
            }
            // In the host's own namespace "elsewhere" would list everybody's ports.
            let own_address = |family, loopback| netns.service_address(family, loopback).ok();
            match choose(&listeners, *question, !is_own, own_address) {
                Ok(address) => ports.push((question.container, address.into())),
                Err(fault) if self.former => missing = Some(fault),
                Err(fault) => return Err(fault),
            }
        }
        if self.former {
            let is_new = |(container, _): &&(ContainerPort, Target)| !ports.iter().any(|(known, _)| known == container);
            let others: Vec<_> = self.direct.iter().filter(is_new).cloned().collect();
            ports.extend(others);
        }
        if let Some(fault) = missing.filter(|_| ports.is_empty()) {
            return Err(fault);
        }
        Ok(Reach { netns: (!is_own).then(|| Arc::new(netns)), ports })
    }
}

fn probe_http(route: &Route<'_>, http: &HttpCheck, timeout: Duration) -> Result<(), ready::ProbeError> {
    let status: Vec<_> = http.status.iter().map(|(first, last)| *first..=*last).collect();
    let has_body = |body: &[u8]| http.body.as_ref().is_none_or(|wanted| wanted.is_in(body));
    let check = ready::HttpCheck {
        method: http.method,
        path: &http.path,
        host: http.host.as_deref(),
        status: &status,
        body: if http.body.is_some() { Some(&has_body) } else { None },
    };
    ready::probe_http(route, &check, timeout)
}

/// The address of the listener on a port: IPv4 before IPv6, never loopback unless that is meant.
fn choose(
    listeners: &[Listening],
    question: PortQuestion,
    tell_others: bool,
    own: impl Fn(Family, Loopback) -> Option<IpAddr>,
) -> Result<SocketAddr, Unreached> {
    let here: Vec<&Listening> = listeners.iter().filter(|found| found.address.port() == question.port).collect();
    if here.is_empty() {
        let mut others: Vec<u16> = listeners.iter().map(|found| found.address.port()).collect();
        others.sort_unstable();
        others.dedup();
        return Err(Unreached::NotListening {
            port: question.port,
            others: if tell_others { others } else { Vec::new() },
        });
    }
    let at = |ip| SocketAddr::new(ip, question.port);
    let v4 = here.iter().any(|found| found.address.ip() == Ipv4Addr::UNSPECIFIED || dual_stack(found));
    let v6 = here.iter().any(|found| found.address.ip() == Ipv6Addr::UNSPECIFIED);
    let trust = if question.loopback { Loopback::Allowed } else { Loopback::Never };
    for (listens, family) in [(v4, Family::V4), (v6, Family::V6)] {
        if let Some(ip) = listens.then(|| own(family, trust)).flatten() {
            return Ok(at(ip));
        }
    }
    if v4 || v6 {
        return Err(Unreached::NoAddress);
    }
    let mut specific: Vec<IpAddr> = here.iter().map(|found| found.address.ip()).collect();
    specific.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6(), *ip));
    let chosen = specific[0];
    if chosen.is_loopback() && !question.loopback {
        return Err(Unreached::LoopbackOnly { address: at(chosen) });
    }
    Ok(at(chosen))
}

fn dual_stack(found: &Listening) -> bool {
    found.address.ip() == Ipv6Addr::UNSPECIFIED && !found.v6only
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(listening: &[(&str, bool)], loopback: bool, expected: Result<&str, &str>) {
        let listeners: Vec<Listening> = listening
            .iter()
            .map(|(address, v6only)| Listening {
                address: address.parse().expect("an address"),
                v6only: *v6only,
                uid: 0,
                inode: 1,
                cookie: 1,
                interface: 0,
                queued: 0,
                backlog: 0,
            })
            .collect();
        let question = PortQuestion { container: ContainerPort(80), port: 80, loopback };
        let own = |family, loopback| match (family, loopback) {
            (Family::V4, _) => Some("172.17.0.2".parse().expect("an address")),
            (Family::V6, _) => Some("fd00::2".parse().expect("an address")),
        };
        let found = choose(&listeners, question, true, own).map_err(|error| error.to_string());
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{found} lacks {expected}"),
            (found, expected) => panic!("{listening:?}: {found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_listener_is_reached_where_it_listens_and_not_through_loopback() {
        check(&[("0.0.0.0:80", false)], false, Ok("172.17.0.2:80"));
        check(&[("[::]:80", false)], false, Ok("172.17.0.2:80"));
        check(&[("[::]:80", true)], false, Ok("[fd00::2]:80"));
        check(&[("[::]:80", true), ("0.0.0.0:80", false)], false, Ok("172.17.0.2:80"));
        check(&[("10.0.0.7:80", false), ("127.0.0.1:80", false)], false, Ok("10.0.0.7:80"));
        check(&[("127.0.0.1:80", false)], true, Ok("127.0.0.1:80"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        check(&[], false, Err("nothing listens on port 80"));
        check(&[("0.0.0.0:8081", false)], false, Err("it listens on 8081"));
        check(&[("127.0.0.1:80", false)], false, Err("loopback = true"));
        check(&[("[::1]:80", true)], false, Err("[::1]:80"));
    }
}
