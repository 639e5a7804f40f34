//! What the kernel counts of connections that are accepted from a guarded listener, and what it does to a socket that
//! listens without being one.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use sherd_lb::{
    cells::{ANSWER_BOUNDS_MICROS, CellReading, Cells, SlotCells},
    front::{Front, FrontConfig, Path, Place},
    graft::Holder,
    guard::{Guard, Maker, Operation},
    sockdiag,
    table::{Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::eventually;
use socket2::SockRef;

use super::rig::{Parent, SOON, alone, connection, local_address, start_maker};

const SLOT: SlotIndex = SlotIndex(1);

/// A published address with one slot, whose shard has a listener.
struct Published {
    front: Front,
    listener: OwnedFd,
    cells: Arc<Cells>,
    guard: Guard,
    maker: Maker,
    _parent: Parent,
}

/// The slot's listener as a shard gets it, in service.
fn take_in(front: &mut Front, guard: &mut Guard, maker: &Maker, slot: SlotIndex) -> OwnedFd {
    front.add_slot(slot).expect("the address is ours");
    let cell = front.cells().expect("there is room").number(slot).expect("it is below its slots");
    guard.count_in(cell).expect("the hierarchy is writable");
    let listener = maker.counted_listener(front.address(), true, cell).expect("the group is joined");
    guard.mark(listener.as_fd()).expect("the map is there");
    front.join_direct(slot, Place::A, listener.as_fd(), 64).expect("it joins");
    front.set_path(slot, Path::Direct(Place::A)).expect("it steers by eBPF");
    front.set_in(slot, true).expect("it has a listener");
    listener
}

impl Published {
    fn new(address: SocketAddr) -> Self {
        let cells = Cells::create().expect("bpf is permitted");
        let parent = Parent::new();
        let mut guard = Guard::establish(&parent.0, "guard-1", Some(&cells)).expect("this kernel has the hooks");
        let maker = start_maker(guard.cgroup());
        let config = FrontConfig { cells: Some(Arc::clone(&cells)), ..FrontConfig::new(address) };
        let table = SteeringTable::flat(Policy::Connection, [SLOT]);
        let mut front = Front::open(&config, &table).expect("a free port");
        let listener = take_in(&mut front, &mut guard, &maker, SLOT);
        Self { front, listener, cells, guard, maker, _parent: parent }
    }

    fn cells(&self) -> &SlotCells {
        self.front.cells().expect("there is room")
    }

    fn reading(&self) -> CellReading {
        self.cells().read(SLOT)
    }

    fn counts(&self) -> (u64, u64, u64) {
        let reading = self.reading();
        (reading.counts.picked, reading.counts.established, reading.counts.closed)
    }
}

fn check_counted(address: &str) {
    let published = Published::new(address.parse().expect("an address"));
    assert_eq!(published.counts(), (0, 0, 0));
    let (mut client, mut accepted) = connection(published.listener.as_fd());
    assert_eq!((published.counts(), published.cells().load(SLOT).load), ((1, 1, 0), 1));
    client.write_all(&[0; 3000]).expect("it is open");
    let mut buffer = [0; 3000];
    accepted.read_exact(&mut buffer).expect("it was sent");
    accepted.write_all(&buffer[..1000]).expect("it is open");
    client.read_exact(&mut buffer[..1000]).expect("it was sent");
    drop(client);
    assert_eq!(accepted.read(&mut buffer).expect("the client has closed"), 0);
    assert_eq!(published.counts(), (1, 1, 0), "the shard has it open");
    drop(accepted);
    eventually("it is counted as closed", SOON, || (published.counts() == (1, 1, 1)).then_some(()));
    let reading = published.reading();
    assert_eq!((reading.counts.open(), reading.counts.pending(), published.cells().load(SLOT).load), (0, 0, 0));
    // Each FIN counts as a byte.
    assert!(
        (3000..=3001).contains(&reading.bytes_received) && (1000..=1001).contains(&reading.bytes_sent),
        "{reading:?}"
    );
    assert_eq!((reading.rtt.buckets.iter().sum::<u64>(), reading.duration.buckets.iter().sum::<u64>()), (1, 1));
    assert!(reading.duration.sum_micros > 0 && reading.duration.sum_micros < 10_000_000, "{reading:?}");
}

#[test]
fn connections_are_counted_from_the_pick_to_the_close() {
    alone("connections_are_counted_from_the_pick_to_the_close", || {
        check_counted("127.0.0.1:0");
        check_counted("[::1]:0");
    });
}

#[test]
fn resets_and_connections_that_nobody_accepted_are_closed_too() {
    alone("resets_and_connections_that_nobody_accepted_are_closed_too", || {
        let published = Published::new("127.0.0.1:0".parse().expect("an address"));
        let address = published.front.address();
        let clients: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).expect("it listens")).collect();
        assert_eq!(published.counts(), (20, 20, 0));
        for client in &clients[..10] {
            SockRef::from(client).set_linger(Some(Duration::ZERO)).expect("an option");
        }
        drop(clients);
        // The shard ends: those that it never accepted end with their queue, as there is no other slot but the anchor.
        let held = published.listener.try_clone().expect("a copy");
        SockRef::from(&held).shutdown(Shutdown::Both).expect("it listens");
        eventually("those that were reset are counted", SOON, || {
            (published.reading().counts.closed >= 10).then_some(())
        });
        assert_eq!(published.reading().counts.picked, 20);
    });
}

