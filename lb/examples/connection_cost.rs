//! What one connection costs on the direct path, ingredient by ingredient, against the same listeners that share their port by
//! SO_REUSEPORT alone: CPU time of client and server together, in one thread, and the programs' own runs and time as the
//! kernel counts them. Needs root, bpf(2) and cgroup v2; turns `kernel.bpf_stats_enabled` on for the second part.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use sherd_lb::{
    cells::Cells,
    front::{Front, FrontConfig, Path as AcceptPath, Place},
    guard::{Guard, cgroup2_mount},
    table::{Policy, SlotIndex, SteeringTable},
};
use socket2::{Domain, SockRef, Socket, Type};

type Failure = Box<dyn std::error::Error>;

const SLOTS: u16 = 2;
const CONNECTIONS: usize = 200;
const WARM_UP: usize = 2000;
const ROUNDS: usize = 100;
/// Types of <linux/bpf.h>.
const PROGRAMS: [(u64, &str); 2] = [(21, "steering"), (13, "accounting")];
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// What is added to listeners that share a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ingredient {
    Nothing,
    /// The same again: how far two that are equal are apart.
    NothingAgain,
    Steering,
    Cells,
    /// The guard's programs on the listeners' cgroup, which has no cell.
    Guard,
    /// All of it, as the agent has it.
    Direct,
}

const INGREDIENTS: [Ingredient; 6] = [
    Ingredient::Nothing,
    Ingredient::NothingAgain,
    Ingredient::Steering,
    Ingredient::Cells,
    Ingredient::Guard,
    Ingredient::Direct,
];

impl Drop for Contestant {
    fn drop(&mut self) {
        // Before its cgroup goes.
        if let Some(Err(error)) = self.guard.as_ref().map(Guard::remove) {
            eprintln!("a guard stays: {error}");
        }
    }
}

