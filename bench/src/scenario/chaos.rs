//! `sherd-bench chaos`: faults, on a schedule or drawn from a seed, against a group under load; each lost connection is told with the
//! fault it is owed to, or that it is owed to none. Owns the order of things; what it did to others is undone however it ends.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use self::{
    act::{AGENT_AWAY, UnderWay, Undoing},
    losses::{Incident, Loss, LossKind, Whose, explain},
    target::Target,
    told::{Episode, FaultTold, LossTold},
    watch::{Watch, whole_after},
};
pub use self::{
    schedule::{Draw, Fault, Kind, KindError, Schedule, ScheduleError, parse_duration},
    told::ChaosReport,
};
use super::{ComparisonError, trial::TrialOptions};
use crate::{
    contestant::{Contestant, Facts, GroupPath, UndoList},
    interrupt::Interrupt,
    load::{Kept, KeptTold, LostKept, Visit, Visits},
    report::Progress,
};

mod act;
mod losses;
mod schedule;
mod target;
mod told;
mod watch;

/// How long a run may be: every visit is remembered.
pub const LONGEST: Duration = Duration::from_secs(3600);
/// After the last fault's time the group has so long to be whole again.
const WHOLE_DEADLINE: Duration = Duration::from_secs(60);
/// How long the engine of the run's own is away.
const ENGINE_AWAY: Duration = Duration::from_millis(500);
/// How often an interruptible wait looks up.
const STEP: Duration = Duration::from_millis(50);
/// The agent is asked for no more lost connections' slots than this.
const MOST_ASKED: usize = 2000;

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Engine, program, CPUs of shards and load, seed.
    pub trial: TrialOptions,
    /// Groups of the run's own, one after the other; of no account for a running one.
    pub paths: Vec<GroupPath>,
    /// Somebody's group, instead of the run's own.
    pub running: Option<RunningGroup>,
    /// What may be done.
    pub kinds: Vec<Kind>,
    /// Somebody named them; else those that a running group is no place for are left out.
    pub named: bool,
    /// When.
    pub when: When,
    /// The load's visits.
    pub visits_per_second: f64,
    /// The load's kept connections.
    pub kept: usize,
    /// How long a kept connection's client waits for an answer.
    pub patience: Duration,
}

/// A group of an agent that runs.
#[derive(Debug, Clone)]
pub struct RunningGroup {
    /// Its name.
    pub group: String,
    /// Its agent's socket.
    pub socket: PathBuf,
    /// What clients ask for.
    pub path: String,
    /// What restarts its engine.
    pub restart_engine: Option<String>,
}

/// When faults come.
#[derive(Debug, Clone)]
pub enum When {
    /// Drawn from the seed.
    Drawn {
        /// Between two, about.
        every: Duration,
        /// Of all.
        duration: Duration,
    },
    /// Given.
    Given {
        /// What errors call it.
        file: String,
        /// It.
        text: String,
    },
}

impl Options {
    /// The schedule for a group of so many slots: from seed and options alone.
    pub fn schedule(&self, slots: usize) -> Result<Schedule, ScheduleError> {
        let slots = slots as u32;
        match &self.when {
            When::Given { file, text } => Schedule::parse(file, text, &self.kinds, slots),
            When::Drawn { every, duration } => {
                let (kinds, seed) = (self.kinds.clone(), self.trial.seed);
                Ok(Schedule::random(&Draw { seed, kinds, every: *every, duration: *duration, slots }))
            }
        }
    }

    /// The schedule, and nothing else: asks a running group's agent how many slots there are.
    pub fn dry_run(&self) -> Result<Schedule, ComparisonError> {
        match &self.running {
            Some(running) => {
                let target = Target::running(self, running)?;
                Ok(self.for_target(&target).schedule(target.slots)?)
            }
            None => Ok(self.schedule(self.trial.cpus.len())?),
        }
    }

    /// Without what can't be done to it.
    fn for_target(&self, target: &Target<'_>) -> Self {
        let mut options = self.clone();
        options.kinds.retain(|kind| target.engine.is_some() || !kind.needs_an_engine());
        options
    }
}

/// Runs it and reports.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<ChaosReport, ComparisonError> {
    let started = SystemTime::now();
    let mut episodes = Vec::new();
    if let Some(running) = &options.running {
        let mut target = Target::running(options, running)?;
        let schedule = options.for_target(&target).schedule(target.slots)?;
        episodes.push(episode(options, &mut target, &schedule, scratch, progress, interrupt)?);
    } else {
        // A file's faults are told before anything is started.
        let schedule = options.schedule(options.trial.cpus.len())?;
        for path in &options.paths {
            let engine = target::own_engine(options, scratch)?;
            let docker = engine.as_ref().map_or_else(|| options.trial.docker.clone(), |engine| engine.socket());
            let trial = TrialOptions { docker, ..options.trial.clone() };
            let mut target = Target::own(&trial, *path, engine, scratch, progress, interrupt)?;
            episodes.push(episode(options, &mut target, &schedule, scratch, progress, interrupt)?);
        }
    }
    ChaosReport::of(options, started, episodes).map_err(ComparisonError::Host)
}

