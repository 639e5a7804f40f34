//! Who can take part, by name.

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
    pub const ALL: [Self; 6] =
        [Self::SherdDirect, Self::Bare, Self::BareAgain, Self::Haproxy, Self::HaproxyHost, Self::SherdRelay];

    /// Its name in tables and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SherdDirect => "sherd-direct",
            Self::Bare => "bare",
            Self::BareAgain => "bare-2",
            Self::Haproxy => "haproxy",
            Self::HaproxyHost => "haproxy-host",
            Self::SherdRelay => "sherd-relay",
        }
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
        assert!("envoy".parse::<Entrant>().is_err());
    }
}
