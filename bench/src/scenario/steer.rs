//! `sherd-bench steer`: how long an update of the steering takes until the next SYN obeys it, and what steering a connection
//! costs, for 1 to 256 slots; owns the order of things.

use std::{
    io,
    path::PathBuf,
    thread,
    time::{Duration, SystemTime},
};

use nix::unistd::Pid;

use super::{
    ComparisonError,
    told::Told,
    trial::{Bystanders, at_most},
};
use crate::{
    analysis::{Verdict, VerdictWord},
    contestant::Probe,
    interrupt::Interrupt,
    measure::raise_open_files,
    report::{Findings, Origin, Progress, Series},
    stats::{Estimate, Random, median, quantile, ratio},
};

const LATENCY: &str = "steer_latency";
const COST: &str = "steer_cost";
const UNCOUNTED: &str = "uncounted";
const POLICIES: [&str; 4] = ["connection", "client", "balanced", UNCOUNTED];
/// From `set_in` until the next SYN obeys, 99 of 100 times.
const OBEYED_WITHIN_MICROS: f64 = 50.0;
/// For the most slots, in terms of the fewest.
const MOST_GROWTH: f64 = 1.05;
const MIN_BLOCKS: usize = 4;
/// How long the host is looked at before each block.
const BEFORE: Duration = Duration::from_millis(300);
/// More of the host's CPU time than this used by others, in percent, and caches are not what they are.
const MAX_FOREIGN_PERCENT: f64 = 5.0;
const OPEN_FILES: u64 = 20_000;

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the probes are, if not beside this program.
    pub probes: Option<PathBuf>,
    /// Numbers of slots, ascending, each 1 to 256; two at least.
    pub slots: Vec<u16>,
    /// Each number for each policy has a turn in each.
    pub blocks: usize,
    /// Updates of each kind, for each size, in each block.
    pub updates: usize,
    /// Where probes run.
    pub cpu: usize,
    /// Of orders.
    pub seed: u64,
    /// What the report says of where it comes from.
    pub origin: Origin,
}

/// What the probes found, by size.
#[derive(Default)]
struct Found {
    updates: Vec<Updates>,
    costs: Vec<Cost>,
    foreign_percent: Vec<f64>,
}

/// Microseconds, for one number of slots.
#[derive(Default, Clone)]
struct Updates {
    open: Vec<f64>,
    set_in: Vec<f64>,
    set_table: Vec<f64>,
}

/// Nanoseconds for one connection.
struct Cost {
    policy: &'static str,
    slots: u16,
    block: usize,
    steering: f64,
    connect: f64,
}