#[test]
fn each_slot_has_a_cell_of_its_own() {
    alone("each_slot_has_a_cell_of_its_own", || {
        let mut published = Published::new("127.0.0.1:0".parse().expect("an address"));
        let other = SlotIndex(2);
        let table = SteeringTable::flat(Policy::Connection, [SLOT, other]);
        published.front.set_table(&table).expect("a good table");
        let Published { front, guard, maker, .. } = &mut published;
        let second = take_in(front, guard, maker, other);
        let mut kept = Vec::new();
        for (count, slot) in [(3, other), (2, SLOT), (1, other)] {
            for each in [SLOT, other] {
                published.front.set_in(each, each == slot).expect("it has a listener");
            }
            let listener = if slot == SLOT { &published.listener } else { &second };
            kept.extend((0..count).map(|_| connection(listener.as_fd())));
        }
        // The sockets keep their cgroups, and those their programs.
        published.maker.end();
        published.guard.remove().expect("nobody is in it");
        assert!(!published.guard.cgroup().exists());
        kept.push(connection(second.as_fd()));
        let open = |slot| published.cells().counts(slot).open();
        assert_eq!((open(SLOT), open(other)), (2, 5));
        drop(kept);
        eventually("they are counted as closed", SOON, || (open(SLOT) + open(other) == 0).then_some(()));
        let closed = |slot| published.cells().counts(slot).closed;
        assert_eq!((closed(SLOT), closed(other)), (2, 5));
    });
}

#[test]
fn what_shards_accepted_stays_open_when_relayed_connections_are_forgotten() {
    alone("what_shards_accepted_stays_open_when_relayed_connections_are_forgotten", || {
        let published = Published::new("127.0.0.1:0".parse().expect("an address"));
        let kept = connection(published.listener.as_fd());
        let relayed = published.front.cells().expect("there is room").account(SLOT).open();
        assert_eq!(published.counts(), (1, 2, 0));
        // Its agent was killed: nothing of it runs any more.
        std::mem::forget(relayed);
        published.front.forget_relayed(|_| 0);
        assert_eq!(published.counts(), (1, 2, 1));
        drop(kept);
        eventually("it is counted as closed", SOON, || (published.counts() == (1, 2, 2)).then_some(()));
    });
}

#[test]
fn cells_are_nobody_elses_while_connections_are_open() {
    alone("cells_are_nobody_elses_while_connections_are_open", || {
        let published = Published::new("127.0.0.1:0".parse().expect("an address"));
        let first_of = |front: &Front| front.cells().expect("there is room").number(SlotIndex(0));
        let kept = connection(published.listener.as_fd());
        let Published { _parent, front, cells, listener, guard: _guard, maker: _maker } = published;
        let (before, old) = (first_of(&front), Arc::clone(front.cells().expect("there is room")));
        drop((front, listener));
        let reading = old.counts(SLOT);
        drop(old);
        let open = || {
            let any = "127.0.0.1:0".parse().expect("an address");
            let config = FrontConfig { cells: Some(Arc::clone(&cells)), ..FrontConfig::new(any) };
            Front::open(&config, &SteeringTable::empty(Policy::Connection)).expect("a free port")
        };
        assert_eq!(reading.open(), 1);
        let other = open();
        assert_ne!(first_of(&other), before);
        drop((kept, other));
        eventually("it is closed", SOON, || (first_of(&open()) == before).then_some(()));
    });
}

/// A connection of which both ends are closed, the shard's first if it hangs up.
fn end(published: &Published, client: TcpStream, accepted: TcpStream, hangs_up: bool) {
    let before = published.counts().2;
    let (first, mut second) = if hangs_up { (accepted, client) } else { (client, accepted) };
    first.shutdown(Shutdown::Both).expect("it is open");
    // A reset tells as well that the other one is gone.
    let _ = second.read(&mut [0; 16]);
    drop((first, second));
    eventually("it is counted as closed", SOON, || (published.counts().2 == before + 1).then_some(()));
}

