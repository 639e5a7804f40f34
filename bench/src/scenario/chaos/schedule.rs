//! Faults and when they come, drawn from a seed or read from a file; pure. What is printed of a schedule can be read again.

use std::{fmt, str::FromStr, time::Duration};

use serde::Serialize;

use crate::stats::Random;

/// Before the first fault, so that what is normal is seen too.
const FIRST: Duration = Duration::from_secs(1);
/// Faults that last do so for at least this.
const SHORTEST: Duration = Duration::from_millis(300);
/// And for at most this share of the time between two; a fault comes in the first quarter of its time.
const LONGEST_SHARE: f64 = 0.7;
/// In one schedule.
const MOST_FAULTS: usize = 10_000;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// SIGKILL to a shard.
    Kill,
    /// SIGSTOP to a shard, and SIGCONT.
    Stop,
    /// `docker pause` and `docker unpause`.
    Pause,
    /// `docker restart`.
    Restart,
    /// Another CPU than its slot's: `docker update --cpuset-cpus`, or sched_setaffinity(2) of a process.
    Drift,
    /// SIGKILL to the agent, which its service manager starts again.
    AgentKill,
    /// The container engine stops and starts.
    EngineRestart,
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Since the run's begin.
    pub at: Duration,
    /// What is done.
    pub kind: Kind,
    /// To whom; None where it is nobody's in particular.
    pub slot: Option<u32>,
    /// How long, before it is undone; zero where nothing has to be.
    pub lasts: Duration,
}

/// Faults in the order of their times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// The faults.
    pub faults: Vec<Fault>,
    /// Of the whole run.
    pub duration: Duration,
}

/// What a schedule is drawn from.
#[derive(Debug, Clone)]
pub struct Draw {
    /// The same gives the same.
    pub seed: u64,
    /// Each as often as the others, as far as that goes.
    pub kinds: Vec<Kind>,
    /// Between two faults, about.
    pub every: Duration,
    /// Of the whole run.
    pub duration: Duration,
    /// Slots of the group.
    pub slots: u32,
}

/// A word is no fault's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no fault {name:?}: choose from {}", Kind::ALL.map(Kind::name).join(", "))]
pub struct KindError {
    name: String,
}

/// Text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines.join("\n"))]
pub struct ScheduleError {
    /// One for each fault of the text, with file and line.
    lines: Vec<String>,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 7] =
        [Self::Kill, Self::Stop, Self::Pause, Self::Restart, Self::Drift, Self::AgentKill, Self::EngineRestart];

    /// In schedules and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Restart => "restart",
            Self::Drift => "drift",
            Self::AgentKill => "agent-kill",
            Self::EngineRestart => "engine-restart",
        }
    }

    /// Whether it is one slot's.
    pub const fn is_of_a_slot(self) -> bool {
        !matches!(self, Self::AgentKill | Self::EngineRestart)
    }

    /// Whether it goes on until it is undone.
    pub const fn lasts(self) -> bool {
        matches!(self, Self::Stop | Self::Pause | Self::Drift)
    }

    /// Whether it ends shards.
    pub const fn ends_shards(self) -> bool {
        matches!(self, Self::Kill | Self::Restart | Self::EngineRestart)
    }

    /// Whether it needs containers.
    pub const fn needs_an_engine(self) -> bool {
        matches!(self, Self::Pause | Self::Restart | Self::EngineRestart)
    }
}

impl FromStr for Kind {
    type Err = KindError;

    fn from_str(name: &str) -> Result<Self, KindError> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| KindError { name: name.to_owned() })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}s {}", self.at.as_secs_f64(), self.kind.name())?;
        if let Some(slot) = self.slot {
            write!(f, " slot={slot}")?;
        }
        if !self.lasts.is_zero() {
            write!(f, " for={:.3}s", self.lasts.as_secs_f64())?;
        }
        Ok(())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.faults.iter().try_for_each(|fault| writeln!(f, "{fault}"))
    }
}

