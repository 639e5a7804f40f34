//! The contestants of a run, each with containers of its own; owns them, and ends them when dropped.

use std::path::Path;

use nix::unistd::Pid;

use super::{
    super::{ComparisonError, rounds::Entry},
    Entrant, Options, SLACK_CONNECTIONS,
};
use crate::{
    contestant::{
        Bare, Containers, Contestant, Engine, Fronted, Ground, Group, GroupLaunch, GroupPath, Image, Network, Site,
        StartError,
        haproxy::{self, Variant},
    },
    interrupt::Interrupt,
    load::fetch,
    report::{Missing, Progress},
};

pub(super) struct Field {
    pub(super) contestants: Vec<Box<dyn Contestant>>,
    /// Each contestant's, in the same order.
    pub(super) shards: Vec<Vec<Pid>>,
    pub(super) missing: Vec<Missing>,
}

/// Two whose ratio is known to be 1.
pub(super) struct Control {
    pub(super) of: String,
    pub(super) to: String,
}

/// What contestants are started with.
struct Start<'a> {
    options: &'a Options,
    scratch: &'a Path,
    ground: Ground<'a>,
    engine_version: &'a str,
}

type Started = (Box<dyn Contestant>, Vec<Pid>);

impl Field {
    /// Starts those that were chosen. That one of sherd's or the engine fails is an error; that a peer does is told in the
    /// report.
    pub(super) fn start(
        options: &Options,
        scratch: &Path,
        progress: &mut Progress,
        interrupt: &Interrupt,
    ) -> Result<Self, ComparisonError> {
        progress.say("making the image");
        let (engine, engine_version) = Engine::open(&options.docker, scratch)?;
        let image = Image::make(&engine, options.server, scratch)?;
        let ground = Ground { engine: &engine, image: &image, cpus: &options.settings.cpus };
        let start = Start { options, scratch, ground, engine_version: &engine_version };
        let mut field = Self { contestants: Vec::new(), shards: Vec::new(), missing: Vec::new() };
        for entrant in &options.contestants {
            if interrupt.is_raised() {
                return Err(ComparisonError::Interrupted);
            }
            progress.say(&format!("starting {}", entrant.name()));
            match start.one(*entrant) {
                Ok((contestant, shards)) => {
                    field.contestants.push(contestant);
                    field.shards.push(shards);
                }
                Err(error @ StartError::Missing { .. }) => field.missing.push(Missing::of(entrant.name(), &error)),
                Err(error) => return Err(error.into()),
            }
        }
        if field.contestants.is_empty() {
            return Err(ComparisonError::Nobody { missing: field.missing });
        }
        Ok(field)
    }

    /// Has each answer once, byte by byte: nothing that doesn't work is measured.
    pub(super) fn verify(&self, answer_bytes: usize) -> Result<(), ComparisonError> {
        for contestant in &self.contestants {
            let name = || contestant.facts().name.clone();
            for address in contestant.addresses() {
                for bytes in [answer_bytes, 0] {
                    fetch(*address, bytes).map_err(|source| ComparisonError::Wrong { contestant: name(), source })?;
                }
            }
        }
        Ok(())
    }

    /// Whose ratios are told: the first that takes part.
    pub(super) fn subject(&self) -> &str {
        &self.contestants[0].facts().name
    }

    /// Bare containers against others of their kind; without both, the subject against itself.
    pub(super) fn control(&self) -> Control {
        let (bare, again) = (Entrant::Bare.name(), Entrant::BareAgain.name());
        if self.takes_part(bare) && self.takes_part(again) {
            return Control { of: bare.into(), to: again.into() };
        }
        Control { of: self.subject().into(), to: format!("{} again", self.subject()) }
    }

    /// All contestants, and the control's second name where it is none of them.
    pub(super) fn entries(&self) -> Vec<Entry<'_>> {
        let entry = |name: String, index: usize| Entry {
            name,
            contestant: self.contestants[index].as_ref(),
            shards: &self.shards[index],
        };
        let mut entries: Vec<Entry<'_>> =
            self.contestants.iter().enumerate().map(|(index, one)| entry(one.facts().name.clone(), index)).collect();
        let second = self.control().to;
        if !self.takes_part(&second) {
            entries.push(entry(second, 0));
        }
        entries
    }

    fn takes_part(&self, name: &str) -> bool {
        self.contestants.iter().any(|contestant| contestant.facts().name == name)
    }
}

impl Start<'_> {
    fn one(&self, entrant: Entrant) -> Result<Started, StartError> {
        match entrant {
            Entrant::SherdDirect => self.group(GroupPath::Direct),
            Entrant::SherdRelay => self.group(GroupPath::Relay),
            Entrant::Bare | Entrant::BareAgain => {
                let bare = Bare::start(entrant.name(), self.ground, self.engine_version)?;
                let shards = bare.shards().to_vec();
                Ok((Box::new(bare), shards))
            }
            Entrant::Haproxy => self.haproxy(entrant.name(), Network::Bridge),
            Entrant::HaproxyHost => self.haproxy(entrant.name(), Network::Host),
        }
    }

    fn group(&self, path: GroupPath) -> Result<Started, StartError> {
        let group = Group::start(GroupLaunch {
            path,
            program: self.options.sherd.as_deref(),
            scratch: self.scratch,
            ground: self.ground,
            connections: self.connections(),
            trial: None,
        })?;
        let shards = group.shards().to_vec();
        Ok((Box::new(group), shards))
    }

    fn haproxy(&self, name: &'static str, network: Network) -> Result<Started, StartError> {
        let containers = Containers::behind_a_balancer(name, self.ground, network)?;
        let site = Site {
            scratch: self.scratch,
            cpus: self.ground.cpus,
            shards: containers.addresses(),
            connections: self.connections(),
            peers: &self.options.peers,
        };
        let balancer = haproxy::start_as(name, Variant::Auto, &site, self.options.haproxy.as_deref())?;
        let shards = containers.processes().to_vec();
        Ok((Box::new(Fronted::new(balancer, containers)), shards))
    }

    fn connections(&self) -> usize {
        self.options.settings.connections + SLACK_CONNECTIONS
    }
}