fn check_answers(address: &str) {
    const SERVICE_TIME: Duration = Duration::from_millis(30);
    let published = Published::new(address.parse().expect("an address"));
    let (mut client, mut accepted) = connection(published.listener.as_fd());
    client.write_all(b"question").expect("it is open");
    let mut buffer = [0; 16];
    assert_eq!(accepted.read(&mut buffer).expect("it was sent"), 8);
    assert_eq!(published.reading().first_answer.buckets.iter().sum::<u64>(), 0, "a question is no answer");
    std::thread::sleep(SERVICE_TIME);
    accepted.write_all(b"answer").expect("it is open");
    assert_eq!(client.read(&mut buffer).expect("it was sent"), 6);
    eventually("it is acknowledged", SOON, || (published.reading().first_answer.sum_micros > 0).then_some(()));
    let first = published.reading();
    let micros = first.first_answer.sum_micros;
    assert!((30_000..5_000_000).contains(&micros), "{first:?}");
    assert_eq!(first.first_answer_squares, micros * micros);
    let bucket = ANSWER_BOUNDS_MICROS.iter().position(|bound| micros < *bound).unwrap_or(ANSWER_BOUNDS_MICROS.len());
    let counted: Vec<u64> = (0..ANSWER_BOUNDS_MICROS.len() + 1).map(|n| u64::from(n == bucket)).collect();
    assert_eq!(first.first_answer.buckets[..], counted);
    // Later answers are not the first.
    for _ in 0..3 {
        accepted.write_all(b"more").expect("it is open");
        assert_eq!(client.read(&mut buffer).expect("it was sent"), 4);
    }
    end(&published, client, accepted, false);
    let reading = published.reading();
    assert_eq!((reading.unanswered, &reading.first_answer), (0, &first.first_answer));
    // Who hangs up without an answer, and whom nobody asked anything.
    for (unanswered, hangs_up) in [(1, true), (2, false)] {
        let (client, accepted) = connection(published.listener.as_fd());
        end(&published, client, accepted, hangs_up);
        assert_eq!(published.reading().unanswered, unanswered);
    }
    let (client, accepted) = connection(published.listener.as_fd());
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("an option");
    drop((client, accepted));
    eventually("a reset counts too", SOON, || (published.reading().unanswered == 3).then_some(()));
    assert_eq!(published.reading().ignored, 0, "none of them had asked");
    // Asked, and hung up on: with the question read, and without.
    for reads in [true, false] {
        let (mut client, mut accepted) = connection(published.listener.as_fd());
        client.write_all(b"ask").expect("it is open");
        if reads {
            assert_eq!(accepted.read(&mut buffer).expect("it was sent"), 3);
        }
        drop((accepted, client));
    }
    eventually("both count", SOON, || (published.reading().ignored == 2).then_some(()));
    assert_eq!(published.reading().unanswered, 5);
    assert_eq!(published.reading().first_answer, first.first_answer);
    // One that is answered, and then reset, is answered.
    let (mut client, mut accepted) = connection(published.listener.as_fd());
    accepted.write_all(b"answer").expect("it is open");
    assert_eq!(client.read(&mut buffer).expect("it was sent"), 6);
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("an option");
    drop((client, accepted));
    eventually("it is counted as closed", SOON, || (published.counts().2 == 7).then_some(()));
    assert_eq!((published.reading().unanswered, published.reading().ignored), (5, 2));
}

#[test]
fn answers_are_timed_and_their_lack_is_counted() {
    alone("answers_are_timed_and_their_lack_is_counted", || {
        check_answers("127.0.0.1:0");
        check_answers("[::1]:0");
    });
}

