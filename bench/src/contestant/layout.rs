//! How a group's slots lie on this host, asked of `sherd plan`: nothing runs for it; owns no group.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::StartError;
use crate::measure::cpus;

/// What each slot of a layout has. Two layouts with the same slots are the same, whatever they are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots(BTreeSet<(String, String)>);

impl Slots {
    /// Those that a group with `specification` would have on this host, beside nobody. `scratch` is for a file.
    pub fn plan(sherd: &Path, scratch: &Path, specification: &str) -> Result<Self, StartError> {
        let failed = |source| StartError::Failed { name: "sherd".into(), action: "plan a layout".into(), source };
        let file = scratch.join("plan.toml");
        fs::write(&file, specification).map_err(failed)?;
        let output = Command::new(sherd)
            // No agent is there to be asked.
            .arg("--run-dir")
            .arg(scratch.join("nobody"))
            .args(["plan", "--reserved-cpus", "none", "--json"])
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .map_err(failed)?;
        if !output.status.success() {
            return Err(failed(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())));
        }
        let plan: Value = serde_json::from_slice(&output.stdout).map_err(|error| failed(error.into()))?;
        let slots = Self::of_plan(&plan);
        slots.ok_or_else(|| failed(io::Error::other("`sherd plan` tells no slots; is it of this version?")))
    }

    fn of_plan(plan: &Value) -> Option<Self> {
        let slots = plan["plan"]["layouts"][0]["slots"].as_array()?;
        let one = |slot: &Value| Some((slot["cpus"].as_str()?.to_owned(), slot["mems"].as_str()?.to_owned()));
        slots.iter().map(one).collect::<Option<BTreeSet<_>>>().map(Self)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// CPUs of the widest.
    pub fn widest(&self) -> usize {
        let width = |(cpus, _): &(String, String)| cpus::parse_list(cpus).map_or(1, |cpus| cpus.len());
        self.0.iter().map(width).max().unwrap_or(1)
    }
}

impl fmt::Display for Slots {
    /// `0-1 | 2-3`, the first of many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        let mut slots: Vec<(Vec<usize>, &str)> =
            self.0.iter().map(|(cpus, _)| (cpus::parse_list(cpus).unwrap_or_default(), &**cpus)).collect();
        slots.sort();
        let shown: Vec<&str> = slots.iter().take(SHOWN).map(|(_, text)| *text).collect();
        f.write_str(&shown.join(" | "))?;
        if slots.len() > SHOWN { write!(f, " | … ({} slots)", slots.len()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(cpus: &[&str]) -> Slots {
        let slot = |cpus: &&str| serde_json::json!({"cpus": cpus, "mems": "0"});
        let plan = serde_json::json!({"plan": {"layouts": [{"slots": cpus.iter().map(slot).collect::<Vec<_>>()}]}});
        Slots::of_plan(&plan).expect("a plan")
    }

    #[test]
    fn a_layout_is_what_its_slots_have() {
        assert_eq!(slots(&["1", "0"]), slots(&["0", "1"]));
        assert_ne!(slots(&["0-1"]), slots(&["0", "1"]));
        assert_eq!((slots(&["0-1", "2"]).widest(), slots(&["0-1", "2"]).count()), (2, 2));
        assert_eq!(Slots::of_plan(&serde_json::json!({"plan": {"layouts": []}})), None);
    }

    #[test]
    fn slots_are_shown_by_their_cpus() {
        assert_eq!(slots(&["10", "2"]).to_string(), "2 | 10");
        assert_eq!(slots(&["0", "1", "2", "3", "4"]).to_string(), "0 | 1 | 2 | 3 | … (5 slots)");
    }
}