/// One schedule against one group.
fn episode(
    options: &Options,
    target: &mut Target<'_>,
    schedule: &Schedule,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Episode, ComparisonError> {
    target.check(options)?;
    let load = Under::load(options, target, schedule);
    let start = load.start;
    let events = target.api.follow();
    let watch = Watch::start(target.api.clone(), target.group.clone(), start);
    let mut list = UndoList::new(scratch);
    let restart_engine = options.running.as_ref().and_then(|running| running.restart_engine.as_deref());
    let mut stage = Stage { target, list: &mut list, restart_engine, start, interrupt, done: Vec::new() };
    stage.play(schedule, progress)?;
    let done = stage.done;
    let is_whole = wait_until_whole(target, interrupt)?;
    let ran = start.elapsed();
    let (visits, kept) = load.finish(target)?;
    let looks = watch.finish();
    let incidents: Vec<Incident> = done.iter().map(|done| done.incident(&looks, target.slots)).collect();
    let losses = told_losses(target, start, &visits, kept.lost.clone(), &incidents);
    let faults = schedule.faults.iter().zip(&done).zip(&incidents);
    let faults = faults
        .map(|((fault, done), incident)| FaultTold::of(fault, done, incident, &events.seen(), start, &target.group));
    Ok(Episode {
        name: format!("{}, {}", target.group, if target.path == GroupPath::Direct { "direct" } else { "relay" }),
        facts: facts(target),
        start,
        ran,
        faults: faults.collect(),
        losses,
        visits,
        kept: kept.answered,
        is_whole,
    })
}

/// The load of an episode.
struct Under {
    start: Instant,
    visits: Visits,
    kept: Kept,
}

impl Under {
    fn load(options: &Options, target: &Target<'_>, schedule: &Schedule) -> Self {
        let longest = schedule.duration + WHOLE_DEADLINE;
        let (visits, kept) = (target.visits(options, longest), target.kept(options, longest));
        Self { start: Instant::now(), visits: Visits::start(&visits), kept: Kept::start(&kept) }
    }

    fn finish(self, target: &Target<'_>) -> Result<(Vec<Visit>, KeptTold), ComparisonError> {
        let fail = |source| ComparisonError::Load { contestant: target.group.clone(), source };
        Ok((self.visits.finish().map_err(fail)?, self.kept.finish().map_err(fail)?))
    }
}

/// A fault that was brought about, or was not.
struct Done {
    kind: Kind,
    slot: Option<u32>,
    began: Duration,
    undone: Option<Duration>,
    died: Option<Duration>,
    gone: Vec<i32>,
    what: String,
    skipped: bool,
}

impl Done {
    fn incident(&self, looks: &[watch::Look], slots: usize) -> Incident {
        let since = [Some(self.began), self.undone, self.died].into_iter().flatten().max().unwrap_or_default();
        // What wasn't done is over before it began.
        let over = if self.skipped { Some(Duration::ZERO) } else { whole_after(looks, since, slots, &self.gone) };
        Incident { kind: self.kind, slot: self.slot, began: self.began, died: self.died, over }
    }
}

/// Where a schedule is played.
struct Stage<'a, 'b> {
    target: &'a mut Target<'b>,
    list: &'a mut UndoList,
    restart_engine: Option<&'a str>,
    start: Instant,
    interrupt: &'a Interrupt,
    done: Vec<Done>,
}

impl Stage<'_, '_> {
    /// Every fault at its time, and its end at its own.
    fn play(&mut self, schedule: &Schedule, progress: &mut Progress) -> Result<(), ComparisonError> {
        progress.restart();
        let mut ends: BTreeMap<(Duration, usize), Undoing> = BTreeMap::new();
        let mut deaths = Vec::new();
        for (number, fault) in schedule.faults.iter().enumerate() {
            progress.step(number, schedule.faults.len(), fault.kind.name());
            self.undo_until(fault.at, &mut ends)?;
            self.wait_until(fault.at)?;
            let under_way = self.begin(fault);
            deaths.push(under_way.died);
            if let Some(undoing) = under_way.undo {
                ends.insert((self.start.elapsed() + time_of(&undoing, fault), number), undoing);
            }
        }
        self.undo_until(schedule.duration, &mut ends)?;
        self.undo_until(Duration::MAX, &mut ends)?;
        self.wait_until(schedule.duration)?;
        for (number, death) in deaths.into_iter().enumerate() {
            match death.moment() {
                Ok(died) => {
                    self.done[number].died = died.map(|died| died.saturating_duration_since(self.start));
                }
                Err(error) => self.done[number].what += &format!("; FAILED: {error}"),
            }
        }
        progress.clear();
        Ok(())
    }

    fn begin(&mut self, fault: &Fault) -> UnderWay {
        let began = self.start.elapsed();
        let begun = act::begin(fault, self.target, self.list, self.restart_engine);
        let skipped = begun.is_err();
        let under_way =
            begun.unwrap_or_else(|error| UnderWay { what: format!("not done: {error}"), ..UnderWay::default() });
        self.done.push(Done {
            kind: fault.kind,
            slot: fault.slot,
            began,
            undone: None,
            died: None,
            gone: under_way.gone.clone(),
            what: under_way.what.clone(),
            skipped,
        });
        under_way
    }

    fn undo_until(
        &mut self,
        limit: Duration,
        ends: &mut BTreeMap<(Duration, usize), Undoing>,
    ) -> Result<(), ComparisonError> {
        while let Some(first) = ends.first_entry().filter(|first| first.key().0 <= limit) {
            let ((at, number), undoing) = first.remove_entry();
            self.wait_until(at)?;
            let undone = act::undo(&undoing, self.target, self.list);
            let done = &mut self.done[number];
            done.undone = Some(self.start.elapsed());
            done.what += &undone.unwrap_or_else(|error| format!("; FAILED to undo it: {error}"));
        }
        Ok(())
    }

    fn wait_until(&self, at: Duration) -> Result<(), ComparisonError> {
        loop {
            if self.interrupt.is_raised() {
                return Err(ComparisonError::Interrupted);
            }
            let left = at.saturating_sub(self.start.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(STEP));
        }
    }
}

/// From a fault to its end.
fn time_of(undoing: &Undoing, fault: &Fault) -> Duration {
    match undoing {
        Undoing::Noted(_) | Undoing::UnlessRepaired(..) => fault.lasts,
        Undoing::BeginAgent => AGENT_AWAY,
        Undoing::BeginEngine => ENGINE_AWAY,
    }
}

fn wait_until_whole(target: &Target<'_>, interrupt: &Interrupt) -> Result<bool, ComparisonError> {
    let start = Instant::now();
    while !target.is_whole() {
        if interrupt.is_raised() {
            return Err(ComparisonError::Interrupted);
        }
        if start.elapsed() > WHOLE_DEADLINE {
            return Ok(false);
        }
        thread::sleep(STEP);
    }
    // So that the watch has seen it too.
    thread::sleep(4 * STEP);
    Ok(true)
}

/// Every lost connection, with the slot that had it as far as that is known, and what it is owed to; by their ends.
fn told_losses(
    target: &Target<'_>,
    start: Instant,
    visits: &[Visit],
    kept: Vec<LostKept>,
    incidents: &[Incident],
) -> Vec<LossTold> {
    let since = |moment: Instant| moment.saturating_duration_since(start);
    let of_visit = |visit: &Visit| {
        let failure = visit.failure.clone()?;
        let (began, ended) = (since(visit.began), since(visit.ended));
        let unanswered = failure.error.starts_with("unanswered");
        let (client, reached, error) = (failure.client, failure.reached, failure.error);
        let asked = Some(began);
        Some(Loss {
            kind: LossKind::Visit,
            began,
            asked,
            ended,
            client,
            slot: Whose::Unknown,
            reached,
            error,
            unanswered,
        })
    };
    let of_kept = |lost: LostKept| Loss {
        kind: LossKind::Kept,
        began: since(lost.opened),
        asked: lost.asked.map(since),
        ended: since(lost.ended),
        client: lost.failure.client,
        slot: lost.slot.map_or(Whose::Unknown, Whose::Told),
        reached: lost.failure.reached,
        unanswered: lost.failure.error.starts_with("unanswered"),
        error: lost.failure.error,
    };
    let mut losses: Vec<Loss> = visits.iter().filter_map(of_visit).chain(kept.into_iter().map(of_kept)).collect();
    losses.sort_by_key(|loss| loss.ended);
    for loss in losses.iter_mut().filter(|loss| loss.slot == Whose::Unknown).take(MOST_ASKED) {
        let named =
            loss.client.and_then(|client| target.api.first_choice(&target.group, client, target.address).ok()?);
        loss.slot = named.map_or(Whose::Unknown, Whose::ByTable);
    }
    let told = |loss: Loss| LossTold { explanation: explain(&loss, incidents, target.path), loss };
    losses.into_iter().map(told).collect()
}

fn facts(target: &Target<'_>) -> Facts {
    target.field.as_ref().map_or_else(
        || Facts {
            name: target.group.clone(),
            version: "as it runs".into(),
            program: None,
            configuration: format!("the agent at {}", target.api.socket().display()),
        },
        |field| field.group.facts().clone(),
    )
}