impl Schedule {
    /// What follows from `draw` alone. A fault that lasts is undone before the next one comes.
    pub fn random(draw: &Draw) -> Self {
        let mut random = Random::new(draw.seed);
        let (mut faults, mut deck) = (Vec::new(), Vec::new());
        let mut turn = FIRST;
        // The last one has time to be over.
        while turn + draw.every <= draw.duration && faults.len() < MOST_FAULTS && !draw.kinds.is_empty() {
            if deck.is_empty() {
                deck.clone_from(&draw.kinds);
                random.shuffle(&mut deck);
            }
            let Some(kind) = deck.pop() else { break };
            let at = whole_millis(turn + draw.every.mul_f64(random.unit() / 4.0));
            let slot = random.below(draw.slots.max(1) as usize) as u32;
            let longest = draw.every.mul_f64(LONGEST_SHARE).max(SHORTEST);
            let share = random.unit();
            let lasts = match kind {
                // The agent looks every second or so: it has as long as there is to put the shard back.
                Kind::Drift => longest,
                _ => SHORTEST + (longest - SHORTEST).mul_f64(share),
            };
            faults.push(Fault {
                at,
                kind,
                slot: kind.is_of_a_slot().then_some(slot),
                lasts: if kind.lasts() { whole_millis(lasts) } else { Duration::ZERO },
            });
            turn += draw.every;
        }
        Self { faults, duration: draw.duration }
    }

    /// What `text`, which errors call `file`, says; its faults are of kinds in `kinds` and of one of `slots` slots.
    pub fn parse(file: &str, text: &str, kinds: &[Kind], slots: u32) -> Result<Self, ScheduleError> {
        let (mut faults, mut lines): (Vec<Fault>, Vec<String>) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let found = fault(line, kinds, slots).and_then(|fault| match faults.last() {
                Some(last) if last.at > fault.at => Err("earlier than the line before: put them in order".to_owned()),
                _ if faults.len() == MOST_FAULTS => Err(format!("more than {MOST_FAULTS} faults: use several runs")),
                _ => Ok(fault),
            });
            match found {
                Ok(fault) => faults.push(fault),
                Err(what) => lines.push(format!("{file}:{}: {what}", number + 1)),
            }
        }
        if faults.is_empty() && lines.is_empty() {
            lines.push(format!("{file}:1: no fault: write lines as `5s kill slot=1` or `10s stop slot=0 for=2s`"));
        }
        if !lines.is_empty() {
            return Err(ScheduleError { lines });
        }
        let end = faults.iter().map(|fault| fault.at + fault.lasts).max().unwrap_or_default();
        Ok(Self { faults, duration: end + AFTER })
    }
}

/// After the last fault of a schedule that was given: for its losses, and until all is well again.
const AFTER: Duration = Duration::from_secs(5);

fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(duration.as_millis() as u64)
}

/// Of one line.
fn fault(line: &str, kinds: &[Kind], slots: u32) -> Result<Fault, String> {
    let mut words = line.split_whitespace();
    let at = parse_duration(words.next().unwrap_or_default())?;
    let name = words.next().ok_or("a fault is missing after the time, as in `5s kill slot=1`")?;
    let kind: Kind = name.parse().map_err(|error: KindError| error.to_string())?;
    if !kinds.contains(&kind) {
        return Err(format!("{name} is not among --faults: add it there"));
    }
    let (mut slot, mut lasts) = (None, None);
    for word in words {
        match word.split_once('=') {
            Some(("slot", value)) => {
                let number: u32 = value.parse().map_err(|_| format!("slot={value}: write a number"))?;
                if number >= slots {
                    return Err(format!("slot={number}: the group has slots 0 to {}", slots.saturating_sub(1)));
                }
                slot = Some(number);
            }
            Some(("for", value)) => lasts = Some(parse_duration(value)?),
            _ => return Err(format!("{word:?}: known are slot=N and for=DURATION")),
        }
    }
    match (kind.is_of_a_slot(), slot) {
        (true, None) => return Err(format!("{name} needs a slot: add slot=N")),
        (false, Some(_)) => return Err(format!("{name} is no slot's: leave slot= out")),
        _ => {}
    }
    match (kind.lasts(), lasts) {
        (true, None) => return Err(format!("{name} needs a time after which it is undone: add for=2s")),
        (false, Some(_)) => return Err(format!("{name} is not undone: leave for= out")),
        _ => {}
    }
    Ok(Fault { at, kind, slot, lasts: lasts.unwrap_or_default() })
}

