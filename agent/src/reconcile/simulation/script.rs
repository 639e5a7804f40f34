//! What happens in a seed's world beside the agent: what operators ask, what befalls shards, engine, holder and agent, and when. The
//! faults of single calls are struck where the calls are.

use std::{collections::VecDeque, fmt, time::Duration};

use super::state::Chance;

/// Most groups of a world; one is called `a`, the next one `b`.
const MAX_GROUPS: u64 = 2;
/// How long everything may fail.
const TROUBLE_MILLIS: u64 = 40_000;

/// Faults that may strike now.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// None do, otherwise.
    pub(super) are_on: bool,
    pub(super) engine_is_away: bool,
    /// Calls fail so much more often than usual, per cent.
    pub(super) rate_percent: u64,
}

impl Faults {
    /// Whether one strikes that usually does in so many of a thousand cases.
    pub(super) fn strike(&self, chance: &mut Chance, per_mille: u64) -> bool {
        self.are_on && chance.below(100_000) < per_mille * self.rate_percent
    }
}

/// What an operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Apply(String),
    Stop { purge: bool },
    Undo,
    Pause,
    Resume,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Happening {
    Asked {
        group: String,
        wish: Wish,
    },
    ShardEnds(u64),
    ShardSickens(u64, Duration),
    ShardIsMoved(u64),
    ShardIsRemoved(u64),
    ShardIsFrozen(u64, Duration),
    ShardsThaw,
    WorkerEnds(u64),
    StrangerComes,
    EngineGoes,
    EngineComes,
    HolderEnds,
    HolderComes,
    CpuGoes(u64),
    CpusCome,
    /// Somebody sets it, forwards or back.
    WallClockIsSet(Duration, bool),
    /// At once, or at one of the next fault points.
    AgentIsKilled {
        points: Option<u32>,
        away: Duration,
    },
    AgentRestarts(Duration),
    /// From now on nothing fails; operators ask once more, or leave it at what is.
    Calm,
}

/// A seed's events, the next one first.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) events: VecDeque<(Duration, Happening)>,
    pub(super) rate_percent: u64,
    /// Whether operators ask again in the end for what can serve.
    pub(super) asks_in_the_end: bool,
}

impl Script {
    pub(super) fn of(chance: &mut Chance) -> Self {
        let groups: Vec<String> =
            ["a", "b"].iter().take(1 + chance.below(MAX_GROUPS) as usize).map(|name| (*name).to_owned()).collect();
        let mut events = Vec::new();
        for group in &groups {
            // At first something that works, as a rule: what follows then has something to break.
            let wish =
                Wish::Apply(specification(group, if chance.per_mille(850) { &["good"] } else { &PROGRAMS }, chance));
            events.push((chance.millis(0..500), Happening::Asked { group: group.clone(), wish }));
        }
        for _ in 0..chance.in_range(1..10) {
            let at = chance.millis(1_000..TROUBLE_MILLIS);
            events.extend(trouble(&groups, at, chance));
        }
        events.push((Duration::from_millis(TROUBLE_MILLIS), Happening::Calm));
        events.sort_by_key(|(at, _)| *at);
        let rate_percent = *chance.of_these(&[0, 20, 100, 100, 300]);
        Self { events: events.into(), rate_percent, asks_in_the_end: chance.per_mille(500) }
    }

    pub(super) fn next_at(&self) -> Option<Duration> {
        self.events.front().map(|(at, _)| *at)
    }

    pub(super) fn take_due(&mut self, now: Duration) -> Option<Happening> {
        let is_due = self.next_at().is_some_and(|at| at <= now);
        if is_due { self.events.pop_front().map(|(_, event)| event) } else { None }
    }
}

