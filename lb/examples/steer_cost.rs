//! What steering one connection costs, once: `steer_cost POLICY SLOTS` prints the program's own nanoseconds for a connection, as
//! the kernel counts them, and those of connect(2) from end to end. The policy `uncounted` is `connection` without counting: the
//! floor, which is the first touch of a listener's own cache lines, that the kernel's choice pays too, outside of any program,
//! and the table's entry. Needs root and bpf(2). `sherd-bench steer` runs it again and again.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use sherd_lb::{
    cells::Cells,
    front::{Front, FrontConfig, RunTime},
    table::{Policy, SlotIndex, SteeringTable},
};
use socket2::{Domain, Socket, Type};

type Failure = Box<dyn std::error::Error>;

const MOST_SLOTS: u16 = 256;
const CONNECTIONS: usize = 500;
const AT_A_TIME: usize = 50;
/// BPF_PROG_TYPE_SK_REUSEPORT of <linux/bpf.h>.
const SK_REUSEPORT: u64 = 21;

fn main() -> Result<(), Failure> {
    let usage = "usage: steer_cost connection|client|balanced|uncounted SLOTS";
    let words: Vec<String> = env::args().skip(1).collect();
    let [policy, slots] = &*words else { return Err(usage.into()) };
    let (policy, counted) = match &**policy {
        "connection" => (Policy::Connection, Counted::Connections),
        "client" => (Policy::Client, Counted::Connections),
        "balanced" => (Policy::Balanced, Counted::Connections),
        "uncounted" => (Policy::Connection, Counted::Nothing),
        _ => return Err(usage.into()),
    };
    let slots = slots.parse().ok().filter(|slots| (1..=MOST_SLOTS).contains(slots)).ok_or(usage)?;
    let _counting = RunTime::count()?;
    let (steering, connect) = measure(policy, counted, slots)?;
    println!("{steering:.1} {connect:.1}");
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
    let config = FrontConfig { cells, max_slots: MOST_SLOTS, ..FrontConfig::new(([127, 0, 0, 1], 0).into()) };
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
