//! The candidates of a run and the groups that run them: one group for each layout, whose policy is changed as needed, because
//! that replaces no shard; owns the groups, and ends them when dropped.

use std::{net::SocketAddr, path::Path};

use super::{
    super::ComparisonError,
    Choice, Draft, Options, TuneError,
    draft::{Stand, free_ports},
};
use crate::{
    contestant::{Contestant, Engine, Facts, Placed, Placement, Slots, StartError},
    interrupt::Interrupt,
    report::{Missing, Progress},
};

pub(super) struct Field {
    candidates: Vec<Candidate>,
    groups: Vec<Group>,
    /// Of all containers of the run, where there are any.
    label: Option<(&'static str, String)>,
    pub(super) remarks: Vec<String>,
    pub(super) missing: Vec<Missing>,
}

/// What may turn out to be the best; the simplest first.
struct Candidate {
    choice: Choice,
    /// Whose shards.
    group: usize,
}

/// A layout to try.
struct Layout {
    choice: Choice,
    slots: Slots,
    /// Others that have the same slots on this host.
    same: Vec<String>,
}

/// A layout that runs.
struct Group {
    placed: Placed,
    /// What it has now.
    policy: String,
    published: Vec<u16>,
}

/// What all of them are started with.
struct Start<'a> {
    options: &'a Options,
    scratch: &'a Path,
    sherd: &'a Path,
    engine: Option<Engine>,
}

impl Field {
    pub(super) fn start(
        options: &Options,
        scratch: &Path,
        progress: &mut Progress,
        interrupt: &Interrupt,
    ) -> Result<Self, TuneError> {
        let missing = || StartError::Missing {
            name: "sherd",
            reason: "there is no `sherd` beside sherd-bench and none was given".into(),
            install: "cargo build --release -p sherd".into(),
        };
        let sherd = options.sherd.as_deref().ok_or_else(missing)?;
        let engine = match options.draft.is_of_containers() {
            true => Some(Engine::open(&options.docker, scratch)?.0),
            false => None,
        };
        let label = engine.as_ref().map(|engine| (engine.label().0, engine.label().1.to_owned()));
        let start = Start { options, scratch, sherd, engine };
        let mut field =
            Self { candidates: Vec::new(), groups: Vec::new(), label, remarks: Vec::new(), missing: Vec::new() };
        for layout in start.layouts(&mut field.missing)? {
            if interrupt.is_raised() {
                return Err(ComparisonError::Interrupted.into());
            }
            let choice = &layout.choice;
            progress.say(&format!("starting {}", choice.layout()));
            match start.group(choice, &layout.slots) {
                Ok(group) => field.admit(&layout, group, &options.policies),
                // What the specification says has to work; another layout may be one in which it can't.
                Err(error) if field.groups.is_empty() => return Err(error.into()),
                Err(error) => field.missing.push(Missing::of(&choice.layout(), &error)),
            }
        }
        // By how much they differ from what the specification says, and then as they were found.
        let own = options.draft.choice();
        field.candidates.sort_by_key(|candidate| differences(&candidate.choice, &own));
        Ok(field)
    }

    /// In tables and answers.
    pub(super) fn names(&self) -> Vec<String> {
        self.candidates.iter().map(|candidate| candidate.choice.to_string()).collect()
    }

    pub(super) fn choice(&self, candidate: usize) -> &Choice {
        &self.candidates[candidate].choice
    }

    /// Each candidate, with the specification that it would be.
    pub(super) fn facts(&self, draft: &Draft) -> Vec<Facts> {
        let of = |candidate: &Candidate| Facts {
            name: candidate.choice.to_string(),
            configuration: draft.written(&candidate.choice),
            ..self.groups[candidate.group].placed.facts().clone()
        };
        self.candidates.iter().map(of).collect()
    }

    /// The first candidate of each group.
    pub(super) fn one_of_each_group(&self) -> Vec<usize> {
        let first = |group| self.candidates.iter().position(|candidate| candidate.group == group);
        (0..self.groups.len()).filter_map(first).collect()
    }

