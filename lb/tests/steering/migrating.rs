//! A listener that ends loses nothing: what is queued there moves to the slot the program picks.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use sherd_lb::{
    front::Front,
    table::{Choice, Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::{Need, in_new_netns, needs};

use super::traffic::{Listeners, Mode, add_v6_clients, connect_many, flow, on_cpu, publish, table};

const POLICIES: [Policy; 4] = [Policy::Connection, Policy::Client, Policy::Local, Policy::Balanced];

pub(crate) fn say_hello(clients: &mut [TcpStream]) {
    for client in clients {
        let own = client.local_addr().expect("connected");
        client.write_all(own.to_string().as_bytes()).expect("it is established");
    }
}

/// Each accepted connection has its client's bytes; returns where it was.
pub(crate) fn read_hellos<Where>(accepted: HashMap<SocketAddr, (Where, TcpStream)>) -> HashMap<SocketAddr, Where> {
    let read = |(client, (at, mut stream)): (SocketAddr, (Where, TcpStream))| {
        stream.set_nonblocking(false).expect("a flag");
        let mut hello = vec![0; client.to_string().len()];
        stream.read_exact(&mut hello).expect("what the client sent");
        assert_eq!(String::from_utf8_lossy(&hello), client.to_string());
        (client, at)
    };
    accepted.into_iter().map(read).collect()
}

/// How a slot's listener ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// `remove_slot`: out of service first.
    Removed,
    /// Its shard died: the front does not know, and the slot is still in service.
    Killed,
}

fn end(front: &mut Front, listeners: &Listeners, slot: u16, end: End) {
    match end {
        End::Removed => front.remove_slot(SlotIndex(slot)).expect("it has a listener"),
        End::Killed => listeners.kill(slot),
    }
}

fn check_queued(policy: Policy, v6: bool, how: End) {
    in_new_netns(move || {
        if v6 {
            add_v6_clients();
        }
        let table = table(policy, &[1; 8]);
        let mut front = publish(Mode::Ebpf, v6, &table);
        let listeners = Listeners::of(&front);
        let mut clients = on_cpu(0, || connect_many(300, front.address()));
        say_hello(&mut clients);
        let before = front.explain(&table);
        // The fullest: 16 client addresses may leave some slots without any.
        let queue_len = |slot| front.queue_len(Some(SlotIndex(slot))).expect("it listens");
        let (queued, victim) = (0..8).map(|slot| (queue_len(slot), slot)).max().expect("eight slots");
        assert!(queued > 0);
        // The CPU that closes is the one that migrates.
        on_cpu(0, || end(&mut front, &listeners, victim, how));
        let got = read_hellos(listeners.accept(clients.len()));
        front.set_in(SlotIndex(victim), false).expect("out is always possible");
        let after = front.explain(&table);
        for flow in clients.iter().map(flow) {
            let first = before.choose(&flow, 0);
            let expected = if first == Choice::Slot(SlotIndex(victim)) { after.choose(&flow, 0) } else { first };
            if (policy, first != expected) == (Policy::Balanced, true) && matches!(how, End::Killed) {
                // Its bit was in: the nearest takes over, none is weighed.
                assert!(matches!(got[&flow.client], Choice::Slot(slot) if slot.0 != victim), "{flow:?}");
                continue;
            }
            assert_eq!(got[&flow.client], expected, "{policy} v6 {v6} {how:?} {flow:?}");
        }
        assert_eq!(front.totals().migrated, u64::from(queued), "{policy} v6 {v6} {how:?}");
    });
}

#[test]
fn queued_connections_move_to_where_the_model_says() {
    if !needs("queued_connections_move_to_where_the_model_says", &[Need::Root, Need::Bpf]) {
        return;
    }
    for policy in POLICIES {
        for v6 in [false, true] {
            check_queued(policy, v6, End::Removed);
            check_queued(policy, v6, End::Killed);
        }
    }
}

/// With TCP_DEFER_ACCEPT the server's side stays half-open until data comes.
fn check_half_open(policy: Policy, v6: bool) {
    in_new_netns(move || {
        if v6 {
            add_v6_clients();
        }
        let table = table(policy, &[1; 4]);
        let mut front = publish(Mode::Ebpf, v6, &table);
        let listeners = Listeners::of(&front);
        for slot in 0..4 {
            set_defer_accept(listeners.get(slot));
        }
        let mut clients = on_cpu(0, || connect_many(100, front.address()));
        assert_eq!(front.queue_len(Some(SlotIndex(0))).expect("it listens"), 0);
        on_cpu(0, || end(&mut front, &listeners, 0, End::Removed));
        on_cpu(0, || say_hello(&mut clients));
        let got = read_hellos(listeners.accept(clients.len()));
        assert!(got.values().all(|choice| *choice != Choice::Slot(SlotIndex(0)) && *choice != Choice::Anchor));
        // Without slot 0 it says the same as before for those of other slots, which stayed.
        let explanation = front.explain(&table);
        for flow in clients.iter().map(flow) {
            assert_eq!(got[&flow.client], explanation.choose(&flow, 0), "{policy} v6 {v6} {flow:?}");
        }
    });
}

/// By perl (essential in Debian): no crate of ours has the option, and tests hold no unsafe code.
fn set_defer_accept(listener: &TcpListener) {
    let listener = Stdio::from(OwnedFd::from(listener.try_clone().expect("a copy")));
    let set = format!("setsockopt(STDIN, {}, {}, 30) or die", libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
    assert!(Command::new("perl").args(["-e", &set]).stdin(listener).status().expect("perl starts").success());
}

#[test]
fn half_open_connections_move_too() {
    if !needs("half_open_connections_move_too", &[Need::Root, Need::Bpf, Need::Program("perl")]) {
        return;
    }
    for policy in POLICIES {
        check_half_open(policy, false);
        check_half_open(policy, true);
    }
}

#[test]
fn with_every_slot_gone_connections_wait_at_the_anchor() {
    if !needs("with_every_slot_gone_connections_wait_at_the_anchor", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let table = SteeringTable::flat(Policy::Connection, (0..3).map(SlotIndex));
        let mut front = publish(Mode::Ebpf, false, &table);
        let listeners = Listeners::of(&front);
        let mut clients = connect_many(60, front.address());
        say_hello(&mut clients);
        (0..3).for_each(|slot| listeners.kill(slot));
        assert_eq!(front.queue_len(None).expect("it listens"), 60);
        // Dead, and no agent took note: new ones wait as well.
        clients.extend(connect_many(10, front.address()));
        say_hello(&mut clients[60..]);
        let got = read_hellos(listeners.accept(70));
        assert!(got.values().all(|choice| *choice == Choice::Anchor));
        for slot in (0..3).map(SlotIndex) {
            front.remove_slot(slot).expect("it had a listener");
        }
    });
}
