//! `sherd-bench plan`: how long `sherd plan` takes for machines that are made up, of 1 to 4,096 cores; asks the program alone.
//!
//! What planning takes is told by pairs: the same command with groups and without any. Both make up the machine and
//! print; CPU time is compared, because a process that waits for a CPU doesn't plan.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use nix::sys::resource::{UsageWho, getrusage};
use serde_json::Value;

use super::{ComparisonError, told::Told};
use crate::{
    contestant::{Facts, StartError},
    interrupt::Interrupt,
    report::{Findings, Origin, Progress, Series},
    stats::{Random, median},
};

/// Cores, and the machine in hwloc's words: two hardware threads for each core, eight cores for each L3.
const MACHINES: [(u32, &str); 7] = [
    (1, "package:1 [numa] l3:1 core:1 pu:2"),
    (4, "package:1 [numa] l3:1 core:4 pu:2"),
    (16, "package:1 [numa] l3:2 core:8 pu:2"),
    (64, "package:2 [numa] l3:4 core:8 pu:2"),
    (256, "package:4 [numa] l3:8 core:8 pu:2"),
    (1024, "package:8 [numa] l3:16 core:8 pu:2"),
    (4096, "package:16 [numa] l3:32 core:8 pu:2"),
];
const MOST_GROUPS: u32 = 64;
/// A group has no more.
const MOST_SLOTS: u32 = 1024;
/// Growth is told between these.
const SMALL: u32 = 64;
const LARGE: u32 = 4096;

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `sherd` program, where there is one.
    pub sherd: Option<PathBuf>,
    /// How often each machine is planned for.
    pub times: usize,
    /// Of orders.
    pub seed: u64,
    /// What the report says of where it comes from.
    pub origin: Origin,
}

/// A machine, groups for it, and what was found.
struct Case {
    cores: u32,
    /// Of each group.
    slots: u32,
    machine: &'static str,
    specifications: Vec<PathBuf>,
    /// Milliseconds of CPU time that groups add.
    planning: Vec<f64>,
    /// Milliseconds from the command's start to its end.
    whole: Vec<f64>,
}

/// What one command took.
struct Took {
    cpu: Duration,
    elapsed: Duration,
}

/// Runs it and reports.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Findings, ComparisonError> {
    let started = SystemTime::now();
    let program = options.sherd.as_deref().ok_or_else(missing)?;
    let mut cases = Vec::new();
    for (cores, machine) in MACHINES {
        for groups in [1, cores.min(MOST_GROUPS)].into_iter().take(if cores == 1 { 1 } else { 2 }) {
            let slots = (cores / groups).min(MOST_SLOTS);
            let specifications = specify(scratch, cores, groups, slots).map_err(ComparisonError::Host)?;
            cases.push(Case { cores, slots, machine, specifications, planning: Vec::new(), whole: Vec::new() });
        }
    }
    progress.say("whether each plan has its slots");
    cases.iter().try_for_each(|case| case.verify(program))?;
    let mut random = Random::new(options.seed);
    progress.restart();
    for time in 0..options.times {
        progress.step(time, options.times, "planning");
        random.shuffle(&mut cases);
        for case in &mut cases {
            if interrupt.is_raised() {
                return Err(ComparisonError::Interrupted);
            }
            case.time(program)?;
        }
    }
    progress.clear();
    cases.sort_by_key(|case| (case.specifications.len() > 1, case.cores));
    conclude(&cases, program).report("plan", &options.origin, started)
}

