//! Who can take part, by name.

use std::str::FromStr;

use super::{direct, envoy, haproxy::Variant, nginx, sherd};

/// One that can take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// sherd's relay path.
    Sherd,
    /// HAProxy.
    Haproxy(Variant),
    /// nginx's stream module.
    Nginx,
    /// Envoy's TCP proxy.
    Envoy,
    /// No balancer.
    Direct,
}

/// A name is nobody's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no contestant {name:?}: choose from {}", Choice::ALL.map(Choice::name).join(", "))]
pub struct ChoiceError {
    name: String,
}

impl Choice {
    /// All.
    pub const ALL: [Self; 7] = [
        Self::Sherd,
        Self::Haproxy(Variant::Auto),
        Self::Haproxy(Variant::Splice),
        Self::Haproxy(Variant::PerCore),
        Self::Nginx,
        Self::Envoy,
        Self::Direct,
    ];

    /// Its name in tables and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sherd => sherd::NAME,
            Self::Haproxy(variant) => variant.name(),
            Self::Nginx => nginx::NAME,
            Self::Envoy => envoy::NAME,
            Self::Direct => direct::NAME,
        }
    }
}

impl FromStr for Choice {
    type Err = ChoiceError;

    fn from_str(name: &str) -> Result<Self, ChoiceError> {
        Self::ALL.into_iter().find(|choice| choice.name() == name).ok_or_else(|| ChoiceError { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_choice() {
        for choice in Choice::ALL {
            assert_eq!(choice.name().parse(), Ok(choice));
        }
        assert!("traefik".parse::<Choice>().is_err());
    }
}
