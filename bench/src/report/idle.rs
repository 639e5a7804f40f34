//! What `memory` leaves: every measured size, what an idle connection costs by it, and a table to read; owns its form and
//! concludes nothing itself.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Document, Findings, Missing, Page, stored, table::number};
use crate::stats::Slope;

/// All of a run.
#[derive(Debug, Clone, Serialize)]
pub struct IdleReport {
    /// Where it comes from, and each round's slopes.
    #[serde(flatten)]
    pub findings: Findings,
    /// Who did not take part.
    pub missing: Vec<Missing>,
    /// What a connection costs, over all rounds.
    pub slopes: Vec<IdleSlope>,
    /// Every measurement.
    pub points: Vec<IdlePoint>,
}

/// Memory with so many idle connections, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdlePoint {
    /// Whose.
    pub contestant: String,
    /// Each round has a contestant that was started for it.
    pub round: usize,
    /// How many.
    pub connections: usize,
    /// The balancer's proportional set size; none where there is no balancer.
    pub balancer_bytes: Option<u64>,
    /// That of the shards.
    pub shard_bytes: u64,
    /// The kernel's slab memory, whole host: the client's sockets and the shards' are in it as well.
    pub kernel_bytes: u64,
}

/// Who takes memory for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhoseMemory {
    /// What stands before the shards.
    Balancer,
    /// Those who answer.
    Shards,
    /// From client to shard.
    Kernel,
}

/// Bytes for each idle connection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IdleSlope {
    /// Whose run.
    pub contestant: String,
    /// Of whom.
    pub whose: WhoseMemory,
    /// In bytes per connection.
    #[serde(flatten)]
    pub slope: Slope,
}

impl WhoseMemory {
    /// In the order of tables.
    pub const ALL: [Self; 3] = [Self::Balancer, Self::Shards, Self::Kernel];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::Shards => "shards",
            Self::Kernel => "kernel, whole path",
        }
    }
}

impl IdlePoint {
    /// None where there is nobody.
    pub fn bytes_of(&self, whose: WhoseMemory) -> Option<u64> {
        match whose {
            WhoseMemory::Balancer => self.balancer_bytes,
            WhoseMemory::Shards => Some(self.shard_bytes),
            WhoseMemory::Kernel => Some(self.kernel_bytes),
        }
    }
}

impl IdleReport {
    fn table(&self) -> String {
        const NAME: usize = 20;
        const CELL: usize = 26;
        let mut text = format!("{:<NAME$}{:>12}", "bytes/idle connection", "up to");
        for whose in WhoseMemory::ALL {
            write!(text, "{:>CELL$}", whose.name()).expect("text grows");
        }
        for facts in &self.findings.contestants {
            let of_it = self.points.iter().filter(|point| point.contestant == facts.name);
            let most = of_it.map(|point| point.connections).max().unwrap_or(0);
            write!(text, "\n{:<NAME$}{most:>13}", facts.name).expect("text grows");
            for whose in WhoseMemory::ALL {
                let found = self.slopes.iter().find(|slope| slope.contestant == facts.name && slope.whose == whose);
                write!(text, "{:>CELL$}", found.map_or_else(|| "–".into(), |found| interval(found.slope)))
                    .expect("text grows");
            }
        }
        text.push('\n');
        text
    }
}

impl Document for IdleReport {
    // Who reads it back has its findings.
    const KIND: &'static str = stored::TRIAL;

    fn text(&self) -> String {
        format!("{}\n{}", self.findings.text(), self.table())
    }

    fn page(&self) -> Page {
        self.findings.page()
    }
}

fn interval(slope: Slope) -> String {
    format!("{} ({}–{})", number(slope.value), number(slope.low), number(slope.high))
}
