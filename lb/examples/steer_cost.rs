//! What steering one connection costs, for 1 to 256 slots and the policies that can be told apart: the program's own time as the
//! kernel counts it, and connect(2) from end to end. The same without counting shows the floor: the first touch of a listener's
//! own cache lines, which the kernel's choice pays too, outside of any program, and the table's entry. Needs root and bpf(2),
//! and turns `kernel.bpf_stats_enabled` on meanwhile.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use sherd_lb::{
    cells::Cells,
    front::{Front, FrontConfig},
    table::{Policy, SlotIndex, SteeringTable},
};
use socket2::{Domain, Socket, Type};

type Failure = Box<dyn std::error::Error>;

const SLOTS: [u16; 5] = [1, 4, 16, 64, 256];
/// Each size of each policy has a turn in each, so that a drift hits all of them.
const BLOCKS: usize = 12;
const CONNECTIONS: usize = 500;
const AT_A_TIME: usize = 50;
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// BPF_PROG_TYPE_SK_REUSEPORT of <linux/bpf.h>.
const SK_REUSEPORT: u64 = 21;
const MOST_GROWTH: f64 = 1.05;

/// Counting programs' time, as it was before when dropped.
struct Counting {
    before: String,
}

impl Counting {
    fn on() -> std::io::Result<Self> {
        let before = fs::read_to_string(SWITCH)?;
        fs::write(SWITCH, "1")?;
        Ok(Self { before })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, &self.before) {
            eprintln!("{SWITCH} was {} and is left at 1: {error}", self.before.trim());
        }
    }
}

fn main() -> Result<(), Failure> {
    let _counting = Counting::on()?;
    println!("medians of {BLOCKS} blocks of {CONNECTIONS} connections");
    println!("policy      slots  steering ns/connection  connect ns");
    for (policy, counting) in [
        (Policy::Connection, Counted::Nothing),
        (Policy::Connection, Counted::Connections),
        (Policy::Client, Counted::Connections),
        (Policy::Balanced, Counted::Connections),
    ] {
        let mut found = [const { Vec::new() }; SLOTS.len()];
        for _ in 0..BLOCKS {
            for (slots, found) in SLOTS.iter().zip(&mut found) {
                found.push(measure(policy, counting, *slots)?);
            }
        }
        let costs: Vec<(f64, f64)> = found
            .iter()
            .map(|samples| {
                let of = |value: fn(&(f64, f64)) -> f64| median(samples.iter().map(value).collect());
                (of(|sample| sample.0), of(|sample| sample.1))
            })
            .collect();
        for (slots, (steering, connect)) in SLOTS.iter().zip(&costs) {
            println!("{:<12}{slots:>5}{steering:>24.0}{connect:>12.0}", policy.to_string());
        }
        let growth = |value: fn(&(f64, f64)) -> f64| value(&costs[SLOTS.len() - 1]) / value(&costs[0]);
        let (steering, connect) = (growth(|cost| cost.0), growth(|cost| cost.1));
        let word = match counting {
            Counted::Nothing => "floor",
            Counted::Connections if steering <= MOST_GROWTH => "held",
            Counted::Connections => "NOT held",
        };
        println!(
            "{word}: {policy} costs {steering:.3} times as much for 256 slots as for 1 (≤ {MOST_GROWTH}); connect {connect:.3}"
        );
    }
    Ok(())
}

/// What is counted of slots.
#[derive(Clone, Copy)]
enum Counted {
    Nothing,
    Connections,
}

/// Nanoseconds of the program for one connection, and of connect(2).
fn measure(policy: Policy, counting: Counted, slots: u16) -> Result<(f64, f64), Failure> {
    let table = SteeringTable::flat(policy, (0..slots).map(SlotIndex));
    let cells = match counting {
        Counted::Nothing => None,
        Counted::Connections => Some(Cells::create()?),
    };
    let config = FrontConfig { cells, max_slots: 256, ..FrontConfig::new(([127, 0, 0, 1], 0).into()) };
    let mut front = Front::open(&config, &table)?;
    for slot in (0..slots).map(SlotIndex) {
        front.add_slot(slot)?;
        front.set_in(slot, true)?;
    }
    let listeners: Vec<TcpListener> = (0..slots)
        .map(|slot| Ok(TcpListener::from(front.listener(SlotIndex(slot)).ok_or("it was added")?.try_clone_to_owned()?)))
        .collect::<Result<_, Failure>>()?;
    // Once uncounted: what a slot's first connection costs is not what steering costs.
    connect_all(&front, &listeners)?;
    let before = counted()?;
    let connecting = connect_all(&front, &listeners)?;
    let after = counted()?;
    let runs = after.1 - before.1;
    if runs < CONNECTIONS as u64 {
        return Err(format!("the program ran {runs} times for {CONNECTIONS} connections").into());
    }
    Ok(((after.0 - before.0) as f64 / runs as f64, connecting.as_nanos() as f64 / CONNECTIONS as f64))
}

/// Gives the time in connect(2).
fn connect_all(front: &Front, listeners: &[TcpListener]) -> Result<Duration, Failure> {
    let mut connecting = Duration::ZERO;
    for block in 0..CONNECTIONS / AT_A_TIME {
        let bound = (0..AT_A_TIME).map(|n| client(block * AT_A_TIME + n)).collect::<Result<Vec<_>, _>>()?;
        let began = Instant::now();
        bound.iter().try_for_each(|client| client.connect(&front.address().into()))?;
        connecting += began.elapsed();
        bound.iter().try_for_each(|client| client.set_linger(Some(Duration::ZERO)))?;
        drop(bound);
        // Non-blocking: whoever is there is taken.
        listeners.iter().for_each(|listener| while listener.accept().is_ok() {});
    }
    Ok(connecting)
}

/// Of one of many clients: by one alone the policy `client` would have one slot take all.
fn client(n: usize) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, (n >> 8) as u8, n as u8 | 1], 0)).into())?;
    Ok(socket)
}

/// Nanoseconds and runs of this process's steering programs (bpf_prog_show_fdinfo).
fn counted() -> Result<(u64, u64), Failure> {
    let (mut nanos, mut runs) = (0, 0);
    for entry in fs::read_dir("/proc/self/fdinfo")?.flatten() {
        // The descriptor of this very listing is gone by now.
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
        };
        if field("prog_type") == Some(SK_REUSEPORT) {
            nanos += field("run_time_ns").ok_or("the kernel tells no run_time_ns")?;
            runs += field("run_cnt").ok_or("the kernel tells no run_cnt")?;
        }
    }
    Ok((nanos, runs))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
