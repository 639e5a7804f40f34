//! How long steering updates take until the next SYN obeys them: `set_in`, `set_table`, and opening an address, for
//! 1 to 256 slots. Needs root and bpf(2). Every connection that begins after an update must obey it, so an update is obeyed
//! when its call returns: that time has a limit for `set_in`. `set_table` writes the whole table before it flips.

use std::{
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use sherd_lb::{
    front::{Front, FrontConfig},
    table::{Policy, SlotIndex, SteeringTable},
};

const ROUNDS: usize = 200;
/// From `set_in` until the next SYN obeys, 99 of 100 times.
const LATEST: Duration = Duration::from_micros(50);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("slots  open+add      set_in p50/p99          set_table p50/p99       connect p50 (for scale)");
    let mut latest = Duration::ZERO;
    for slots in [1u16, 2, 4, 16, 64, 256] {
        latest = latest.max(measure(slots)?);
    }
    let word = if latest <= LATEST { "held" } else { "NOT held" };
    println!("{word}: the next SYN obeys {latest:.1?} after a slot is taken in or out, 99 of 100 times (≤ {LATEST:?})");
    Ok(())
}

/// Gives the 99th percentile of `set_in`.
fn measure(slots: u16) -> Result<Duration, Box<dyn std::error::Error>> {
    let all: Vec<_> = (0..slots).map(SlotIndex).collect();
    // Two tables whose answers differ: one without slot 0.
    let with = SteeringTable::flat(Policy::Connection, all.clone());
    let mut without = with.clone();
    without.slots[0].weight = 0;
    let started = Instant::now();
    let config = FrontConfig { max_slots: 256, ..FrontConfig::new(([127, 0, 0, 1], 0).into()) };
    let mut front = Front::open(&config, &with)?;
    for slot in &all {
        front.add_slot(*slot)?;
        front.set_in(*slot, true)?;
    }
    let opened = started.elapsed();
    let slot0 = TcpListener::from(front.listener(SlotIndex(0)).ok_or("it was added")?.try_clone_to_owned()?);
    let anchor = TcpListener::from(front.anchor().try_clone_to_owned()?);
    let (mut in_times, mut table_times, mut connect_times) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let in_service = round % 2 == 1;
        let at = Instant::now();
        front.set_in(SlotIndex(0), in_service)?;
        in_times.push(at.elapsed());
        connect_times.push(connect_once(&front, &slot0, &anchor, in_service)?);
    }
    for round in 0..ROUNDS {
        let takes = round % 2 == 1;
        let at = Instant::now();
        front.set_table(if takes { &with } else { &without })?;
        table_times.push(at.elapsed());
        connect_once(&front, &slot0, &anchor, takes)?;
    }
    let show = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        format!("{:>9.1?}/{:>9.1?}", times[ROUNDS / 2], times[ROUNDS * 99 / 100])
    };
    let (in_shown, table_times) = (show(&mut in_times), show(&mut table_times));
    connect_times.sort_unstable();
    println!("{slots:>5}  {opened:>8.1?}  {in_shown:>20}  {table_times:>20}  {:>9.1?}", connect_times[ROUNDS / 2]);
    Ok(in_times[ROUNDS * 99 / 100])
}

/// One connection right after an update; slot 0 may only have it if it takes connections.
fn connect_once(
    front: &Front,
    slot0: &TcpListener,
    anchor: &TcpListener,
    takes: bool,
) -> Result<Duration, Box<dyn std::error::Error>> {
    let at = Instant::now();
    let client = TcpStream::connect(front.address())?;
    let connected = at.elapsed();
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    if !takes && slot0.accept().is_ok() {
        return Err("slot 0 got a connection right after it was taken out".into());
    }
    for listener in [slot0, anchor] {
        match listener.accept() {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    drop(client);
    Ok(connected)
}
