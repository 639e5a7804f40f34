//! A published address goes on without the agent, and the next agent takes it over from the holder.

use std::{
    net::{Shutdown, SocketAddr},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use sherd_lb::{
    cells::Cells,
    front::{AdoptError, Front, FrontConfig, Place},
    holder::{HolderClient, Idle, serve},
    table::{Choice, Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::{Need, in_new_netns, needs};
use socket2::{Domain, SockRef, Socket, Type};

use super::traffic::{Listeners, Mode, check, connect_many, publish, table};

pub(crate) type Fds = Vec<(String, OwnedFd)>;

pub(crate) fn copies(front: &Front) -> Fds {
    let copy = |(name, fd): (String, std::os::fd::BorrowedFd<'_>)| (name, fd.try_clone_to_owned().expect("a copy"));
    front.descriptors().into_iter().map(copy).collect()
}

fn check_goes_on(mode: Mode) {
    in_new_netns(move || {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("holder.sock");
        let listener = UnixListener::bind(&path).expect("a unix socket");
        let served = listener.try_clone().expect("a copy");
        let holder = std::thread::spawn(|| serve(served, Idle::Stay));

        let table = table(Policy::Connection, &[1, 2, 3, 4]);
        let mut front = publish(mode, false, &table);
        let (address, picked) = (front.address(), front.picks());
        front.set_in(SlotIndex(2), false).expect("it has a listener");
        let mut client = HolderClient::connect(&path).expect("it serves");
        for (name, fd) in front.descriptors() {
            client.put(&format!("web/80/{name}"), fd).expect("it takes it");
        }
        let in_service = front.in_service();
        drop((front, client));

        let clients = connect_many(100, address);
        let mut next = HolderClient::connect(&path).expect("it still serves");
        let fds = next.get_prefix("web/80/").expect("it kept them");
        let fds = fds.into_iter().map(|(name, fd)| (name["web/80/".len()..].to_owned(), fd)).collect();
        let mut front = Front::adopt(fds, &FrontConfig::new(address), &table).expect("all is there");
        assert_eq!((front.address(), front.in_service()), (address, in_service));
        assert_eq!(front.slots().collect::<Vec<_>>(), (0..4).map(SlotIndex).collect::<Vec<_>>());
        let queued: u32 = (0..4).map(|s| front.queue_len(Some(SlotIndex(s))).expect("it listens")).sum();
        assert_eq!((queued, front.queue_len(None).expect("it listens")), (100, 0));
        if mode == Mode::Ebpf {
            assert_eq!(front.picks().iter().sum::<u64>(), picked.iter().sum::<u64>() + 100);
        }
        Listeners::of(&front).accept(clients.len());
        check(&front, &table, 200, 0);
        // And it can be changed as before.
        front.set_table(&table).expect("a good table");
        front.set_in(SlotIndex(2), true).expect("it has a listener");
        front.remove_slot(SlotIndex(0)).expect("it has a listener");
        check(&front, &table, 200, 1);
        front.add_slot(SlotIndex(0)).expect("the address is ours");
        front.set_in(SlotIndex(0), true).expect("it has a listener");
        check(&front, &table, 200, 0);
        SockRef::from(&listener).shutdown(Shutdown::Both).expect("it listens");
        holder.join().expect("it ends").expect("without an error");
    });
}

#[test]
fn the_next_agent_goes_on() {
    if needs("the_next_agent_goes_on", &[Need::Root, Need::Bpf]) {
        check_goes_on(Mode::Ebpf);
        check_goes_on(Mode::Classic);
    }
}

fn with_front(body: impl FnOnce(Front, SteeringTable) + Send + 'static) {
    in_new_netns(|| {
        let table = table(Policy::Connection, &[1, 1]);
        body(publish(Mode::Ebpf, false, &table), table);
    });
}

fn bound_here() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    socket
}

#[test]
fn what_a_killed_agent_forced_is_forgotten() {
    if !needs("what_a_killed_agent_forced_is_forgotten", &[Need::Root, Need::Bpf]) {
        return;
    }
    with_front(|front, table| {
        let (address, fds) = (front.address(), copies(&front));
        let (first, second) = (bound_here(), bound_here());
        // To a listener that isn't there: who is forced is refused.
        let force = front.force(SlotIndex(0), Place::A).expect("eBPF");
        std::mem::forget(force.bind(&first).expect("it is bound"));
        drop((front, force));
        let front = Front::adopt(fds, &FrontConfig::new(address), &table).expect("all is there");
        let _under_way =
            front.force(SlotIndex(0), Place::A).and_then(|force| force.bind(&second)).expect("it is bound");
        let refused = second.connect(&address.into()).expect_err("nobody listens there");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        first.connect(&address.into()).expect("it is steered as all others");
    });
}

fn check_refused(change: impl FnOnce(&mut Fds, &mut SocketAddr) + Send + 'static, expected: fn(&AdoptError) -> bool) {
    with_front(move |front, table| {
        let (mut fds, mut address) = (copies(&front), front.address());
        change(&mut fds, &mut address);
        let adopted = Front::adopt(fds, &FrontConfig::new(address), &table);
        assert!(adopted.as_ref().is_err_and(expected), "{adopted:?}");
    });
}

fn at<'a>(fds: &'a mut Fds, name: &str) -> &'a mut OwnedFd {
    &mut fds.iter_mut().find(|(n, _)| n == name).expect("it is there").1
}

fn swap(fds: &mut Fds, one: &str, other: &str) {
    let copy = at(fds, one).try_clone().expect("a copy");
    let other = std::mem::replace(at(fds, other), copy);
    *at(fds, one) = other;
}

#[test]
fn what_is_not_ours_is_not_adopted() {
    if !needs("what_is_not_ours_is_not_adopted", &[Need::Root, Need::Bpf]) {
        return;
    }
    check_refused(
        |fds, _| fds.retain(|(name, _)| name != "anchor"),
        |e| matches!(e, AdoptError::Missing { name: "anchor" }),
    );
    check_refused(
        |fds, _| fds.retain(|(name, _)| name != "rows"),
        |e| matches!(e, AdoptError::Missing { name: "rows" }),
    );
    check_refused(
        |fds, _| fds.iter_mut().filter(|(name, _)| name == "anchor").for_each(|fd| fd.0 = "anchor2".into()),
        |e| matches!(e, AdoptError::Missing { name: "anchor" }),
    );
    check_refused(
        |fds, _| {
            let copy = fds[0].1.try_clone().expect("a copy");
            fds.push(("other".into(), copy));
        },
        |e| matches!(e, AdoptError::UnknownName { .. }),
    );
    check_refused(|_, address| address.set_port(address.port() ^ 1), |e| matches!(e, AdoptError::OtherAddress { .. }));
    check_refused(
        |fds, _| SockRef::from(&at(fds, "anchor").as_fd()).shutdown(Shutdown::Both).expect("it listens"),
        |e| matches!(e, AdoptError::NotListening { .. }),
    );
    check_refused(|fds, _| swap(fds, "slot.0", "slot.1"), |e| matches!(e, AdoptError::OtherSocket { .. }));
    check_refused(|fds, _| swap(fds, "state", "rows"), |e| matches!(e, AdoptError::OtherMake { .. }));
    check_refused(|fds, _| swap(fds, "table", "rows"), |e| matches!(e, AdoptError::OtherMake { .. }));
    check_refused(|fds, _| swap(fds, "table", "program"), |e| matches!(e, AdoptError::Io { .. }));
    check_refused(
        |fds, _| swap(fds, "slot.0", "table"),
        |e| matches!(e, AdoptError::Io { .. } | AdoptError::NotListening { .. }),
    );
}

#[test]
fn an_agent_that_died_between_two_steps_is_adopted() {
    if !needs("an_agent_that_died_between_two_steps_is_adopted", &[Need::Root, Need::Bpf]) {
        return;
    }
    with_front(|mut front, table| {
        // Slot 2 was prepared and no more; slot 1's listener ended and nobody took note.
        front.prepare_slot(SlotIndex(2)).expect("the address is ours");
        Listeners::of(&front).kill(1);
        let fds = copies(&front);
        let address = front.address();
        drop(front);
        let mut front = Front::adopt(fds, &FrontConfig::new(address), &table).expect("all is there");
        assert!(front.is_in(SlotIndex(0)) && !front.is_in(SlotIndex(1)) && !front.is_in(SlotIndex(2)));
        check(&front, &table, 50, 0);
        front.add_slot(SlotIndex(1)).expect("it is as if prepared");
        front.set_in(SlotIndex(1), true).expect("it has a listener");
        check(&front, &table, 50, 0);
    });
}

/// Writes another version into the state that steering goes by, as an agent of that version would have. By perl (essential
/// in Debian): bpf(2) needs unsafe code, which tests have none of.
pub(crate) fn set_version(fds: &Fds, version: u32) {
    let state = &fds.iter().find(|(name, _)| name == "state").expect("it is there").1;
    let script = r#"
        my ($fd, $key, $value) = (0, pack("L", 0), "\0" x 65536);
        my $at = sub { unpack("Q", pack("P", $_[0])) };
        my $attr = pack("LLQQQ", $fd, 0, $at->($key), $at->($value), 0);
        syscall(BPF, 1, $attr, length $attr) == 0 or die "lookup: $!";
        substr($value, 4, 4) = pack("L", VERSION);
        syscall(BPF, 2, $attr, length $attr) == 0 or die "update: $!";
    "#;
    let script = script.replace("BPF", &libc::SYS_bpf.to_string()).replace("VERSION", &version.to_string());
    let state = Stdio::from(state.try_clone().expect("a copy"));
    assert!(Command::new("perl").args(["-e", &script]).stdin(state).status().expect("perl starts").success());
}

/// What steers is exchanged again and again, by versions before and after this one and by agents that lost their cells,
/// while clients come all the time: each is accepted, and none by a slot that is out.
#[test]
fn another_version_takes_over_without_a_loss() {
    if !needs("another_version_takes_over_without_a_loss", &[Need::Root, Need::Bpf, Need::Program("perl")]) {
        return;
    }
    in_new_netns(|| {
        let table = table(Policy::Connection, &[1, 2, 3, 4]);
        let cells = Cells::create().expect("bpf is permitted");
        let config = FrontConfig { cells: Some(Arc::clone(&cells)), ..FrontConfig::new(([127, 0, 0, 1], 0).into()) };
        let mut front = Front::open(&config, &table).expect("a free port");
        for slot in (0..4).map(SlotIndex) {
            front.add_slot(slot).expect("the address is ours");
            front.set_in(slot, slot.0 != 2).expect("it has a listener");
        }
        let (address, listeners) = (front.address(), Listeners::of(&front));
        let done = AtomicBool::new(false);
        let mut front = std::thread::scope(|scope| {
            let clients = scope.spawn(|| {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) || count < 500 {
                    let clients = connect_many(10, address);
                    let accepted = listeners.accept(clients.len());
                    assert!(
                        accepted
                            .values()
                            .all(|(choice, _)| *choice != Choice::Slot(SlotIndex(2)) && *choice != Choice::Anchor)
                    );
                    count += clients.len();
                }
                count
            });
            for round in 0..20 {
                let fds = copies(&front);
                let cells =
                    if round % 4 == 3 { Cells::create().expect("bpf is permitted") } else { Arc::clone(&cells) };
                let version = [1, 2, 3, 99][round % 4];
                if round % 4 != 3 {
                    set_version(&fds, version);
                }
                drop(front);
                let config = FrontConfig { cells: Some(cells), ..FrontConfig::new(address) };
                front = Front::adopt(fds, &config, &table).expect("any version is taken over");
                assert!(front.cells().is_some(), "round {round}");
            }
            done.store(true, Ordering::Relaxed);
            assert!(clients.join().expect("every client is accepted") >= 500);
            front
        });
        assert_eq!(front.in_service(), [0, 1, 3].map(SlotIndex).into_iter().collect());
        check(&front, &table, 200, 0);
        front.set_in(SlotIndex(2), true).expect("it has a listener");
        check(&front, &table, 200, 0);
        let totals = front.totals();
        assert_eq!((totals.foreign, totals.retries, totals.anchored), (0, 0, 0));
    });
}
