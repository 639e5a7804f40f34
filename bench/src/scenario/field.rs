//! Contestants that each have containers of their own, all of one image; owns them, and ends them when dropped.

use std::path::{Path, PathBuf};

use nix::unistd::Pid;

pub use self::entrant::{Entrant, EntrantError};
use super::{ComparisonError, rounds::Entry};
use crate::{
    contestant::{
        Bare, Containers, Contestant, Engine, Fronted, Ground, Group, GroupLaunch, GroupPath, Image, Network, Peer,
        Server, Site, StartError, Whole, envoy,
        haproxy::{self, Variant},
        nginx,
    },
    interrupt::Interrupt,
    load::fetch,
    report::{Missing, Progress},
};

pub(super) mod calls;
pub(super) mod conditions;
mod entrant;

/// Who takes part, and what they are started with.
#[derive(Debug, Clone)]
pub struct FieldOptions {
    /// Who is to take part.
    pub contestants: Vec<Entrant>,
    /// Who answers.
    pub server: Server,
    /// One shard, and one thread of each balancer, on each of these.
    pub cpus: Vec<usize>,
    /// The engine's socket.
    pub docker: PathBuf,
    /// Where installed peers are.
    pub peers: PathBuf,
    /// The `sherd` program, where there is one.
    pub sherd: Option<PathBuf>,
    /// HAProxy, where another than the installed one is wanted.
    pub haproxy: Option<PathBuf>,
    /// nginx, where another than the installed one is wanted.
    pub nginx: Option<PathBuf>,
    /// Envoy, where another than the installed one is wanted.
    pub envoy: Option<PathBuf>,
}

pub(super) struct Field {
    pub(super) contestants: Vec<Box<dyn Contestant>>,
    /// Each contestant's, in the same order.
    pub(super) shards: Vec<Vec<Pid>>,
    /// Who they are, in the same order.
    pub(super) entrants: Vec<Entrant>,
    pub(super) missing: Vec<Missing>,
}

/// Two whose ratio is known to be 1.
pub(super) struct Control {
    pub(super) of: String,
    pub(super) to: String,
}

/// Engine and image: what is made once, and contestants are started with.
pub(super) struct Base<'a> {
    options: &'a FieldOptions,
    scratch: &'a Path,
    engine: Engine,
    engine_version: String,
    image: Image,
    /// What each contestant must be able to hold.
    connections: usize,
}

/// A contestant and the processes that answer behind it.
pub(super) type Started = (Box<dyn Contestant>, Vec<Pid>);

impl Field {
    /// Starts all that were chosen. That one of sherd's or the engine fails is an error; that a peer does is told in the
    /// report.
    pub(super) fn start(
        base: &Base<'_>,
        progress: &mut Progress,
        interrupt: &Interrupt,
    ) -> Result<Self, ComparisonError> {
        let mut field = Self { contestants: Vec::new(), shards: Vec::new(), entrants: Vec::new(), missing: Vec::new() };
        for &entrant in &base.options.contestants {
            if interrupt.is_raised() {
                return Err(ComparisonError::Interrupted);
            }
            progress.say(&format!("starting {}", entrant.name()));
            match base.start(entrant)? {
                Ok((contestant, shards)) => {
                    field.contestants.push(contestant);
                    field.shards.push(shards);
                    field.entrants.push(entrant);
                }
                Err(missing) => field.missing.push(missing),
            }
        }
        if field.contestants.is_empty() {
            return Err(ComparisonError::Nobody { missing: field.missing });
        }
        Ok(field)
    }