    /// The group that runs a candidate, with that one's policy.
    pub(super) fn ready(&mut self, candidate: usize, options: &Options) -> Result<&Placed, StartError> {
        let Candidate { choice, group } = &self.candidates[candidate];
        let group = &mut self.groups[*group];
        if group.policy != choice.policy {
            let label = self.label.as_ref().map(|(name, text)| (*name, &**text));
            let text = options.draft.trial(choice, stand(options, &group.published, label));
            group.placed.change(&text)?;
            group.policy.clone_from(&choice.policy);
        }
        Ok(&group.placed)
    }

    /// Whether all that was measured is what it was at the start.
    pub(super) fn check(&mut self) -> Result<(), StartError> {
        self.groups.iter_mut().try_for_each(|group| group.placed.check())
    }

    fn admit(&mut self, layout: &Layout, group: Group, policies: &[String]) {
        let Layout { choice, slots, same } = layout;
        let same = if same.is_empty() { String::new() } else { format!("; the same here: {}", same.join(", ")) };
        self.remarks.push(format!("{}: {slots}; {}{same}", choice.layout(), group.placed.path()));
        // With one slot there is nothing to choose.
        let more = policies.iter().filter(|policy| **policy != choice.policy && slots.count() > 1);
        for policy in [&choice.policy].into_iter().chain(more) {
            let choice = Choice { policy: policy.clone(), ..choice.clone() };
            self.candidates.push(Candidate { choice, group: self.groups.len() });
        }
        self.groups.push(group);
    }
}

/// How many words of a specification are others.
fn differences(choice: &Choice, own: &Choice) -> usize {
    [choice.unit != own.unit, choice.smt != own.smt, choice.policy != own.policy].into_iter().filter(|is| *is).count()
}

fn stand<'a>(options: &'a Options, published: &'a [u16], label: Option<(&'a str, &'a str)>) -> Stand<'a> {
    Stand { published, cpus: &options.settings.cpus, cpus_are_given: options.cpus_are_given, label }
}

impl Start<'_> {
    /// Layouts that differ and can be had, the specification's own first.
    fn layouts(&self, missing: &mut Vec<Missing>) -> Result<Vec<Layout>, StartError> {
        let own = self.options.draft.choice();
        let mut found = vec![Layout { slots: self.plan(&own)?, same: Vec::new(), choice: own.clone() }];
        let mut tried = vec![own.clone()];
        for unit in [&own.unit].into_iter().chain(&self.options.units) {
            for smt in [&own.smt].into_iter().chain(&self.options.smts) {
                let choice = Choice { unit: unit.clone(), smt: smt.clone(), policy: own.policy.clone() };
                if tried.contains(&choice) {
                    continue;
                }
                tried.push(choice.clone());
                match self.plan(&choice) {
                    Err(error) => missing.push(Missing::of(&choice.layout(), &error)),
                    Ok(slots) => match found.iter_mut().find(|known| known.slots == slots) {
                        Some(known) => known.same.push(choice.layout()),
                        None => found.push(Layout { choice, slots, same: Vec::new() }),
                    },
                }
            }
        }
        Ok(found)
    }

    fn plan(&self, choice: &Choice) -> Result<Slots, StartError> {
        // Not bound: planning opens no port.
        let published: Vec<u16> = (1..).take(self.options.draft.ports()).collect();
        let text = self.options.draft.trial(choice, stand(self.options, &published, None));
        Slots::plan(self.sherd, self.scratch, &text)
    }

    fn group(&self, choice: &Choice, slots: &Slots) -> Result<Group, StartError> {
        let name = choice.layout().replace('+', "-");
        let draft = &self.options.draft;
        let failed = |source| StartError::Failed { name: name.clone(), action: "be given its ports".into(), source };
        let published = free_ports(draft.ports()).map_err(failed)?;
        let run = self
            .engine
            .as_ref()
            .map_or_else(|| format!("sherd-bench-{}", std::process::id()), |engine| engine.run_name().into());
        let label = self.engine.as_ref().map(Engine::label);
        let placed = Placed::start(Placement {
            name: &name,
            program: Some(self.sherd),
            scratch: self.scratch,
            instance: &format!("{run}-{name}"),
            docker: self.engine.as_ref().map(Engine::socket),
            specification: &draft.trial(choice, stand(self.options, &published, label)),
            address: SocketAddr::from(([127, 0, 0, 1], published[draft.port()])),
            slots: slots.count(),
            path: None,
        })?;
        Ok(Group { placed, policy: choice.policy.clone(), published })
    }
}
