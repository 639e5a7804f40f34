//! What is wrong on this host for sherd, in plain words with what mends it. Pure: [`HostFacts`] in, a [`Diagnosis`] out;
//! [`gather`] is the only part that reads, and nothing here changes anything.

use serde::{Deserialize, Serialize};

pub use self::facts::{EngineFacts, Fact, HostFacts, Unread};
pub use self::gather::gather;

mod agent;
mod cpu;
mod engine;
mod facts;
mod gather;
mod kernel;
mod memory;
mod network;
mod slots;
#[cfg(test)]
mod tests;

/// How much a finding matters. The worst comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A function of sherd doesn't work.
    Error,
    /// It costs speed or safety.
    Warning,
    /// Good to know.
    Note,
}

impl Severity {
    /// The severity's name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check that found it; a word for programs.
    pub check: String,
    /// How much it matters.
    pub severity: Severity,
    /// What is so.
    pub what: String,
    /// Why that matters for sherd.
    pub why: String,
    /// The command that mends it, or what to do.
    pub remedy: String,
    /// Where it was read.
    pub source: String,
}

/// Something that could not be found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unchecked {
    /// The check that can't tell.
    pub check: String,
    /// What could not be read.
    pub source: String,
    /// Why.
    pub reason: String,
}

/// All that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Checks that were made, with or without a finding.
    pub checks: usize,
    /// The worst first.
    pub findings: Vec<Finding>,
    /// What isn't known.
    pub unchecked: Vec<Unchecked>,
}

/// Makes every check.
pub fn examine(facts: &HostFacts) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    let tables = [cpu::CHECKS, memory::CHECKS, network::CHECKS, kernel::CHECKS, agent::CHECKS, engine::CHECKS];
    for check in tables.into_iter().flatten() {
        diagnosis.checks += 1;
        (check.run)(facts, &mut Findings { check, diagnosis: &mut diagnosis });
    }
    diagnosis.findings.sort_by_key(|finding| finding.severity);
    diagnosis
}

impl Diagnosis {
    /// Findings of one severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

/// One question to the facts.
struct Check {
    name: &'static str,
    /// What it reads.
    source: &'static str,
    run: fn(&HostFacts, &mut Findings<'_>),
}

/// Where a check puts what it finds.
struct Findings<'d> {
    check: &'d Check,
    diagnosis: &'d mut Diagnosis,
}

impl Findings<'_> {
    fn add(&mut self, severity: Severity, what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) {
        self.diagnosis.findings.push(Finding {
            check: self.check.name.to_owned(),
            severity,
            what: what.into(),
            why: why.into(),
            remedy: remedy.into(),
            source: self.check.source.to_owned(),
        });
    }

    /// The fact, if it is known and this host has such a thing. What could not be read is said, once for each check.
    fn known<'f, T>(&mut self, fact: &'f Fact<T>) -> Option<&'f T> {
        match fact {
            Ok(value) => value.as_ref(),
            Err(Unread { source, reason }) => {
                let unchecked =
                    Unchecked { check: self.check.name.to_owned(), source: source.clone(), reason: reason.clone() };
                if !self.diagnosis.unchecked.contains(&unchecked) {
                    self.diagnosis.unchecked.push(unchecked);
                }
                None
            }
        }
    }
}
