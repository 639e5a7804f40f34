//! `sherd-bench sharding`: does sharding and pinning help this program? One program in several layouts, side by side; owns the
//! order of things and leaves nothing running.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use self::field::Field;
use super::{ComparisonError, Lineup, Run, Scenario};
use crate::{
    analysis::Evidence,
    contestant::Program,
    interrupt::Interrupt,
    load::{self, Load, LoadError, Shape},
    measure::raise_open_files,
    report::{Origin, Progress, Report, Settings},
    sample::{LoadKind, Measure},
};

mod field;

const LOADS: &[LoadKind] = &[LoadKind::KeepAlive, LoadKind::Open];
const MEASURES: &[Measure] =
    &[Measure::RequestsPerSecond, Measure::WholeCpuPerRequest, Measure::LatencyP50, Measure::LatencyP99];

/// Connections that a layout must be able to hold besides those of the load.
const SLACK_CONNECTIONS: usize = 500;

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the report repeats.
    pub settings: Settings,
    /// How long each layout of a program that gets faster while it runs is put under load before it is measured.
    pub warm_up: Duration,
    /// The engine's socket.
    pub docker: PathBuf,
    /// Where installed peers are: one of the programs is nginx.
    pub peers: PathBuf,
    /// The `sherd` program, where there is one.
    pub sherd: Option<PathBuf>,
    /// What the report says of where it comes from.
    pub origin: Origin,
}

/// The scenario's name in reports: of each program one.
pub const fn scenario_name(program: Program) -> &'static str {
    match program {
        Program::GoAllocates => "sharding-go-allocates",
        Program::GoComputes => "sharding-go-computes",
        Program::Nginx => "sharding-nginx",
        Program::Jvm => "sharding-jvm",
    }
}

/// Runs it for one program and reports. All that it started has ended when it returns; its image is the keeper's to remove.
pub fn run(
    options: &Options,
    program: Program,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Report, ComparisonError> {
    let started = SystemTime::now();
    let settings = options.settings.clone();
    let files = 2 * (settings.connections + SLACK_CONNECTIONS);
    raise_open_files(files as u64).map_err(|errno| ComparisonError::Host(errno.into()))?;
    let field = Field::start(options, program, scratch, progress, interrupt)?;
    field.verify(settings.answer_bytes)?;
    if program.warms_up() {
        progress.say("warming up");
        warm_up(&field, &settings, options.warm_up, interrupt)?;
    }
    let mut remarks = vec![format!("the program is {}: {}", program.name(), program.description())];
    remarks.extend(field.remarks.iter().cloned());
    let control = field.control();
    let lineup = Lineup {
        contestants: &field.contestants,
        entries: field.entries(),
        subject: field.subject(),
        control: (field.subject(), &control),
        missing: Vec::new(),
    };
    let run = Run { origin: &options.origin, started, settings, remarks, interrupt, progress };
    let scenario = Scenario { name: scenario_name(program), loads: LOADS, measures: MEASURES };
    scenario.run(lineup, Evidence::default(), &[], run)
}

fn warm_up(
    field: &Field,
    settings: &Settings,
    duration: Duration,
    interrupt: &Interrupt,
) -> Result<(), ComparisonError> {
    for contestant in &field.contestants {
        let load = Load {
            targets: contestant.addresses().to_vec(),
            connections: settings.connections,
            answer_bytes: settings.answer_bytes,
            shape: Shape::KeepAlive,
            cpus: settings.load_cpus.clone(),
            warm_up: Duration::ZERO,
            duration,
        };
        load::run(&load, interrupt, || ()).map_err(|source| match source {
            LoadError::Interrupted => ComparisonError::Interrupted,
            source => ComparisonError::Load { contestant: contestant.facts().name.clone(), source },
        })?;
    }
    Ok(())
}