/// One thing that happens at that time, and its end where it has one.
fn trouble(groups: &[String], at: Duration, chance: &mut Chance) -> Vec<(Duration, Happening)> {
    let (nth, lasts) = (chance.draw(), chance.millis(200..12_000));
    let group = chance.of_these(groups).clone();
    let asked = |wish| vec![(at, Happening::Asked { group: group.clone(), wish })];
    let killed = |points, away| vec![(at, Happening::AgentIsKilled { points, away })];
    match chance.below(25) {
        0..=4 => {
            let text = specification(&group, &PROGRAMS, chance);
            asked(Wish::Apply(text))
        }
        5 => asked(Wish::Stop { purge: chance.per_mille(500) }),
        6 => asked(Wish::Undo),
        7 => asked(if chance.per_mille(500) { Wish::Pause } else { Wish::Resume }),
        8 | 9 => vec![(at, Happening::ShardEnds(nth))],
        10 => vec![(at, Happening::ShardSickens(nth, at + lasts))],
        11 => vec![(at, Happening::ShardIsMoved(nth))],
        12 => vec![(at, Happening::ShardIsRemoved(nth))],
        13 => vec![(at, Happening::ShardIsFrozen(nth, lasts)), (at + lasts, Happening::ShardsThaw)],
        14 => vec![(at, Happening::WorkerEnds(nth))],
        15 => vec![(at, Happening::StrangerComes)],
        16 | 17 => vec![(at, Happening::EngineGoes), (at + lasts, Happening::EngineComes)],
        18 => vec![(at, Happening::HolderEnds), (at + lasts / 4, Happening::HolderComes)],
        19 => vec![(at, Happening::CpuGoes(nth)), (at + lasts, Happening::CpusCome)],
        20 | 21 => killed(None, lasts / 3),
        22 => {
            let points = u32::try_from(chance.in_range(1..12)).ok();
            killed(points, lasts / 10)
        }
        23 => vec![(at, Happening::WallClockIsSet(lasts * 300, nth % 2 == 0))],
        _ => vec![(at, Happening::AgentRestarts(lasts / 10))],
    }
}

/// What the programs of simulated images do; the first is as it should be.
const PROGRAMS: [&str; 8] = ["good", "good", "good", "good", "slow", "silent", "dies", "late"];

/// Whether a specification's shards come to serve, and go on.
pub(super) fn works(text: &str) -> bool {
    ["good", "slow"].iter().any(|program| text.contains(&format!("image = \"{program}:")))
}

/// A specification of the group.
pub(super) fn specification(group: &str, programs: &[&str], chance: &mut Chance) -> String {
    let program = *chance.of_these(programs);
    let port = 8001 + u16::from(group.as_bytes()[0] - b'a');
    let shards = chance.in_range(1..5);
    let version = chance.below(1_000);
    let order = *chance.of_these(&["start-first", "stop-first"]);
    let parallelism = *chance.of_these(&[1, 1, 1, 2]);
    let action = *chance.of_these(&["rollback", "rollback", "pause", "continue"]);
    let check = *chance.of_these(&["tcp", "http", "command"]);
    let command = if check == "command" { "command = [\"check\"]\ninterval = \"1s\"\n" } else { "" };
    let also = if chance.per_mille(300) {
        format!("[[ports]]\npublish = \"127.0.0.1:{}:81\"\n", port + 10)
    } else {
        String::new()
    };
    let sharing = if group == "a" { "exclusive" } else { *chance.of_these(&["exclusive", "exclusive", "shared"]) };
    let memory = *chance.of_these(&["none", "bind"]);
    let monitor = *chance.of_these(&["0s", "2s"]);
    format!(
        "name = \"{group}\"\npath = \"relay\"\ndrain = \"2s\"\nstop_grace = \"1s\"\n\
         [layout]\nunit = \"pu\"\nshards = {shards}\nmemory = \"{memory}\"\nsharing = \"{sharing}\"\n\
         [container]\nimage = \"{program}:{version}\"\n\
         [[ports]]\npublish = \"127.0.0.1:{port}:80\"\n{also}\
         [readiness]\ncheck = \"{check}\"\n{command}start_timeout = \"5s\"\n\
         [backoff]\nmax = \"4s\"\n\
         [rollout]\norder = \"{order}\"\nparallelism = {parallelism}\nmin_healthy = \"500ms\"\nmonitor = \"{monitor}\"\n\
         deadline = \"20s\"\nfailure_action = \"{action}\"\n"
    )
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked { group, wish } => write!(f, "Asked: {group}: {wish}"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply(text) => {
                let says =
                    |line: &&str| line.starts_with("image") || line.starts_with("order") || line.starts_with("shards");
                write!(f, "apply {}", text.lines().filter(says).collect::<Vec<_>>().join(", "))
            }
            other => write!(f, "{other:?}"),
        }
    }
}
