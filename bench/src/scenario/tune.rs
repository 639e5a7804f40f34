//! `sherd-bench tune`: which layout is best for a program of somebody's on this machine, under a load of theirs; owns the order
//! of things and leaves nothing running but the specification that was asked for.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use self::{answer::Answer, field::Field, trials::Trials};
pub use self::{
    command::{ADDRESS_VARIABLE, CommandError},
    draft::{Choice, Draft, DraftError},
};
use super::ComparisonError;
use crate::{
    analysis::{Analysis, Evidence, Median, Noise, Ratio, elimination},
    contestant::StartError,
    interrupt::Interrupt,
    load::{Request, Shape},
    measure::{HostFacts, raise_open_files},
    report::{Header, Origin, Progress, Report, Settings, Tuning, utc},
    sample::{LoadKind, Measure, Sample},
    stats::{Estimate, median},
};

mod answer;
mod command;
mod draft;
mod field;
mod trials;

/// The scenario's name in reports.
const NAME: &str = "tune";
const OPEN_FILES: u64 = 20_000;

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is tuned.
    pub draft: Draft,
    /// Units to try besides its own.
    pub units: Vec<String>,
    /// Uses of hardware threads to try besides its own.
    pub smts: Vec<String>,
    /// Policies to try besides its own.
    pub policies: Vec<String>,
    /// The load.
    pub load: Burden,
    /// How long the run may take, all of it.
    pub budget: Duration,
    /// A difference that nobody cares about, as a ratio above 1.
    pub margin: f64,
    /// How long each layout is put under load before it is measured.
    pub warm_up: Duration,
    /// Whether `cpus` of the settings is for a specification that names its own, too.
    pub cpus_are_given: bool,
    /// What the report repeats.
    pub settings: Settings,
    /// The engine's socket.
    pub docker: PathBuf,
    /// The `sherd` program, where there is one.
    pub sherd: Option<PathBuf>,
    /// Where the specification goes; nowhere, if no file is named.
    pub write: Option<PathBuf>,
    /// What the report says of where it comes from.
    pub origin: Origin,
}

/// What a program is put under.
#[derive(Debug, Clone, PartialEq)]
pub enum Burden {
    /// Requests of the load generator.
    Requests {
        /// What is asked.
        request: Request,
        /// When, and on which connections.
        shape: Shape,
    },
    /// A command that tells a number.
    Command {
        /// For a shell.
        command: String,
        /// Whether less is better.
        lower_is_better: bool,
    },
}

/// A run ended without an answer.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// As any comparison may.
    #[error(transparent)]
    Comparison(#[from] ComparisonError),
    /// The command.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A layout is up and doesn't answer as the load needs it.
    #[error("{layout} answered nothing; of {failed} requests the first failed with: {cause}; is --path right?")]
    Silent {
        /// Which.
        layout: String,
        /// How many failed.
        failed: u64,
        /// The first cause.
        cause: String,
    },
    /// The specification could not be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl From<StartError> for TuneError {
    fn from(error: StartError) -> Self {
        Self::Comparison(error.into())
    }
}

impl Burden {
    /// What is judged under it.
    pub(crate) fn measure(&self) -> Measure {
        match self {
            Self::Requests { shape: Shape::KeepAlive, .. } => Measure::RequestsPerSecond,
            Self::Requests { shape: Shape::ConnectionPerRequest, .. } => Measure::ConnectionsPerSecond,
            Self::Requests { shape: Shape::Open { .. }, .. } => Measure::LatencyP99,
            Self::Requests { shape: Shape::Echo, .. } => Measure::EchoesPerSecond,
            Self::Requests { shape: Shape::Streams, .. } => Measure::StreamGigabytesPerSecond,
            Self::Command { .. } => Measure::Score,
        }
    }

    fn kind(&self) -> LoadKind {
        self.measure().load()
    }

    fn lower_is_better(&self) -> bool {
        match self {
            Self::Requests { shape, .. } => matches!(shape, Shape::Open { .. }),
            Self::Command { lower_is_better, .. } => *lower_is_better,
        }
    }

    /// In words.
    fn description(&self, settings: &Settings) -> String {
        let (request, how) = match self {
            Self::Command { command, .. } => return format!("the load is `{command}`"),
            Self::Requests { request, shape: Shape::KeepAlive } => (request, "kept connections".to_owned()),
            Self::Requests { request, shape: Shape::ConnectionPerRequest } => (request, "a connection for each".into()),
            Self::Requests { shape: Shape::Echo | Shape::Streams, .. } => return "the load is echoed bytes".to_owned(),
            Self::Requests { request, shape: Shape::Open { requests_per_second, .. } } => {
                (request, format!("{requests_per_second:.0} of them per second, kept connections"))
            }
        };
        format!(
            "the load is GET {} ({how}), {} connections at a time from {} addresses, {} s each time",
            request.path, settings.connections, request.clients, settings.duration_seconds
        )
    }

