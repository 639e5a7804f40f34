//! The layouts of one program, all of them up; owns them, and ends them when dropped.

use std::{io, net::SocketAddr, path::Path};

use nix::unistd::Pid;

use super::{
    super::{ComparisonError, rounds::Entry, trial::Stopped},
    Options, SLACK_CONNECTIONS,
};
use crate::{
    contestant::{
        Contestant, Engine, GROUP, GroupPath, Placed, Placement, Program, Slots, StartError, Unsharded, free_address,
    },
    interrupt::Interrupt,
    load::fetch,
    measure::cpus,
    report::Progress,
};

/// Units of sherd's, the default first: of those that have the same slots the first one takes part.
const UNITS: [&str; 4] = ["core", "pu", "l3", "numa"];
const UNSHARDED: &str = "unsharded";
const UNPINNED: &str = "unpinned";
/// Where programs listen in a network of their own.
const PORT: u16 = 80;

pub(super) struct Field {
    /// The agent that would pin again what is to be unpinned. Goes on before it is ended.
    _stopped: Option<Stopped>,
    pub(super) contestants: Vec<Box<dyn Contestant>>,
    /// Each contestant's, in the same order.
    shards: Vec<Vec<Pid>>,
    pub(super) remarks: Vec<String>,
}

/// What all layouts are started with.
struct Start<'a> {
    options: &'a Options,
    program: Program,
    scratch: &'a Path,
    sherd: &'a Path,
    engine: &'a Engine,
    engine_version: &'a str,
    image: &'a str,
}

impl Field {
    pub(super) fn start(
        options: &Options,
        program: Program,
        scratch: &Path,
        progress: &mut Progress,
        interrupt: &Interrupt,
    ) -> Result<Self, ComparisonError> {
        let missing = || StartError::Missing {
            name: "sherd",
            reason: "there is no `sherd` beside sherd-bench and none was given".into(),
            install: "cargo build --release -p sherd".into(),
        };
        let sherd = options.sherd.as_deref().ok_or_else(missing)?;
        progress.say(&format!("making the image of {}", program.name()));
        let (engine, engine_version) = Engine::open(&options.docker, scratch)?;
        let directory = scratch.join(program.name());
        std::fs::create_dir(&directory).map_err(ComparisonError::Host)?;
        let answers = [0, 1, options.settings.answer_bytes];
        let image = program.make_image(&engine, scratch, &options.peers, &answers)?;
        let (engine, engine_version, image) = (&engine, &*engine_version, &*image);
        let start = Start { options, program, scratch: &directory, sherd, engine, engine_version, image };
        let mut field = Self { _stopped: None, contestants: Vec::new(), shards: Vec::new(), remarks: Vec::new() };
        for (unit, slots) in start.layouts(&mut field.remarks)? {
            field.next(unit, progress, interrupt)?;
            let placed = start.placed(unit, unit, &slots, Pinning::Pinned)?;
            field.admit(placed);
        }
        field.next(UNSHARDED, progress, interrupt)?;
        field.admit_unsharded(start.unsharded()?);
        field.next(UNPINNED, progress, interrupt)?;
        let slots = start.plan(UNITS[0])?;
        let placed = start.placed(UNPINNED, UNITS[0], &slots, Pinning::Unpinned)?;
        field._stopped = Some(Stopped::stop(placed.agent())?);
        placed.unpin(engine, &options.settings.cpus)?;
        field.admit(placed);
        Ok(field)
    }

    /// Has each answer once, byte by byte: nothing that doesn't work is measured.
    pub(super) fn verify(&self, answer_bytes: usize) -> Result<(), ComparisonError> {
        for contestant in &self.contestants {
            for bytes in [answer_bytes, 1, 0] {
                let wrong = |source| ComparisonError::Wrong { contestant: contestant.facts().name.clone(), source };
                fetch(contestant.addresses()[0], bytes).map_err(wrong)?;
            }
        }
        Ok(())
    }

    /// Whose ratios are told: sherd's default layout.
    pub(super) fn subject(&self) -> &str {
        &self.contestants[0].facts().name
    }

    /// The subject's second name.
    pub(super) fn control(&self) -> String {
        format!("{} again", self.subject())
    }

