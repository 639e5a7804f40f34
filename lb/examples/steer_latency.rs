//! How long steering updates take until the next SYN obeys them: `steer_latency SLOTS ROUNDS` prints a line for each, in
//! nanoseconds: `open` for an address with all its slots, `in` for `set_in`, `table` for `set_table`. Every connection that begins
//! after an update must obey it, so an update is obeyed when its call returns; one that isn't fails the run. `set_table` writes
//! the whole table before it flips. Needs root and bpf(2). `sherd-bench steer` runs it for 1 to 256 slots.

use std::{
    env,
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use sherd_lb::{
    front::{Front, FrontConfig},
    table::{Policy, SlotIndex, SteeringTable},
};

type Failure = Box<dyn std::error::Error>;

const MOST_SLOTS: u16 = 256;

fn main() -> Result<(), Failure> {
    let usage = "usage: steer_latency SLOTS ROUNDS";
    let words: Vec<String> = env::args().skip(1).collect();
    let [slots, rounds] = &*words else { return Err(usage.into()) };
    let slots = slots.parse().ok().filter(|slots| (1..=MOST_SLOTS).contains(slots)).ok_or(usage)?;
    measure(slots, rounds.parse()?)
}

fn measure(slots: u16, rounds: usize) -> Result<(), Failure> {
    let all: Vec<_> = (0..slots).map(SlotIndex).collect();
    // Two tables whose answers differ: one without slot 0.
    let with = SteeringTable::flat(Policy::Connection, all.clone());
    let mut without = with.clone();
    without.slots[0].weight = 0;
    let started = Instant::now();
    let config = FrontConfig { max_slots: MOST_SLOTS, ..FrontConfig::new(([127, 0, 0, 1], 0).into()) };
    let mut front = Front::open(&config, &with)?;
    for slot in &all {
        front.add_slot(*slot)?;
        front.set_in(*slot, true)?;
    }
    println!("open {}", started.elapsed().as_nanos());
    let slot0 = TcpListener::from(front.listener(SlotIndex(0)).ok_or("it was added")?.try_clone_to_owned()?);
    let anchor = TcpListener::from(front.anchor().try_clone_to_owned()?);
    for round in 0..rounds {
        let in_service = round % 2 == 1;
        let at = Instant::now();
        front.set_in(SlotIndex(0), in_service)?;
        println!("in {}", at.elapsed().as_nanos());
        connect_once(&front, &slot0, &anchor, in_service)?;
    }
    for round in 0..rounds {
        let takes = round % 2 == 1;
        let at = Instant::now();
        front.set_table(if takes { &with } else { &without })?;
        println!("table {}", at.elapsed().as_nanos());
        connect_once(&front, &slot0, &anchor, takes)?;
    }
    Ok(())
}

/// One connection right after an update; slot 0 may only have it if it takes connections.
fn connect_once(front: &Front, slot0: &TcpListener, anchor: &TcpListener, takes: bool) -> Result<(), Failure> {
    let client = TcpStream::connect(front.address())?;
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
    Ok(())
}