/// `250ms`, `5s`, `1.5s` or `2m`; at most a day.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const DAY: f64 = 86_400.0;
    let bad = || format!("{text:?} is no time: write 250ms, 5s or 2m");
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    let seconds = number.parse::<f64>().map_err(|_| bad())? * seconds;
    if !(0.0..=DAY).contains(&seconds) {
        return Err(bad());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draw(seed: u64) -> Draw {
        let (every, duration) = (Duration::from_secs(5), Duration::from_secs(120));
        Draw { seed, kinds: Kind::ALL.to_vec(), every, duration, slots: 2 }
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule() {
        assert_eq!(Schedule::random(&draw(7)), Schedule::random(&draw(7)));
        assert_ne!(Schedule::random(&draw(7)), Schedule::random(&draw(8)));
        // For whoever repeats a run of another version.
        let first: Vec<String> = Schedule::random(&draw(1)).faults.iter().take(3).map(ToString::to_string).collect();
        assert_eq!(first, FIRST_OF_SEED_1);
    }

    const FIRST_OF_SEED_1: [&str; 3] =
        ["2.096s restart slot=1", "6.992s drift slot=0 for=3.500s", "11.568s agent-kill"];

    #[test]
    fn every_kind_comes_about_as_often() {
        let schedule = Schedule::random(&draw(3));
        let count = |kind: Kind| schedule.faults.iter().filter(|fault| fault.kind == kind).count();
        let counts = Kind::ALL.map(count);
        assert_eq!(counts.iter().sum::<usize>(), 23);
        assert!(counts.iter().all(|count| (3..=4).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_and_nothing_overlaps(
            seed in any::<u64>(), every_ms in 1_000_u64..20_000, duration_s in 5_u64..300, slots in 1_u32..64,
            picked in prop::collection::vec(0_usize..7, 1..7),
        ) {
            let mut kinds: Vec<Kind> = picked.into_iter().map(|at| Kind::ALL[at]).collect();
            kinds.dedup();
            let (every, duration) = (Duration::from_millis(every_ms), Duration::from_secs(duration_s));
            let schedule = Schedule::random(&Draw { seed, kinds: kinds.clone(), every, duration, slots });
            for pair in schedule.faults.windows(2) {
                prop_assert!(pair[0].at + pair[0].lasts <= pair[1].at, "{:?}", pair);
            }
            if let Some(last) = schedule.faults.last() {
                prop_assert!(last.at + last.lasts <= duration);
                let read = Schedule::parse("printed", &schedule.to_string(), &kinds, slots);
                prop_assert_eq!(read.map(|read| read.faults), Ok(schedule.faults));
            }
        }
    }

    #[test]
    fn every_fault_of_a_file_is_told_with_its_line() {
        let text = "# ours\n\n5s kill slot=1\n4s kill slot=0\n6s explode\n7s kill\n8s stop slot=0\n9 kill slot=0\n10s kill slot=2\n\
                    11s pause slot=0 for=2s\n12s agent-kill slot=1\n13s kill slot=0 for=1s\n14s kill slot=0 hard\n15s\n";
        let kinds = [Kind::Kill, Kind::Stop, Kind::AgentKill];
        let error = Schedule::parse("a.txt", text, &kinds, 2).expect_err("most of it is wrong");
        let says = [
            "a.txt:4: earlier than the line before",
            "a.txt:5: there is no fault \"explode\"",
            "a.txt:6: kill needs a slot",
            "a.txt:7: stop needs a time",
            "a.txt:8: \"9\" is no time",
            "a.txt:9: slot=2: the group has slots 0 to 1",
            "a.txt:10: pause is not among --faults",
            "a.txt:11: agent-kill is no slot's",
            "a.txt:12: kill is not undone",
            "a.txt:13: \"hard\": known are",
            "a.txt:14: a fault is missing",
        ];
        assert_eq!(error.lines.len(), says.len(), "{error}");
        for (line, says) in error.lines.iter().zip(says) {
            assert!(line.starts_with(says), "{line}");
        }
        assert!(Schedule::parse("a.txt", "# nothing\n", &kinds, 2).is_err());
        let good = Schedule::parse("a.txt", "1.5s kill slot=1 # the first\n2m stop slot=0 for=250ms\n", &kinds, 2);
        let good = good.expect("a schedule");
        assert_eq!(good.to_string(), "1.500s kill slot=1\n120.000s stop slot=0 for=0.250s\n");
        assert_eq!(good.duration, Duration::from_millis(125_250));
    }
}
