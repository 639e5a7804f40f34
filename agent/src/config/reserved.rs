//! Which PUs the system and the agent keep for themselves; a rule over the machine as a value.

use std::str::FromStr;

use sherd_topology::model::{CpuSet, Host, Level};
use thiserror::Error;

/// Cores from which `auto` reserves any: below, one core is too much of the machine.
const AUTO_LEAST_CORES: usize = 8;
/// `auto` reserves one core for each of these many, or part of them.
const AUTO_CORES_PER_RESERVED: usize = 64;

/// PUs that no group gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReservedCpus {
    /// None on a machine with fewer than 8 cores; else one core, with all its PUs, for each 64 cores or part of them,
    /// starting with the one that has the lowest PU (most interrupts and daemons are there).
    Auto,
    /// These.
    These(CpuSet),
}

impl ReservedCpus {
    /// The reserved PUs of a machine.
    pub fn on(&self, host: &Host) -> CpuSet {
        match self {
            Self::These(cpus) => cpus.clone(),
            Self::Auto => {
                let usable = host.usable();
                let mut cores: Vec<CpuSet> =
                    host.parts_at(Level::Core).iter().map(|core| core.intersection(&usable)).collect();
                cores.retain(|core| !core.is_empty());
                let count = match cores.len() {
                    few if few < AUTO_LEAST_CORES => 0,
                    many => many.div_ceil(AUTO_CORES_PER_RESERVED),
                };
                cores.sort_by_key(CpuSet::first);
                cores[..count].iter().fold(CpuSet::default(), |reserved, core| reserved.union(core))
            }
        }
    }
}

/// Why a text says no reserved PUs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a CPU list: write \"auto\", \"none\" or for example \"0-1,32-33\"")]
pub struct ReservedError {
    text: String,
}

impl FromStr for ReservedCpus {
    type Err = ReservedError;

    fn from_str(text: &str) -> Result<Self, ReservedError> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::These(CpuSet::default())),
            list => match list.parse::<CpuSet>() {
                Ok(cpus) if !cpus.is_empty() => Ok(Self::These(cpus)),
                _ => Err(ReservedError { text: text.to_owned() }),
            },
        }
    }
}