fn conclude(cases: &[Case], program: &Path) -> Told {
    let mut told = Told::default();
    told.contestants.push(Facts {
        name: "sherd".into(),
        version: version(program),
        program: Some(program.to_owned()),
        configuration: "plan SPEC... --synthetic MACHINE --reserved-cpus none --json".into(),
    });
    for case in cases {
        let groups = case.specifications.len();
        let of = |what: &str| format!("{} cores, {groups} × {} slots: {what}", case.cores, case.slots);
        told.series.push(Series::new(of("CPU ms for planning"), case.planning.clone()));
        told.series.push(Series::new(of("ms, whole command"), case.whole.clone()));
    }
    for many in [false, true] {
        let of = |cores: u32| {
            let case = cases.iter().find(|case| case.cores == cores && (case.specifications.len() > 1) == many)?;
            // Nothing that is larger than what machines cost by themselves has no growth to tell.
            Some((case.specifications.len(), median(&case.planning).filter(|millis| *millis > 0.0)?))
        };
        if let (Some((_, small)), Some((groups, large))) = (of(SMALL), of(LARGE)) {
            let exponent = (large / small).ln() / f64::from(LARGE / SMALL).ln();
            told.remarks.push(format!(
                "{groups} groups: {LARGE} cores take {:.1} times as long as {SMALL}, which are {} times fewer: cores to the \
                 power of {exponent:.2}",
                large / small,
                LARGE / SMALL,
            ));
        }
    }
    told
}

impl Case {
    /// Once with groups and once without.
    fn time(&mut self, program: &Path) -> Result<(), ComparisonError> {
        let with = timed(program, self.machine, &self.specifications)?;
        let without = timed(program, self.machine, &[])?;
        self.planning.push((with.cpu.as_secs_f64() - without.cpu.as_secs_f64()) * 1e3);
        self.whole.push(with.elapsed.as_secs_f64() * 1e3);
        Ok(())
    }

    /// What isn't right isn't timed.
    fn verify(&self, program: &Path) -> Result<(), ComparisonError> {
        let output = command(program, self.machine, &self.specifications).output().map_err(ComparisonError::Host)?;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let layouts = report["plan"]["layouts"].as_array().map_or(&[][..], Vec::as_slice);
        let slots: usize = layouts.iter().filter_map(|layout| Some(layout["slots"].as_array()?.len())).sum();
        if output.status.success() && slots == self.slots as usize * self.specifications.len() {
            return Ok(());
        }
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let what = format!("the plan for {} cores has {slots} slots: {error}", self.cores);
        Err(ComparisonError::Host(io::Error::other(what)))
    }
}

fn command(program: &Path, machine: &str, specifications: &[PathBuf]) -> Command {
    let mut command = Command::new(program);
    command.arg("plan").args(specifications);
    command.args(["--synthetic", machine, "--reserved-cpus", "none", "--json"]).stdin(Stdio::null());
    command
}

fn timed(program: &Path, machine: &str, specifications: &[PathBuf]) -> Result<Took, ComparisonError> {
    let timed = || -> io::Result<Took> {
        let (began, before) = (Instant::now(), cpu_of_children()?);
        let status = command(program, machine, specifications).stdout(Stdio::null()).status()?;
        let took = Took { cpu: cpu_of_children()? - before, elapsed: began.elapsed() };
        if status.success() { Ok(took) } else { Err(io::Error::other(format!("sherd plan ended with {status}"))) }
    };
    timed().map_err(ComparisonError::Host)
}

/// CPU time of all children that have ended, which come one by one.
fn cpu_of_children() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64;
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

/// Groups of so many slots each.
fn specify(scratch: &Path, cores: u32, groups: u32, slots: u32) -> io::Result<Vec<PathBuf>> {
    let specify = |group: u32| {
        let path = scratch.join(format!("plan-{cores}-{groups}-{group}.toml"));
        let text = format!(
            "name = \"group-{group:02}\"\n[layout]\nunit = \"core\"\nshards = {slots}\n[process]\ncommand = [\"/bin/true\"]\n"
        );
        fs::write(&path, text).map(|()| path)
    };
    (0..groups).map(specify).collect()
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.split_whitespace().nth(1).unwrap_or("unknown").to_owned()
}

fn missing() -> StartError {
    StartError::Missing {
        name: "sherd",
        reason: "there is no `sherd` beside sherd-bench and none was given".into(),
        install: "cargo build --release -p sherd".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_have_the_cores_they_are_named_after() {
        for (cores, machine) in MACHINES {
            let counts = machine.split(' ').filter_map(|word| word.split_once(':'));
            let counted: u32 = counts
                .filter(|(level, _)| *level != "pu")
                .map(|(_, count)| count.parse::<u32>().expect("a number"))
                .product();
            assert_eq!(counted, cores, "{machine}");
            assert_eq!(cores % cores.min(MOST_GROUPS), 0, "groups share equally");
        }
    }
}