/// A cgroup whose programs go with it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Result<Self, Failure> {
        let mount = cgroup2_mount().ok_or("no cgroup v2 is mounted")?;
        let path = mount.join(format!("sherd-cost-{}-{name}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// This process is in it while `body` makes sockets.
    fn inside<T>(path: &Path, body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).ok_or("no cgroup v2")?.to_owned();
        let mount = cgroup2_mount().ok_or("no cgroup v2 is mounted")?;
        let join = |path: &Path| fs::write(path.join("cgroup.procs"), "0");
        join(path)?;
        let made = body();
        join(&mount.join(own.trim_start_matches('/')))?;
        made
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

/// Who takes part, and what it needs to live.
struct Contestant {
    ingredient: Ingredient,
    address: SocketAddr,
    listeners: Vec<TcpListener>,
    _front: Option<Front>,
    guard: Option<Guard>,
    _cgroup: Cgroup,
}

impl Contestant {
    fn new(ingredient: Ingredient) -> Result<Self, Failure> {
        let cgroup = Cgroup::new(&format!("{ingredient:?}"))?;
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let cells = matches!(ingredient, Ingredient::Cells | Ingredient::Direct).then(Cells::create).transpose()?;
        let steers = matches!(ingredient, Ingredient::Steering | Ingredient::Cells | Ingredient::Direct);
        let table = SteeringTable::flat(Policy::Connection, (0..SLOTS).map(SlotIndex));
        let config = FrontConfig { cells: cells.clone(), ..FrontConfig::new(any) };
        let mut front = steers.then(|| Front::open(&config, &table)).transpose()?;
        let guards = matches!(ingredient, Ingredient::Guard | Ingredient::Direct);
        let guard = guards.then(|| Guard::establish(&cgroup.0, "guard", cells.as_deref()));
        let mut guard = guard.transpose()?;
        let mut address = front.as_ref().map_or(any, Front::address);
        let mut bound = Vec::new();
        for slot in (0..SLOTS).map(SlotIndex) {
            let cell = front.as_ref().and_then(Front::cells).and_then(|cells| cells.number(slot));
            let place = match (&mut guard, cell) {
                (Some(guard), Some(cell)) => {
                    guard.count_in(cell)?;
                    guard.cgroup().join(cell.to_string())
                }
                (guard, _) => guard.as_ref().map_or(&*cgroup.0, Guard::cgroup).to_owned(),
            };
            let socket = Cgroup::inside(&place, || bind(address))?;
            address = local_address(&socket)?;
            bound.push(socket);
        }
        for (slot, socket) in (0..SLOTS).map(SlotIndex).zip(&bound) {
            guard.iter_mut().try_for_each(|guard| guard.mark(socket.as_fd()))?;
            match &mut front {
                None => socket.listen(1024)?,
                Some(front) => {
                    front.add_slot(slot)?;
                    front.join_direct(slot, Place::A, socket.as_fd(), 1024)?;
                    front.set_path(slot, AcceptPath::Direct(Place::A))?;
                    front.set_in(slot, true)?;
                }
            }
        }
        let listeners = bound.into_iter().map(|socket| TcpListener::from(OwnedFd::from(socket))).collect();
        Ok(Self { ingredient, address, listeners, _front: front, guard, _cgroup: cgroup })
    }

    /// CPU nanoseconds of this thread for each of so many connections.
    fn measure(&self, connections: usize) -> Result<f64, Failure> {
        let before = thread_cpu()?;
        for n in 0..connections {
            self.visit(n)?;
        }
        Ok((thread_cpu()? - before).as_nanos() as f64 / connections as f64)
    }

    /// One connection with one short exchange, which the server closes, as HTTP's `Connection: close`.
    fn visit(&self, n: usize) -> Result<(), Failure> {
        let mut buffer = [0; 256];
        let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // Each source address has ports of its own.
        client.bind(&SocketAddr::from(([127, 1, (n >> 8) as u8, n as u8], 0)).into())?;
        client.connect(&self.address.into())?;
        let mut client = TcpStream::from(OwnedFd::from(client));
        client.write_all(&[1; 100])?;
        let mut accepted = self.accept()?;
        accepted.set_nodelay(true)?;
        accepted.read_exact(&mut buffer[..100])?;
        accepted.write_all(&buffer[..200])?;
        drop(accepted);
        while client.read(&mut buffer)? > 0 {}
        Ok(())
    }

    fn accept(&self) -> Result<TcpStream, Failure> {
        for listener in &self.listeners {
            match listener.accept() {
                Ok((accepted, _)) => {
                    accepted.set_nonblocking(false)?;
                    return Ok(accepted);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err("nobody has the connection".into())
    }
}

fn main() -> Result<(), Failure> {
    let rounds = std::env::args().nth(1).map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    let contestants: Vec<Contestant> = INGREDIENTS.into_iter().map(Contestant::new).collect::<Result<_, _>>()?;
    for contestant in &contestants {
        contestant.measure(WARM_UP)?;
    }
    let mut samples = vec![Vec::new(); contestants.len()];
    for round in 0..rounds {
        for place in 0..contestants.len() {
            // Everybody comes after everybody else.
            let who = (place + round) % contestants.len();
            samples[who].push(contestants[who].measure(CONNECTIONS)?);
        }
    }
    println!(
        "{rounds} rounds of {CONNECTIONS} connections; median CPU of a connection, and of the paired differences to nothing"
    );
    println!("ingredient      ns       + ns   (quartiles)      of nothing");
    for (contestant, own) in contestants.iter().zip(&samples) {
        let differences: Vec<f64> = own.iter().zip(&samples[0]).map(|(own, nothing)| own - nothing).collect();
        let ratios: Vec<f64> = own.iter().zip(&samples[0]).map(|(own, nothing)| own / nothing).collect();
        let [low, middle, high] = quartiles(differences);
        println!(
            "{:<14}{:>8.0}{:>9.0}   ({:.0} to {:.0}){:>12.3}",
            format!("{:?}", contestant.ingredient),
            quartiles(own.clone())[1],
            middle,
            low,
            high,
            quartiles(ratios)[1]
        );
    }
    let direct = contestants.last().ok_or("there are some")?;
    print_programs(direct)
}

/// What runs for one connection.
fn print_programs(direct: &Contestant) -> Result<(), Failure> {
    let before_switch = fs::read_to_string(SWITCH)?;
    fs::write(SWITCH, "1")?;
    let before = programs();
    let measured = direct.measure(WARM_UP);
    let after = programs();
    fs::write(SWITCH, before_switch)?;
    measured?;
    let (before, after) = (before?, after?);
    println!("program       runs/connection  ns/run (counting them included)");
    for (kind, name) in PROGRAMS {
        let of = |all: &BTreeMap<u64, (u64, u64)>| all.get(&kind).copied().unwrap_or_default();
        let (nanos, runs) = (of(&after).0 - of(&before).0, of(&after).1 - of(&before).1);
        println!("{name:<14}{:>15.2}{:>8.0}", runs as f64 / WARM_UP as f64, nanos as f64 / runs.max(1) as f64);
    }
    Ok(())
}

/// Nanoseconds and runs of the programs that this process has a descriptor of, by their type (bpf_prog_show_fdinfo).
fn programs() -> Result<BTreeMap<u64, (u64, u64)>, Failure> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo")?.flatten() {
        // The descriptor of this very listing is gone by now.
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
        };
        let Some(kind) = field("prog_type") else { continue };
        let total: &mut (u64, u64) = found.entry(kind).or_default();
        total.0 += field("run_time_ns").ok_or("the kernel tells no run_time_ns")?;
        total.1 += field("run_cnt").ok_or("the kernel tells no run_cnt")?;
    }
    Ok(found)
}

fn bind(address: SocketAddr) -> Result<Socket, Failure> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn local_address(socket: &Socket) -> Result<SocketAddr, Failure> {
    Ok(SockRef::from(socket).local_addr()?.as_socket().ok_or("of TCP")?)
}

fn thread_cpu() -> nix::Result<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from)
}

fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}