    /// Has each answer once, byte by byte: nothing that doesn't work is measured.
    pub(super) fn verify(&self, sizes: &[usize]) -> Result<(), ComparisonError> {
        for contestant in &self.contestants {
            let name = || contestant.facts().name.clone();
            for address in contestant.addresses() {
                for bytes in sizes {
                    fetch(*address, *bytes).map_err(|source| ComparisonError::Wrong { contestant: name(), source })?;
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
        let (bare, bare_2) = (Entrant::Bare.name(), Entrant::BareAgain.name());
        if self.takes_part(bare) && self.takes_part(bare_2) {
            return Control { of: bare.into(), to: bare_2.into() };
        }
        Control { of: self.subject().into(), to: again(self.subject()) }
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

    /// The same, and `name` under a second name, if it takes part.
    pub(super) fn entries_with_again(&self, name: &str) -> Vec<Entry<'_>> {
        let mut entries = self.entries();
        let second = again(name);
        if !entries.iter().any(|entry| entry.name == second)
            && let Some(entry) = entries.iter().find(|entry| entry.name == name)
        {
            let entry = Entry { name: second, ..entry.clone() };
            entries.push(entry);
        }
        entries
    }

    pub(super) fn takes_part(&self, name: &str) -> bool {
        self.contestants.iter().any(|contestant| contestant.facts().name == name)
    }
}

/// A contestant's second name.
pub(super) fn again(name: &str) -> String {
    format!("{name} again")
}

impl<'a> Base<'a> {
    /// Finds the engine and makes the image, for contestants that can hold `connections` each.
    pub(super) fn make(
        options: &'a FieldOptions,
        connections: usize,
        scratch: &'a Path,
        progress: &mut Progress,
    ) -> Result<Self, ComparisonError> {
        progress.say("making the image");
        let (engine, engine_version) = Engine::open(&options.docker, scratch)?;
        let image = Image::make(&engine, options.server, scratch)?;
        Ok(Self { options, scratch, engine, engine_version, image, connections })
    }

    /// Starts one; a peer that cannot be, or one that isn't installed, is missing.
    pub(super) fn start(&self, entrant: Entrant) -> Result<Result<Started, Missing>, ComparisonError> {
        match self.one(entrant) {
            Ok(started) => Ok(Ok(started)),
            Err(error) if !entrant.is_ours() || matches!(error, StartError::Missing { .. }) => {
                Ok(Err(Missing::of(entrant.name(), &error)))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn one(&self, entrant: Entrant) -> Result<Started, StartError> {
        let name = entrant.name();
        let options = self.options;
        match entrant {
            Entrant::SherdDirect => self.group(GroupPath::Direct),
            Entrant::SherdRelay => self.group(GroupPath::Relay),
            Entrant::Bare | Entrant::BareAgain => {
                let bare = Bare::start(name, self.ground(), &self.engine_version)?;
                let shards = bare.shards().to_vec();
                Ok((Box::new(bare), shards))
            }
            Entrant::Unsharded => self.whole(Whole::on_the_host(name, self.ground(), &self.engine_version)),
            Entrant::DockerPort => {
                self.whole(Whole::behind_a_published_port(name, self.ground(), &self.engine_version))
            }
            Entrant::Haproxy | Entrant::HaproxyHost => {
                let network = if entrant == Entrant::Haproxy { Network::Bridge } else { Network::Host };
                self.fronted(name, network, |site| {
                    haproxy::start_as(name, Variant::Auto, site, options.haproxy.as_deref())
                })
            }
            Entrant::HaproxySplice => self.fronted(name, Network::Host, |site| {
                haproxy::start_as(name, Variant::Splice, site, options.haproxy.as_deref())
            }),
            Entrant::NginxHost => {
                self.fronted(name, Network::Host, |site| nginx::start_as(name, site, options.nginx.as_deref()))
            }
            Entrant::EnvoyHost => {
                self.fronted(name, Network::Host, |site| envoy::start_as(name, site, options.envoy.as_deref()))
            }
        }
    }

    fn ground(&self) -> Ground<'_> {
        Ground { engine: &self.engine, image: &self.image, cpus: &self.options.cpus }
    }

    fn group(&self, path: GroupPath) -> Result<Started, StartError> {
        let group = Group::start(GroupLaunch {
            path,
            program: self.options.sherd.as_deref(),
            scratch: self.scratch,
            ground: self.ground(),
            connections: self.connections,
            trial: None,
        })?;
        let shards = group.shards().to_vec();
        Ok((Box::new(group), shards))
    }

    fn whole(&self, whole: Result<Whole, StartError>) -> Result<Started, StartError> {
        let whole = whole?;
        let shards = whole.server().to_vec();
        Ok((Box::new(whole), shards))
    }

    fn fronted(
        &self,
        name: &'static str,
        network: Network,
        balancer: impl FnOnce(&Site<'_>) -> Result<Peer, StartError>,
    ) -> Result<Started, StartError> {
        let containers = Containers::behind_a_balancer(name, self.ground(), network)?;
        let site = Site {
            scratch: self.scratch,
            cpus: &self.options.cpus,
            shards: containers.addresses(),
            connections: self.connections,
            peers: &self.options.peers,
        };
        let balancer = balancer(&site)?;
        let shards = containers.processes().to_vec();
        Ok((Box::new(Fronted::new(balancer, containers)), shards))
    }
}
