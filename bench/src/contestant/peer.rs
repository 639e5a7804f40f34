//! A contestant that is one program with one configuration file: what HAProxy, nginx and Envoy have in common.

use std::{
    ffi::OsString,
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use nix::unistd::Pid;

use super::{
    Contestant, Facts, Site, StartError,
    child::{Child, Launch},
};
use crate::keeper::descendants;

/// How long a peer may take to listen. Envoy is large: on a busy host it takes seconds.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running peer; dropping it ends it.
#[derive(Debug)]
pub struct Peer {
    facts: Facts,
    addresses: [SocketAddr; 1],
    child: Child,
}

/// What is needed to start one.
pub(super) struct Plan {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) program: PathBuf,
    pub(super) address: SocketAddr,
    pub(super) configuration: String,
    /// Arguments, given where the configuration is.
    pub(super) arguments: Vec<OsString>,
}

impl Peer {
    pub(super) fn start(plan: Plan, site: &Site<'_>) -> Result<Self, StartError> {
        let path = Self::configuration_path(plan.name, site);
        fs::write(&path, &plan.configuration).map_err(|source| StartError::Failed {
            name: plan.name.into(),
            action: "have its configuration written".into(),
            source,
        })?;
        let mut child = Child::spawn(Launch {
            name: plan.name,
            program: plan.program.as_os_str(),
            arguments: plan.arguments,
            environment: Vec::new(),
            // Each of its threads is pinned after that, by its configuration or by the harness.
            cpus: site.cpus,
            scratch: site.scratch,
        })?;
        child.wait_until("it listened", DEADLINE, || TcpStream::connect(plan.address).ok())?;
        let facts = Facts {
            name: plan.name.into(),
            version: plan.version,
            program: Some(plan.program),
            configuration: plan.configuration,
        };
        Ok(Self { facts, addresses: [plan.address], child })
    }

    /// Where its configuration is.
    pub(super) fn configuration_path(name: &str, site: &Site<'_>) -> PathBuf {
        site.scratch.join(format!("{name}.conf"))
    }
}

impl Contestant for Peer {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    fn balancer(&self) -> Vec<Pid> {
        let mut processes = vec![self.child.pid()];
        processes.extend(descendants(self.child.pid()));
        processes
    }
}