    /// All that is told under it, what is judged first.
    fn measures(&self) -> Vec<Measure> {
        match self.kind() {
            LoadKind::KeepAlive => vec![self.measure(), Measure::WholeCpuPerRequest],
            LoadKind::Connections => vec![self.measure(), Measure::WholeCpuPerConnection],
            LoadKind::Open => vec![self.measure(), Measure::LatencyP50],
            LoadKind::Bulk | LoadKind::Echo | LoadKind::Streams | LoadKind::Command => vec![self.measure()],
        }
    }
}

/// Runs it and answers. All that it started has ended when it returns.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Tuning, TuneError> {
    let (started, clock) = (SystemTime::now(), Instant::now());
    raise_open_files(OPEN_FILES).map_err(|errno| ComparisonError::Host(errno.into()))?;
    let mut field = Field::start(options, scratch, progress, interrupt)?;
    let mut trials = Trials::new(options, &field, scratch, interrupt);
    trials.warm_up(&mut field, progress)?;
    trials.run(&mut field, clock, progress)?;
    field.check()?;
    let host = HostFacts::read().map_err(ComparisonError::Host)?;
    let noise = Noise::of(&trials.samples, host.online);
    let names = field.names();
    let answer = answer::conclude(&trials.race, &names, options.load.measure(), trials.complaint(&noise));
    let mut remarks = vec![options.load.description(&options.settings)];
    remarks.append(&mut field.remarks);
    remarks.append(&mut trials.remarks);
    if let Some(path) = &options.write {
        let text = options.draft.written(field.choice(answer.chosen));
        write(path, &text)?;
        remarks.push(format!("{} is the specification of {}", path.display(), names[answer.chosen]));
    }
    let settings = Settings { pairs: trials.race.rounds(), ..options.settings.clone() };
    let header = Header {
        origin: options.origin.clone(),
        started: utc(started),
        took_seconds: clock.elapsed().as_secs_f64(),
        host,
        settings,
        contestants: field.facts(&options.draft),
        missing: field.missing.clone(),
        remarks,
    };
    let analysis = analysis(options, &trials, &names, answer, noise);
    Ok(Tuning(Report {
        scenario: NAME.into(),
        header,
        analysis,
        evidence: Evidence::default(),
        samples: trials.samples,
    }))
}

fn analysis(options: &Options, trials: &Trials<'_>, names: &[String], answer: Answer, noise: Noise) -> Analysis {
    let (judged, chosen) = (options.load.measure(), answer.chosen);
    // Advantages are of what is better, ratios of what was measured.
    let ratio = |of: &str, to: &str, advantage: elimination::Advantage| {
        let raw = if options.load.lower_is_better() { advantage.inverse() } else { advantage };
        let estimate = Estimate { ratio: raw.ratio, low: raw.low, high: raw.high, pairs: raw.rounds };
        Ratio { measure: judged, of: of.to_owned(), to: to.to_owned(), estimate }
    };
    let others = (0..names.len()).filter(|one| *one != chosen);
    let ratios = others
        .filter_map(|one| Some(ratio(&names[chosen], &names[one], answer::advantage(&trials.race, chosen, one)?)))
        .collect();
    let control = trials.control().map(|found| ratio(&names[0], &trials.control_name, found));
    let median_of = |measure: Measure, contestant: &String| {
        let of_it = trials.samples.iter().filter(|sample| sample.contestant == *contestant);
        let values: Vec<f64> = of_it.filter_map(|sample: &Sample| measure.of(sample)).collect();
        Some(Median { measure, contestant: contestant.clone(), value: median(&values)? })
    };
    let measures = options.load.measures();
    let medians =
        measures.iter().flat_map(|measure| names.iter().filter_map(|name| median_of(*measure, name))).collect();
    let control = control.into_iter().collect();
    Analysis { measures, medians, ratios, control, sought: Vec::new(), noise, verdicts: vec![answer.verdict] }
}

/// Whole or not at all, and nothing that is there is lost.
fn write(path: &Path, text: &str) -> Result<(), TuneError> {
    let partial = path.with_extension("partial");
    let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, path));
    written.map_err(|source| TuneError::Write { path: path.to_owned(), source })
}