/// Runs it and reports.
pub fn run(options: &Options, progress: &mut Progress, interrupt: &Interrupt) -> Result<Findings, ComparisonError> {
    let started = SystemTime::now();
    raise_open_files(OPEN_FILES).map_err(|errno| ComparisonError::Host(errno.into()))?;
    let directory = options.probes.as_deref();
    let (latency, cost) = (Probe::find(LATENCY, directory)?, Probe::find(COST, directory)?);
    let mut found = Found { updates: vec![Updates::default(); options.slots.len()], ..Found::default() };
    let mut random = Random::new(options.seed);
    let mut sizes: Vec<usize> = (0..options.slots.len()).collect();
    let of_policy = |policy: &'static str| options.slots.iter().map(move |slots| (policy, *slots));
    let mut cases: Vec<(&'static str, u16)> = POLICIES.into_iter().flat_map(of_policy).collect();
    progress.restart();
    for block in 0..options.blocks {
        progress.step(block, options.blocks, "steering");
        // Before the probes: what they use is no bystander's.
        let others = Bystanders::of(vec![Pid::this()])?;
        thread::sleep(BEFORE);
        found.foreign_percent.push(others.percent()?);
        random.shuffle(&mut sizes);
        for size in &sizes {
            ended(interrupt)?;
            let text =
                asked(&latency, options.cpu, &[&options.slots[*size].to_string(), &options.updates.to_string()])?;
            found.updates[*size].take(&text)?;
        }
        random.shuffle(&mut cases);
        for (policy, slots) in &cases {
            ended(interrupt)?;
            let text = asked(&cost, options.cpu, &[policy, &slots.to_string()])?;
            found.costs.push(Cost::read(policy, *slots, block, &text)?);
        }
    }
    progress.clear();
    let mut told = Told::default();
    told.contestants.extend([latency.facts(LATENCY, "SLOTS UPDATES"), cost.facts(COST, "POLICY SLOTS")]);
    found.conclude(&options.slots, options.seed, &mut told);
    told.report("steer", &options.origin, started)
}

fn ended(interrupt: &Interrupt) -> Result<(), ComparisonError> {
    if interrupt.is_raised() { Err(ComparisonError::Interrupted) } else { Ok(()) }
}

fn asked(probe: &Probe, cpu: usize, arguments: &[&str]) -> Result<String, ComparisonError> {
    probe.run(cpu, arguments).map_err(ComparisonError::Host)
}

fn unread(text: &str) -> ComparisonError {
    ComparisonError::Host(io::Error::new(io::ErrorKind::InvalidData, format!("a probe printed {text:?}")))
}

impl Updates {
    fn take(&mut self, text: &str) -> Result<(), ComparisonError> {
        for line in text.lines() {
            let (what, nanos) = line.split_once(' ').ok_or_else(|| unread(line))?;
            let micros = nanos.parse::<f64>().map_err(|_| unread(line))? / 1e3;
            match what {
                "open" => self.open.push(micros),
                "in" => self.set_in.push(micros),
                "table" => self.set_table.push(micros),
                _ => return Err(unread(line)),
            }
        }
        Ok(())
    }
}

impl Cost {
    fn read(policy: &'static str, slots: u16, block: usize, text: &str) -> Result<Self, ComparisonError> {
        let numbers = text.split_once(' ').and_then(|(a, b)| Some((a.parse().ok()?, b.trim().parse().ok()?)));
        let (steering, connect) = numbers.ok_or_else(|| unread(text))?;
        Ok(Self { policy, slots, block, steering, connect })
    }
}

impl Found {
    fn conclude(self, slots: &[u16], seed: u64, told: &mut Told) {
        let mut set_in = Vec::new();
        for (slots, updates) in slots.iter().zip(self.updates) {
            let of = |what: &str, samples| Series::new(format!("{slots} slots: {what}"), samples);
            set_in.push(of("µs until the next SYN obeys that a slot is in or out", updates.set_in));
            told.series.push(set_in[set_in.len() - 1].clone());
            told.series.push(of("µs until the next SYN obeys another table", updates.set_table));
            told.series.push(of("µs to open an address with all its slots", updates.open));
        }
        let p99 = |series: &&Series| quantile(&series.samples, 0.99).unwrap_or(0.0);
        if let Some(worst) = set_in.iter().max_by(|a, b| p99(a).total_cmp(&p99(b))) {
            let target = format!("{}, 99 of 100", worst.title);
            told.verdicts.push(at_most(&target, worst, 0.99, OBEYED_WITHIN_MICROS, &self.foreign_percent));
        }
        let foreign = median(&self.foreign_percent).unwrap_or(0.0);
        let ends = (slots[0], slots[slots.len() - 1]);
        for policy in POLICIES {
            for slots in slots {
                let of_it = || self.costs.iter().filter(|cost| cost.policy == policy && cost.slots == *slots);
                let title = |what: &str| format!("{policy}, {slots} slots: ns of {what} for a connection");
                told.series.push(Series::new(title("steering"), of_it().map(|cost| cost.steering).collect()));
                told.series.push(Series::new(title("connect(2)"), of_it().map(|cost| cost.connect).collect()));
            }
            match growth(&self.costs, policy, ends, seed) {
                Some(found) if policy == UNCOUNTED => told.remarks.push(format!(
                    "without counting, which is the floor, steering for {} slots costs {:.3} ({:.3}–{:.3}) × that for {}",
                    ends.1, found.ratio, found.low, found.high, ends.0
                )),
                found => told.verdicts.push(judge(policy, ends, found, foreign)),
            }
        }
        told.series.push(Series::new("% of the CPU time used by others before", self.foreign_percent));
    }
}

/// Steering for the most slots, in terms of the fewest; the program's own time, which no other process is part of.
fn growth(costs: &[Cost], policy: &str, (fewest, most): (u16, u16), seed: u64) -> Option<Estimate> {
    let of = |slots: u16, block: usize| {
        let mut found = costs.iter().filter(|cost| cost.policy == policy && cost.slots == slots && cost.block == block);
        found.next().map(|cost| cost.steering)
    };
    let blocks = costs.iter().map(|cost| cost.block + 1).max()?;
    let pairs: Vec<(f64, f64)> = (0..blocks).filter_map(|block| Some((of(most, block)?, of(fewest, block)?))).collect();
    ratio(&pairs, seed)
}

fn judge(policy: &str, (fewest, most): (u16, u16), found: Option<Estimate>, foreign_percent: f64) -> Verdict {
    let target = format!("{policy}: steering for {most} slots costs at most {MOST_GROWTH} × that for {fewest}");
    let Some(Estimate { ratio, low, high, pairs }) = found else {
        let because = Some("there is no figure".into());
        return Verdict { target, found: String::new(), word: VerdictWord::Undecided, because };
    };
    let too_few = (pairs < MIN_BLOCKS).then(|| format!("{pairs} blocks are too few, {MIN_BLOCKS} would do"));
    let noisy = || format!("others used {foreign_percent:.1} % of the CPU time");
    let obstacle = too_few.or_else(|| (foreign_percent > MAX_FOREIGN_PERCENT).then(noisy));
    let (word, because) = match obstacle {
        Some(because) => (VerdictWord::Undecided, Some(because)),
        None if high <= MOST_GROWTH => (VerdictWord::Held, None),
        None if low > MOST_GROWTH => (VerdictWord::NotHeld, None),
        None => (VerdictWord::Undecided, Some("the interval lies across".into())),
    };
    Verdict { target, found: format!("{ratio:.3} ({low:.3}–{high:.3}) ×"), word, because }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_probes_print() {
        let mut updates = Updates::default();
        updates.take("open 2000\nin 500\nin 1500\ntable 3000\n").expect("good lines");
        assert_eq!((&*updates.open, &*updates.set_in, &*updates.set_table), (&[2.0][..], &[0.5, 1.5][..], &[3.0][..]));
        assert!(updates.take("in x").is_err() && updates.take("out 1").is_err());
        let cost = Cost::read("client", 4, 0, "123.4 5678.9\n").expect("two numbers");
        assert_eq!((cost.steering, cost.connect), (123.4, 5678.9));
        assert!(Cost::read("client", 4, 0, "123.4").is_err());
    }

    #[test]
    fn growth_is_judged_by_its_whole_interval() {
        let costs = |growth: f64, blocks: usize| -> Vec<Cost> {
            let cost = |slots, block, steering| Cost { policy: "client", slots, block, steering, connect: 1.0 };
            (0..blocks).flat_map(|block| [cost(1, block, 100.0), cost(256, block, 100.0 * growth)]).collect()
        };
        const ENDS: (u16, u16) = (1, 256);
        let word_with = |costs: &[Cost], foreign| judge("client", ENDS, growth(costs, "client", ENDS, 1), foreign).word;
        let word = |costs: &[Cost]| word_with(costs, 1.0);
        assert_eq!(word(&costs(1.04, 5)), VerdictWord::Held);
        assert_eq!(word(&costs(1.06, 5)), VerdictWord::NotHeld);
        assert_eq!(word(&costs(1.04, 3)), VerdictWord::Undecided);
        assert_eq!(word(&[]), VerdictWord::Undecided);
        assert_eq!(word_with(&costs(1.04, 5), 50.0), VerdictWord::Undecided);
    }
}