    /// All contestants, and the subject under its second name.
    pub(super) fn entries(&self) -> Vec<Entry<'_>> {
        let entry = |name: String, index: usize| Entry {
            name,
            contestant: self.contestants[index].as_ref(),
            shards: &self.shards[index],
        };
        let all = self.contestants.iter().enumerate().map(|(index, one)| entry(one.facts().name.clone(), index));
        all.chain([entry(self.control(), 0)]).collect()
    }

    fn next(&self, name: &str, progress: &mut Progress, interrupt: &Interrupt) -> Result<(), ComparisonError> {
        if interrupt.is_raised() {
            return Err(ComparisonError::Interrupted);
        }
        progress.say(&format!("starting {name}"));
        Ok(())
    }

    fn admit(&mut self, placed: Placed) {
        self.shards.push(placed.shards().to_vec());
        self.contestants.push(Box::new(placed));
    }

    fn admit_unsharded(&mut self, unsharded: Unsharded) {
        self.shards.push(unsharded.processes());
        self.contestants.push(Box::new(unsharded));
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Pinning {
    Pinned,
    /// It will be unpinned once it runs, and is told from the start of all CPUs, as a program finds them that nobody pins.
    Unpinned,
}

impl Start<'_> {
    /// Layouts that differ, each with its unit; remarks say what coincides.
    fn layouts(&self, remarks: &mut Vec<String>) -> Result<Vec<(&'static str, Slots)>, StartError> {
        let mut found: Vec<(&'static str, Slots)> = Vec::new();
        for unit in UNITS {
            let slots = self.plan(unit)?;
            match found.iter().find(|(_, known)| *known == slots) {
                Some((same, _)) => remarks.push(format!("{unit} is {same} here and was measured once: {slots}")),
                None => {
                    remarks.push(format!("{unit}: {slots}"));
                    found.push((unit, slots));
                }
            }
        }
        Ok(found)
    }

    fn plan(&self, unit: &str) -> Result<Slots, StartError> {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        Slots::plan(self.sherd, self.scratch, &self.specification(unit, 1, nowhere, Pinning::Pinned))
    }

    fn placed(&self, name: &str, unit: &str, slots: &Slots, pinning: Pinning) -> Result<Placed, StartError> {
        let address = free_address().map_err(failed(name, "be given a port"))?;
        Placed::start(Placement {
            name,
            program: Some(self.sherd),
            scratch: self.scratch,
            instance: &format!("{}-{}-{name}", self.engine.run_name(), self.program.name()),
            docker: Some(self.engine.socket()),
            specification: &self.specification(unit, slots.widest(), address, pinning),
            address,
            slots: slots.count(),
            path: Some(GroupPath::Direct),
        })
    }

    fn unsharded(&self) -> Result<Unsharded, StartError> {
        let cpus = &self.options.settings.cpus;
        let address = free_address().map_err(failed(UNSHARDED, "be given a port"))?;
        let command = self.program.command(address, cpus.len());
        Unsharded::start(UNSHARDED, self.engine, self.engine_version, self.image, cpus, command, address)
    }

    fn specification(&self, unit: &str, width: usize, address: SocketAddr, pinning: Pinning) -> String {
        let listens = SocketAddr::from(([0, 0, 0, 0], PORT));
        // A TOML basic string is written as a JSON string is.
        let command = serde_json::to_string(&self.program.command(listens, width)).expect("texts are JSON");
        let settings = &self.options.settings;
        let of_all = self.program.environment_of_all(settings.cpus.len()).filter(|_| pinning == Pinning::Unpinned);
        let environment =
            of_all.map(|(name, value)| format!("\n[environment]\n{name} = \"{value}\"\n")).unwrap_or_default();
        format!(
            "name = \"{GROUP}\"\npath = \"direct\"\ndrain = \"1s\"\nstop_grace = \"2s\"\n\n\
             [layout]\nunit = \"{unit}\"\ncpus = \"{cpus}\"\n\n\
             [container]\nimage = \"{image}\"\ncommand = {command}\n\n\
             [[ports]]\npublish = \"{address}:{PORT}\"\n\n\
             [relay]\nmax_connections = {connections}\n{environment}",
            cpus = cpus::list(&settings.cpus),
            image = self.image,
            connections = settings.connections + SLACK_CONNECTIONS,
        )
    }
}

fn failed(name: &str, action: &str) -> impl FnOnce(io::Error) -> StartError {
    let (name, action) = (name.to_owned(), action.to_owned());
    move |source| StartError::Failed { name, action, source }
}
