//! Faults of a file an operator wrote: where, what, and what would be right; knows nothing of what the file describes.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One fault of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct SpecFault {
    /// The file, as the caller named it; empty for flags, which have no lines.
    pub file: String,
    /// Line, from 1; 0 for flags.
    pub line: usize,
    /// Dotted path of the key, for example `ports[1].publish`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for SpecFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:{}: ", self.file, self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Every fault of a file, in the order of its lines; never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpecFaults {
    /// The faults.
    pub faults: Vec<SpecFault>,
}

impl fmt::Display for SpecFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecFaults {}