fn reaches(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// What whoever has a connection of a shard can do where no seccomp filter sees it.
fn make_listen(accepted: &TcpStream) -> SocketAddr {
    Operation::Disconnect.attempt(accepted.as_fd()).expect("no hook sees it");
    SockRef::from(accepted).listen(16).expect("no hook sees it");
    let mut address = local_address(accepted.as_fd());
    if address.ip().is_unspecified() {
        address.set_ip([127, 0, 0, 1].into());
    }
    address
}

#[test]
fn a_connection_that_is_made_to_listen_is_contained_and_destroyed() {
    alone("a_connection_that_is_made_to_listen_is_contained_and_destroyed", || {
        let published = Published::new("127.0.0.1:0".parse().expect("an address"));
        let (_client, accepted) = connection(published.listener.as_fd());
        assert_eq!(published.cells.contained(), 0);
        let address = make_listen(&accepted);
        assert!(!reaches(address), "{address} is reached");
        assert_eq!(published.cells.contained(), 1);
        let found = sockdiag::contained().expect("sock_diag answers");
        assert_eq!(found.iter().map(|found| found.address.port()).collect::<Vec<_>>(), [address.port()]);
        sockdiag::destroy(&found[0]).expect("the kernel has CONFIG_INET_DIAG_DESTROY");
        assert_eq!(sockdiag::contained().expect("sock_diag answers"), []);
        // The shard's own listener goes on, and its other connections.
        let (_client, mut next) = connection(published.listener.as_fd());
        next.write_all(b"x").expect("it is open");
        // With the guard gone as well.
        let Published { guard, listener, cells, front: _front, maker, _parent } = published;
        drop((maker, guard));
        let (_client, accepted) = connection(listener.as_fd());
        assert!(!reaches(make_listen(&accepted)));
        assert_eq!(cells.contained(), 2);
    });
}

#[test]
fn a_listener_that_the_agent_did_not_mark_is_contained() {
    alone("a_listener_that_the_agent_did_not_mark_is_contained", || {
        let parent = Parent::new();
        let mut guard = parent.guard(1);
        let maker = start_maker(guard.cgroup());
        let [unmarked, marked] =
            [(), ()].map(|()| maker.listener(([127, 0, 0, 1], 0).into(), true).expect("a free port"));
        guard.mark(marked.as_fd()).expect("the map is there");
        for (listener, expected) in [(unmarked, false), (marked, true)] {
            SockRef::from(&listener).listen(16).expect("it is bound");
            assert_eq!(reaches(local_address(listener.as_fd())), expected);
            // Also after it was shut down and listens again, as when its queue is moved.
            SockRef::from(&listener).shutdown(Shutdown::Both).expect("it listens");
            SockRef::from(&listener).listen(16).expect("it is bound");
            assert_eq!(reaches(local_address(listener.as_fd())), expected);
        }
    });
}

#[test]
fn a_standing_queue_moves_and_its_listener_lives_on() {
    alone("a_standing_queue_moves_and_its_listener_lives_on", || {
        let mut published = Published::new("127.0.0.1:0".parse().expect("an address"));
        let other = SlotIndex(2);
        published.front.add_slot(other).expect("the address is ours");
        let table = SteeringTable::flat(Policy::Connection, [SLOT, other]);
        published.front.set_table(&table).expect("a good table");
        let address = published.front.address();
        let clients: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(address).expect("it listens")).collect();
        let found =
            Holder::find([std::process::id()], sockdiag::inode(published.listener.as_fd()).expect("it is open"));
        let copy = found.expect("this process has it").listener().expect("it is still there");
        published.front.set_in(other, true).expect("it has a listener");
        published.front.set_in(SLOT, false).expect("out is always possible");
        published.front.move_queue(SLOT, Place::A, copy.as_fd(), 64).expect("it joins again");
        drop(copy);
        assert_eq!(published.front.queue_len(Some(other)).expect("it listens"), 60);
        let accept = SockRef::from(&published.listener).accept();
        assert_eq!(accept.expect_err("nobody waits").kind(), std::io::ErrorKind::WouldBlock);
        // It is where it was before: in the group, in the array, marked.
        published.front.set_in(other, false).expect("out is always possible");
        published.front.set_in(SLOT, true).expect("it has a listener");
        let (_client, _accepted) = connection(published.listener.as_fd());
        assert_eq!(published.cells.contained(), 0);
        drop(clients);
    });
}

#[test]
fn steering_that_was_detached_is_attached_again() {
    alone("steering_that_was_detached_is_attached_again", || {
        let published = Published::new("127.0.0.1:0".parse().expect("an address"));
        let steered = || {
            let before = published.counts().0;
            let _client = TcpStream::connect(published.front.address()).expect("it listens");
            published.counts().0 > before
        };
        assert!(steered());
        // As a 32-bit system call would by any other member: the anchor is not guarded.
        let detach = Operation::SetOption {
            name: "SO_DETACH_REUSEPORT_BPF",
            level: libc::SOL_SOCKET,
            option: libc::SO_DETACH_REUSEPORT_BPF,
            value: &[0; 4],
        };
        detach.attempt(published.front.anchor()).expect("it is a member");
        assert!(!steered());
        published.front.attach_again().expect("it is its program");
        assert!(steered());
        published.front.attach_again().expect("again changes nothing");
        assert!(steered());
    });
}
