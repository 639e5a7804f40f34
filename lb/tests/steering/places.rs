//! A slot's two places for listeners in shards' hands: the one takes over from the other by one word, and nobody is lost.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, Scope, ScopedJoinHandle},
    time::Duration,
};

use sherd_lb::{
    cells::Cells,
    front::{Front, FrontConfig, Path, Place, SlotError},
    sockdiag,
    table::{Choice, Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::{Need, eventually, in_new_netns, needs};
use socket2::{Domain, SockRef, Socket, Type};

use super::{
    adopting::{copies, set_version},
    migrating::{read_hellos, say_hello},
    traffic::{Listeners, add_v6_clients, connect, connect_many, loopback, on_cpu},
};

/// Where a connection is accepted.
type At = (Choice, Path);

/// How many were answered from each place.
type Answers = HashMap<u8, u64>;

const SOON: Duration = Duration::from_secs(20);
/// What a shard is told when it is to accept no more.
const STOP: usize = usize::MAX;
/// No power of two: a slot's places are so many apart.
const MAX_SLOTS: u16 = 5;
const SLOT: SlotIndex = SlotIndex(3);
const OTHER: SlotIndex = SlotIndex(1);
const A: Path = Path::Direct(Place::A);
const B: Path = Path::Direct(Place::B);

fn alone(test: &str, body: impl FnOnce() + Send + 'static) {
    if needs(test, &[Need::Root, Need::Bpf]) {
        in_new_netns(body);
    }
}

/// A published address with these slots in service, on the relay path.
fn publish(policy: Policy, v6: bool, slots: &[SlotIndex]) -> Front {
    publish_with(Cells::create().expect("bpf is permitted"), policy, v6, slots)
}

fn publish_with(cells: Arc<Cells>, policy: Policy, v6: bool, slots: &[SlotIndex]) -> Front {
    let config = FrontConfig { cells: Some(cells), max_slots: MAX_SLOTS, ..FrontConfig::new((loopback(v6), 0).into()) };
    let table = SteeringTable::flat(policy, slots.iter().copied());
    let mut front = Front::open(&config, &table).expect("a free port");
    assert_eq!(front.places(), Place::ALL);
    for slot in slots {
        front.add_slot(*slot).expect("the address is ours");
        front.set_in(*slot, true).expect("it has a listener");
    }
    front
}

/// As the guard's maker makes them, without the guard.
fn bound(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    if address.is_ipv6() {
        socket.set_only_v6(true).expect("an option");
    }
    socket.set_reuse_address(true).expect("an option");
    socket.set_reuse_port(true).expect("an option");
    socket.set_nonblocking(true).expect("a flag");
    socket.bind(&address.into()).expect("our own address");
    socket.into()
}

/// A shard's listener, which nobody else has.
fn join(front: &mut Front, slot: SlotIndex, place: Place) -> TcpListener {
    let listener = bound(front.address());
    front.join_direct(slot, place, listener.as_fd(), 1024).expect("the address is ours");
    listener
}

fn cookie(listener: &TcpListener) -> u64 {
    SockRef::from(listener).cookie().expect("a socket")
}

/// The front's own listeners, and those of shards.
fn listeners(front: &Front, direct: Vec<(SlotIndex, Path, TcpListener)>) -> Listeners<At> {
    let own = Listeners::of(front).0.into_iter().map(|(choice, listener)| ((choice, Path::Relay), listener));
    let direct = direct.into_iter().map(|(slot, path, listener)| ((Choice::Slot(slot), path), listener));
    Listeners(own.chain(direct).collect())
}

fn close(listeners: &mut Listeners<At>, slot: SlotIndex, path: Path) {
    let before = listeners.0.len();
    listeners.0.retain(|(at, _)| *at != (Choice::Slot(slot), path));
    assert_eq!(listeners.0.len(), before - 1);
}

/// Where so many new clients are accepted, and how many at each.
fn connect_and_count(front: &Front, listeners: &Listeners<At>, count: usize) -> Vec<(At, usize)> {
    let clients = connect_many(count, front.address());
    let mut counts: Vec<(At, usize)> = Vec::new();
    for (at, _) in listeners.accept(clients.len()).into_values() {
        match counts.iter_mut().find(|(there, _)| *there == at) {
            Some((_, count)) => *count += 1,
            None => counts.push((at, 1)),
        }
    }
    counts
}

fn check_next_syn(v6: bool) {
    let mut front = publish(Policy::Connection, v6, &[SLOT]);
    let direct = Place::ALL.map(|place| (SLOT, Path::Direct(place), join(&mut front, SLOT, place)));
    for (_, path, listener) in &direct {
        let Path::Direct(place) = *path else { panic!("{path:?}") };
        assert_eq!(front.direct_cookie(SLOT, place), Some(cookie(listener)));
    }
    let listeners = listeners(&front, direct.into());
    assert_eq!(front.path(SLOT), Path::Relay, "joining steers nothing");
    let mut picked = 0;
    for path in [Path::Relay, A, B, A, Path::Relay, B, Path::Relay] {
        front.set_path(SLOT, path).expect("there is such a place");
        assert_eq!(front.path(SLOT), path);
        assert_eq!(connect_and_count(&front, &listeners, 5), [((Choice::Slot(SLOT), path), 5)]);
        // Forced ones come where they are to, whatever the path is, and count for the slot.
        for place in Place::ALL {
            let client = Socket::new(Domain::for_address(front.address()), Type::STREAM, None).expect("a socket");
            client.bind(&SocketAddr::from((loopback(v6), 0)).into()).expect("a free port");
            let forced = front.force(SLOT, place).expect("there is such a place").bind(&client).expect("it is bound");
            client.connect_timeout(&front.address().into(), SOON).expect("it listens");
            drop(forced);
            let (at, _) = listeners.accept(1).into_values().next().expect("one");
            assert_eq!(at, (Choice::Slot(SLOT), Path::Direct(place)), "while the path is {path:?}");
        }
        picked += 7;
        let cells = front.cells().expect("there is room");
        let counted: Vec<u64> = (0..MAX_SLOTS).map(|slot| cells.counts(SlotIndex(slot)).picked).collect();
        assert_eq!(counted, (0..MAX_SLOTS).map(|slot| if slot == SLOT.0 { picked } else { 0 }).collect::<Vec<_>>());
    }
    // Leaving the place that gets nothing changes nothing; leaving the other one gives them to the worker.
    front.set_path(SLOT, A).expect("there is such a place");
    front.leave_direct(SLOT, Place::B).expect("it is there");
    assert_eq!((front.path(SLOT), front.direct_cookie(SLOT, Place::B)), (A, None));
    front.leave_direct(SLOT, Place::A).expect("it is there");
    assert_eq!((front.path(SLOT), front.direct_cookie(SLOT, Place::A)), (Path::Relay, None));
}

#[test]
fn the_next_syn_goes_to_the_place_that_is_pointed_at() {
    alone("the_next_syn_goes_to_the_place_that_is_pointed_at", || {
        check_next_syn(false);
        add_v6_clients();
        check_next_syn(true);
    });
}

#[test]
fn a_slot_that_the_array_has_no_place_for_is_refused() {
    alone("a_slot_that_the_array_has_no_place_for_is_refused", || {
        let mut front = publish(Policy::Connection, false, &[SLOT]);
        let (beyond, listener) = (SlotIndex(MAX_SLOTS), bound(front.address()));
        for place in Place::ALL {
            let joined = front.join_direct(beyond, place, listener.as_fd(), 16);
            assert!(matches!(joined, Err(SlotError::TooHigh { .. })), "{joined:?}");
            let set = front.set_path(beyond, Path::Direct(place));
            assert!(matches!(set, Err(SlotError::TooHigh { .. })), "{set:?}");
            assert_eq!((front.path(beyond), front.direct_cookie(beyond, place)), (Path::Relay, None));
            assert_eq!(front.force(beyond, place).expect_err("no place").kind(), ErrorKind::Unsupported);
        }
    });
}

/// Clients that connect all the time, each until it has the byte that says where it was accepted.
#[derive(Default)]
struct Load {
    ends: AtomicBool,
    /// By thread: connections that were begun, and that had their byte.
    progress: [(AtomicU64, AtomicU64); Load::CLIENTS],
    accepted: AtomicU64,
}

impl Load {
    const CLIENTS: usize = 8;

    /// One of the clients, until the load ends; how many were answered from each place.
    fn connect(&self, client: usize, address: SocketAddr) -> Answers {
        let (begun, answered) = &self.progress[client];
        let mut answers = Answers::new();
        while !self.ends.load(Ordering::SeqCst) {
            let n = begun.fetch_add(1, Ordering::SeqCst) as usize;
            let mut stream = connect(n * Self::CLIENTS + client, address).expect("it is published");
            stream.set_read_timeout(Some(SOON)).expect("a socket");
            let mut answer = [0];
            stream.read_exact(&mut answer).expect("it is accepted, and not reset");
            *answers.entry(answer[0]).or_default() += 1;
            answered.fetch_add(1, Ordering::SeqCst);
        }
        answers
    }

    /// A shard that accepts while more than `keep` wait at its listener, until it is to [`STOP`]; how many there were.
    fn accept(&self, listener: &TcpListener, place: Place, keep: &AtomicUsize) -> u64 {
        let mut count = 0;
        loop {
            let keep = keep.load(Ordering::SeqCst);
            if keep == STOP {
                return count;
            }
            if keep > 0 && queue_len(listener) <= keep {
                thread::yield_now();
                continue;
            }
            match listener.accept() {
                Ok((mut stream, _)) => {
                    stream.write_all(&[place as u8]).expect("its client waits for it");
                    count += 1;
                    self.accepted.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(error) => panic!("accept: {error}"),
            }
        }
    }

    fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        address: SocketAddr,
    ) -> Vec<ScopedJoinHandle<'scope, Answers>> {
        (0..Self::CLIENTS).map(|client| scope.spawn(move || self.connect(client, address))).collect()
    }

    /// No more clients; what all of them were answered.
    fn end(&self, clients: Vec<ScopedJoinHandle<'_, Answers>>) -> Answers {
        self.ends.store(true, Ordering::SeqCst);
        let mut all = Answers::new();
        for answers in clients.into_iter().map(|client| client.join().expect("none was lost")) {
            answers.into_iter().for_each(|(place, count)| *all.entry(place).or_default() += count);
        }
        all
    }

    fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    fn begun(&self) -> [u64; Self::CLIENTS] {
        self.progress.each_ref().map(|(begun, _)| begun.load(Ordering::SeqCst))
    }

    /// Clients whose connection is not answered and was begun at `begun` or before.
    fn waiting_since(&self, begun: &[u64; Self::CLIENTS]) -> usize {
        let answered = self.progress.iter().map(|(_, answered)| answered.load(Ordering::SeqCst));
        answered.zip(begun).filter(|(answered, begun)| answered < begun).count()
    }
}

fn check_faultless(front: &Front, connections: u64, migrated: u64) {
    let totals = front.totals();
    assert_eq!((totals.retries, totals.foreign, totals.anchored, totals.dropped), (0, 0, 0, 0), "{totals:?}");
    assert_eq!(totals.migrated, migrated, "{totals:?}");
    let reading = front.cells().expect("there is room").read(SLOT);
    // What was established at the one place and moved to the other counts once.
    assert_eq!((reading.counts.picked, reading.migrated), (connections, migrated));
}

#[test]
fn flips_under_load_lose_nobody() {
    alone("flips_under_load_lose_nobody", || {
        let mut front = publish(Policy::Connection, false, &[SLOT]);
        let direct = Place::ALL.map(|place| (place, join(&mut front, SLOT, place)));
        front.set_path(SLOT, A).expect("there is such a place");
        let (load, keep, address) = (Load::default(), AtomicUsize::new(0), front.address());
        let mut flips = 0;
        let (answers, accepted) = thread::scope(|scope| {
            let (load, keep) = (&load, &keep);
            let shards =
                direct.each_ref().map(|(place, listener)| scope.spawn(move || load.accept(listener, *place, keep)));
            let clients = load.start(scope, address);
            eventually("there were enough of both", SOON, || {
                for path in [B, A].repeat(10) {
                    front.set_path(SLOT, path).expect("there is such a place");
                    flips += 1;
                    thread::yield_now();
                }
                (flips >= 1000 && load.accepted() >= 2000).then_some(())
            });
            let answers = load.end(clients);
            keep.store(STOP, Ordering::SeqCst);
            (answers, shards.map(|shard| shard.join().expect("it accepts")))
        });
        assert_eq!(Place::ALL.map(|place| answers.get(&(place as u8)).copied().unwrap_or(0)), accepted);
        assert!(accepted.iter().all(|accepted| *accepted > 100), "{accepted:?} in {flips} flips");
        check_faultless(&front, accepted.iter().sum(), 0);
    });
}

/// A rollout again and again, with clients all the time: the new shard listens, gets the slot, and then the former one
/// closes its listener while some wait there.
#[test]
fn the_former_listener_closes_under_load_and_loses_nobody() {
    const WAIT: usize = Load::CLIENTS / 2;
    alone("the_former_listener_closes_under_load_and_loses_nobody", || {
        let mut front = publish(Policy::Connection, false, &[SLOT]);
        let (load, address) = (Load::default(), front.address());
        let (answers, accepted, moved) = thread::scope(|scope| {
            let load = &load;
            let start = |front: &mut Front, place: Place| {
                let (listener, keep) = (Arc::new(join(front, SLOT, place)), Arc::new(AtomicUsize::new(0)));
                front.set_path(SLOT, Path::Direct(place)).expect("there is such a place");
                let (accepts, keeps) = (Arc::clone(&listener), Arc::clone(&keep));
                (place, listener, keep, scope.spawn(move || load.accept(&accepts, place, &keeps)))
            };
            let mut shard = start(&mut front, Place::A);
            let clients = load.start(scope, address);
            let (mut accepted, mut moved) = (0, 0);
            for _ in 0..20 {
                let (place, former, keep, thread) = shard;
                keep.store(WAIT, Ordering::SeqCst);
                eventually("clients wait, others come and go", SOON, || (queue_len(&former) >= WAIT).then_some(()));
                shard = start(&mut front, place.other());
                let before = load.begun();
                keep.store(STOP, Ordering::SeqCst);
                accepted += thread.join().expect("it accepts");
                // No handshake is half done when it closes: the kernel's race of a last ACK with that is not ours.
                moved += eventually("the former has all that it will get", SOON, || {
                    let queued = queue_len(&former);
                    (load.waiting_since(&before) == queued).then_some(queued)
                });
                drop(former);
                eventually("who waited is answered", SOON, || (load.waiting_since(&before) == 0).then_some(()));
                assert_eq!(front.direct_cookie(SLOT, place), None, "the entry empties itself");
            }
            let answers = load.end(clients);
            shard.2.store(STOP, Ordering::SeqCst);
            (answers, accepted + shard.3.join().expect("it accepts"), moved)
        });
        assert_eq!(answers.into_values().sum::<u64>(), accepted);
        assert!(moved >= 20 * WAIT / 2, "{moved} waited");
        check_faultless(&front, accepted, moved as u64);
    });
}

fn queue_len(listener: &TcpListener) -> usize {
    let port = listener.local_addr().expect("it is bound").port();
    let listening = sockdiag::listeners(port).expect("sock_diag answers");
    listening.iter().find(|found| found.cookie == cookie(listener)).map_or(0, |found| found.queued as usize)
}

/// The listener that is not pointed at closes: what waits there goes to its own slot's other place.
fn check_moves_to_other_place(policy: Policy, v6: bool) {
    in_new_netns(move || {
        if v6 {
            add_v6_clients();
        }
        // By its load the other slot would get some.
        let slots: &[SlotIndex] = if policy == Policy::Balanced { &[SLOT] } else { &[SLOT, OTHER] };
        let mut front = publish(policy, v6, slots);
        let direct = Place::ALL.map(|place| (SLOT, Path::Direct(place), join(&mut front, SLOT, place)));
        front.set_path(SLOT, A).expect("there is such a place");
        let mut clients = on_cpu(0, || connect_many(100, front.address()));
        say_hello(&mut clients);
        let queued = queue_len(&direct[0].2);
        let mut listeners = listeners(&front, direct.into());
        assert!(queued > 20, "{policy}: {queued} of 100");
        front.set_path(SLOT, B).expect("there is such a place");
        // The CPU that closes is the one that migrates.
        on_cpu(0, || close(&mut listeners, SLOT, A));
        let got = read_hellos(listeners.accept(clients.len()));
        let there = got.values().filter(|at| **at == (Choice::Slot(SLOT), B)).count();
        assert_eq!((there, got.len()), (queued, 100), "{policy} v6 {v6}");
        assert!(!got.values().any(|(choice, _)| *choice == Choice::Anchor));
        let totals = front.totals();
        assert_eq!((totals.migrated, totals.retries), (queued as u64, 0), "{policy} v6 {v6} {totals:?}");
    });
}

#[test]
fn what_waits_at_the_former_listener_moves_to_the_slots_other_place() {
    if !needs("what_waits_at_the_former_listener_moves_to_the_slots_other_place", &[Need::Root, Need::Bpf]) {
        return;
    }
    for policy in [Policy::Connection, Policy::Client, Policy::Local, Policy::Balanced] {
        check_moves_to_other_place(policy, false);
        check_moves_to_other_place(policy, true);
    }
}

/// The new shard dies while the former still listens: as with any slot that is gone others take over, until the agent
/// points the slot at the former again.
fn check_new_one_dies(slots: &'static [SlotIndex], takes_over: At) {
    in_new_netns(move || {
        let mut front = publish(Policy::Connection, false, slots);
        let direct = Place::ALL.map(|place| (SLOT, Path::Direct(place), join(&mut front, SLOT, place)));
        front.set_path(SLOT, B).expect("there is such a place");
        let mut listeners = listeners(&front, direct.into());
        let mut clients = connect_many(60, front.address());
        say_hello(&mut clients);
        close(&mut listeners, SLOT, B);
        assert_eq!((front.direct_cookie(SLOT, Place::B), front.path(SLOT)), (None, B));
        clients.extend(connect_many(60, front.address()));
        say_hello(&mut clients[60..]);
        let got = read_hellos(listeners.accept(clients.len()));
        assert!(got.values().all(|at| *at == takes_over), "{got:?}");
        assert!(front.totals().retries > 0);
        front.set_path(SLOT, A).expect("there is such a place");
        let counts = connect_and_count(&front, &listeners, 60);
        assert!(counts.iter().any(|(at, _)| *at == (Choice::Slot(SLOT), A)), "{counts:?}");
        assert!(!counts.iter().any(|(at, _)| *at == (Choice::Anchor, Path::Relay)), "{counts:?}");
    });
}

#[test]
fn the_new_listener_dies_while_the_former_still_listens() {
    if !needs("the_new_listener_dies_while_the_former_still_listens", &[Need::Root, Need::Bpf]) {
        return;
    }
    check_new_one_dies(&[SLOT, OTHER], (Choice::Slot(OTHER), Path::Relay));
    check_new_one_dies(&[SLOT], (Choice::Anchor, Path::Relay));
}

/// The next agent finds which listener is which; of its own version or of another one.
fn check_adopted(version: Option<u32>) {
    let cells = Cells::create().expect("bpf is permitted");
    let mut front = publish_with(Arc::clone(&cells), Policy::Connection, false, &[SLOT, OTHER]);
    let direct = [(SLOT, Place::A), (SLOT, Place::B), (OTHER, Place::B)];
    let direct = direct.map(|(slot, place)| (slot, Path::Direct(place), join(&mut front, slot, place)));
    front.set_path(SLOT, B).expect("there is such a place");
    let cookies = |front: &Front| [SLOT, OTHER].map(|slot| Place::ALL.map(|place| front.direct_cookie(slot, place)));
    let (before, address) = (cookies(&front), front.address());
    assert_eq!(before, [[Some(cookie(&direct[0].2)), Some(cookie(&direct[1].2))], [None, Some(cookie(&direct[2].2))]]);
    let fds = copies(&front);
    drop(front);
    version.into_iter().for_each(|version| set_version(&fds, version));
    let table = SteeringTable::flat(Policy::Connection, [SLOT, OTHER]);
    let config = FrontConfig { cells: Some(cells), ..FrontConfig::new(address) };
    let mut front = Front::adopt(fds, &config, &table).expect("all is there");
    assert_eq!((cookies(&front), front.places()), (before, &Place::ALL[..]), "of version {version:?}");
    assert_eq!((front.path(SLOT), front.path(OTHER)), (B, Path::Relay));
    let mut listeners = listeners(&front, direct.into());
    let is_of = |counts: Vec<(At, usize)>, path| {
        assert_eq!(counts.len(), 2, "{counts:?}");
        assert!(counts.iter().any(|(at, _)| *at == (Choice::Slot(SLOT), path)), "{counts:?}");
        assert!(counts.iter().any(|(at, _)| *at == (Choice::Slot(OTHER), Path::Relay)), "{counts:?}");
    };
    is_of(connect_and_count(&front, &listeners, 60), B);
    front.set_path(SLOT, A).expect("there is such a place");
    is_of(connect_and_count(&front, &listeners, 60), A);
    // The shards' listeners are known to be ours: another one joins beside them.
    let joined = join(&mut front, OTHER, Place::A);
    assert_eq!(front.direct_cookie(OTHER, Place::A), Some(cookie(&joined)));
    // And the kernel still finds the slot's other place by itself.
    let _clients = connect_many(60, address);
    front.set_path(SLOT, B).expect("there is such a place");
    close(&mut listeners, SLOT, A);
    let there = listeners.accept(60);
    assert!(there.values().any(|(at, _)| *at == (Choice::Slot(SLOT), B)));
}

#[test]
fn both_places_are_found_again() {
    if !needs("both_places_are_found_again", &[Need::Root, Need::Bpf, Need::Program("perl")]) {
        return;
    }
    in_new_netns(|| [None, Some(3), Some(99)].into_iter().for_each(check_adopted));
}
