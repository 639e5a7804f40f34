//! Who can take part with containers of its own, by name.

use std::str::FromStr;

/// One that can take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrant {
    /// sherd's direct path.
    SherdDirect,
    /// Containers on the host's network that share a port by SO_REUSEPORT.
    Bare,
    /// The same once more: the control.
    BareAgain,
    /// HAProxy in front of containers on the engine's bridge.
    Haproxy,
    /// HAProxy in front of containers on the host's network.
    HaproxyHost,
    /// The same, told to splice always.
    HaproxySplice,
    /// nginx's stream module in front of containers on the host's network.
    NginxHost,
    /// Envoy in front of containers on the host's network.
    EnvoyHost,
    /// One container on the host's network, a thread on each CPU.
    Unsharded,
    /// The same on the engine's bridge, behind a published port.
    DockerPort,
    /// sherd's relay path.
    SherdRelay,
}

/// A name is nobody's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no contestant {name:?}: choose from {}", Entrant::ALL.map(Entrant::name).join(", "))]
pub struct EntrantError {
    name: String,
}

impl Entrant {
    /// All.
    pub const ALL: [Self; 11] = [
        Self::SherdDirect,
        Self::Bare,
        Self::BareAgain,
        Self::Haproxy,
        Self::HaproxyHost,
        Self::HaproxySplice,
        Self::NginxHost,
        Self::EnvoyHost,
        Self::Unsharded,
        Self::DockerPort,
        Self::SherdRelay,
    ];

    /// Its name in tables and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SherdDirect => "sherd-direct",
            Self::Bare => "bare",
            Self::BareAgain => "bare-2",
            Self::Haproxy => "haproxy",
            Self::HaproxyHost => "haproxy-host",
            Self::HaproxySplice => "haproxy-splice",
            Self::NginxHost => "nginx-host",
            Self::EnvoyHost => "envoy-host",
            Self::Unsharded => "unsharded",
            Self::DockerPort => "docker-port",
            Self::SherdRelay => "sherd-relay",
        }
    }

    /// Whether it is what the benchmark is about: without it there is nothing to tell.
    pub(in crate::scenario) fn is_ours(self) -> bool {
        matches!(self, Self::SherdDirect | Self::SherdRelay)
    }

    /// Whether it has a shard on each CPU.
    pub(super) fn is_sharded(self) -> bool {
        !matches!(self, Self::Unsharded | Self::DockerPort)
    }
}

impl FromStr for Entrant {
    type Err = EntrantError;

    fn from_str(name: &str) -> Result<Self, EntrantError> {
        Self::ALL
            .into_iter()
            .find(|entrant| entrant.name() == name)
            .ok_or_else(|| EntrantError { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_entrant() {
        for entrant in Entrant::ALL {
            assert_eq!(entrant.name().parse(), Ok(entrant));
        }
        assert!("traefik".parse::<Entrant>().is_err());
    }
}
