//! The contestants of a run and the shards behind them; owns all their processes, and ends them when dropped.

use std::{net::SocketAddr, path::Path};

use nix::unistd::Pid;

use super::{
    super::{ComparisonError, rounds::Entry},
    Options,
};
use crate::{
    contestant::{Choice, Contestant, Direct, Shards, Sherd, Site, StartError, envoy, haproxy, nginx, sherd},
    load::fetch,
    report::{Missing, Progress, Settings},
};

pub(super) struct Field {
    pub(super) contestants: Vec<Box<dyn Contestant>>,
    pub(super) missing: Vec<Missing>,
    pub(super) shards: Vec<Pid>,
    /// Where the harness started them itself. Below the contestants, so that they end first.
    _own_shards: Option<Shards>,
}

impl Field {
    /// Starts those that were chosen, sherd first. That sherd fails is an error; that a peer does is told in the report.
    pub(super) fn start(
        options: &Options,
        settings: &Settings,
        scratch: &Path,
        progress: &mut Progress,
        remarks: &mut Vec<String>,
    ) -> Result<Self, ComparisonError> {
        let mut field = Self { contestants: Vec::new(), missing: Vec::new(), shards: Vec::new(), _own_shards: None };
        let connections = super::capacity(settings);
        let mut shards = None;
        if options.contestants.contains(&Choice::Sherd) {
            progress.say("starting sherd and its shards");
            match Sherd::start(options.sherd.as_deref(), scratch, &settings.cpus, connections) {
                Ok(sherd) => shards = Some(field.admit_sherd(sherd)),
                Err(error @ StartError::Missing { .. }) => field.miss(sherd::NAME, &error),
                Err(error) => return Err(error.into()),
            }
        }
        let shards = shards.map_or_else(
            || {
                remarks.push("without sherd, the harness starts the shards itself".into());
                field.start_own_shards(scratch, &settings.cpus)
            },
            Ok,
        )?;
        progress.say("starting the others");
        let site = Site { scratch, cpus: &settings.cpus, shards: &shards, connections, peers: &options.peers };
        field.start_others(options, &site);
        if field.contestants.is_empty() {
            return Err(ComparisonError::Nobody { missing: field.missing });
        }
        Ok(field)
    }

    fn start_others(&mut self, options: &Options, site: &Site<'_>) {
        for choice in &options.contestants {
            let started = match choice {
                Choice::Sherd => continue,
                Choice::Haproxy(variant) => haproxy::start(*variant, site, options.haproxy.as_deref()),
                Choice::Nginx => nginx::start(site, options.nginx.as_deref()),
                Choice::Envoy => envoy::start(site, options.envoy.as_deref()),
                Choice::Direct => {
                    self.contestants.push(Box::new(Direct::new(site.shards)));
                    continue;
                }
            };
            match started {
                Ok(peer) => self.contestants.push(Box::new(peer)),
                Err(error) => self.miss(choice.name(), &error),
            }
        }
    }

    /// Has each answer once, small and large, byte by byte: nothing that doesn't work is measured.
    pub(super) fn verify(&self, answer_bytes: usize, bulk_bytes: usize) -> Result<(), ComparisonError> {
        for contestant in &self.contestants {
            for address in contestant.addresses() {
                for bytes in [answer_bytes, bulk_bytes, 0] {
                    fetch(*address, bytes).map_err(|source| ComparisonError::Wrong {
                        contestant: contestant.facts().name.clone(),
                        source,
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Whose ratios are told: sherd's; without it, those of the first that takes part. One does, or there is no field.
    pub(super) fn subject(&self) -> &str {
        &self.contestants[0].facts().name
    }

    /// The subject's second name.
    pub(super) fn control(&self) -> String {
        format!("{} again", self.subject())
    }

    /// All contestants, and the subject under its second name.
    pub(super) fn entries(&self) -> Vec<Entry<'_>> {
        let named = |name: String, contestant| Entry { name, contestant, shards: &self.shards };
        let all = self.contestants.iter().map(AsRef::as_ref);
        let again = named(self.control(), self.contestants[0].as_ref());
        all.map(|contestant: &dyn Contestant| named(contestant.facts().name.clone(), contestant))
            .chain([again])
            .collect()
    }

    fn admit_sherd(&mut self, sherd: Sherd) -> Vec<SocketAddr> {
        self.shards = sherd.shards().iter().map(|shard| Pid::from_raw(shard.pid)).collect();
        let addresses = sherd.shards().iter().map(|shard| shard.address).collect();
        self.contestants.push(Box::new(sherd));
        addresses
    }

    fn start_own_shards(&mut self, scratch: &Path, cpus: &[usize]) -> Result<Vec<SocketAddr>, ComparisonError> {
        let shards = Shards::start(scratch, cpus)?;
        self.shards = shards.processes();
        let addresses = shards.addresses();
        self._own_shards = Some(shards);
        Ok(addresses)
    }

    fn miss(&mut self, name: &str, error: &StartError) {
        self.missing.push(Missing::of(name, error));
    }
}
