//! `sherd-bench verify`: whether the harness measures right on this machine; owns the order of things and leaves nothing
//! running.
//!
//! What is known beforehand is measured: latencies that a server plants, a difference that a shard plants, a difference
//! that isn't there, and a server's maximum, against other load generators.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::SystemTime,
};

use super::{ComparisonError, told::Told};
use crate::{
    contestant::Generator,
    interrupt::Interrupt,
    load::LoadError,
    measure::raise_open_files,
    report::{Findings, Origin, Progress, Settings},
};

mod differences;
mod latencies;
mod maxima;
mod misses;

const OPEN_FILES: u64 = 20_000;

/// A part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Planted latencies.
    Latencies,
    /// Other load generators.
    Maxima,
    /// Planted differences.
    Differences,
}

/// A word is no part's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no part {word:?}: choose from latencies, maxima, differences")]
pub struct PartError {
    word: String,
}

impl FromStr for Part {
    type Err = PartError;

    fn from_str(word: &str) -> Result<Self, PartError> {
        match word {
            "latencies" => Ok(Self::Latencies),
            "maxima" => Ok(Self::Maxima),
            "differences" => Ok(Self::Differences),
            _ => Err(PartError { word: word.to_owned() }),
        }
    }
}

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is verified.
    pub parts: Vec<Part>,
    /// How differences are looked for.
    pub settings: Settings,
    /// How often.
    pub runs: usize,
    /// The difference that is planted, as a share of a request's CPU time.
    pub slowdown: f64,
    /// How often latencies are planted.
    pub latency_rounds: usize,
    /// How long each time.
    pub latency_seconds: u64,
    /// Pairs of our generator and another.
    pub generator_pairs: usize,
    /// How long each of both runs.
    pub generator_seconds: u64,
    /// The others, and where they are if not on the PATH.
    pub generators: Vec<(Generator, Option<PathBuf>)>,
    /// What the report says of where it comes from.
    pub origin: Origin,
}

/// What every part is run with.
#[derive(Clone, Copy)]
struct Bench<'a> {
    options: &'a Options,
    scratch: &'a Path,
    interrupt: &'a Interrupt,
}

type Check = fn(Bench<'_>, &mut Progress, &mut Told) -> Result<(), ComparisonError>;

const PARTS: [(Part, Check); 3] =
    [(Part::Latencies, latencies::check), (Part::Maxima, maxima::check), (Part::Differences, differences::check)];

/// Runs it and reports.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Findings, ComparisonError> {
    let started = SystemTime::now();
    raise_open_files(OPEN_FILES).map_err(|errno| ComparisonError::Host(errno.into()))?;
    let bench = Bench { options, scratch, interrupt };
    let mut told = Told::default();
    for (part, check) in PARTS {
        if options.parts.contains(&part) {
            check(bench, progress, &mut told)?;
        }
    }
    told.report("verify", &options.origin, started)
}

fn load_error(contestant: &str) -> impl Fn(LoadError) -> ComparisonError + '_ {
    move |source| match source {
        LoadError::Interrupted => ComparisonError::Interrupted,
        source => ComparisonError::Load { contestant: contestant.to_owned(), source },
    }
}
