//! Connections that change workers: after a failed connect, from an anchor, by adoption, when a listener stops.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpListener,
    time::Duration,
};

use sherd_lb::relay::{Cause, Limits, PortKey, Role};
use sherd_testkit::eventually;
use socket2::SockRef;

use crate::rig::{Front, PORT, SOON, alone, ask, connect, named, nobody, shard};

/// Fronts that are each other's siblings, nearest first by number.
fn siblings(fronts: &[Front]) {
    for front in fronts {
        front.worker.set_siblings(fronts.iter().map(|front| front.worker.handle()).collect());
    }
}

#[test]
fn a_refused_connect_goes_to_the_nearest_sibling_with_every_byte() {
    alone("moves::sibling", || {
        let fronts = [
            Front::new(0, Limits::default(), Some(nobody())),
            Front::new(1, Limits::default(), Some(named("one"))),
            Front::new(2, Limits::default(), Some(named("two"))),
        ];
        siblings(&fronts);
        for _ in 0..20 {
            assert_eq!(ask(&fronts[0].connect()).unwrap(), "one");
        }
        assert_eq!(fronts[0].worker.stats().errors(Cause::ConnectRefused), 20);
        assert_eq!(fronts[0].worker.stats().handed_over.get(), 20);
        assert_eq!(fronts[1].worker.stats().adopted.get(), 20);
        assert_eq!(fronts[2].worker.stats().adopted.get(), 0);
    });
}

#[test]
fn tries_go_on_past_a_sibling_that_fails_too_and_not_in_circles() {
    alone("moves::tries", || {
        let fronts = [
            Front::new(0, Limits::default(), Some(nobody())),
            Front::new(1, Limits::default(), Some(nobody())),
            Front::new(2, Limits::default(), Some(named("two"))),
        ];
        siblings(&fronts);
        assert_eq!(ask(&fronts[0].connect()).unwrap(), "two");
        let refused = |slot: usize| fronts[slot].worker.stats().errors(Cause::ConnectRefused);
        assert_eq!((refused(0), refused(1), refused(2)), (1, 1, 0));
    });
}

#[test]
fn a_slot_without_a_shard_gives_its_clients_to_its_siblings() {
    alone("moves::absent", || {
        let fronts = [Front::new(0, Limits::default(), None), Front::new(1, Limits::default(), Some(named("one")))];
        siblings(&fronts);
        assert_eq!(ask(&fronts[0].connect()).unwrap(), "one");
    });
}

#[test]
fn an_anchor_deals_in_turn_and_skips_who_is_not_open() {
    alone("moves::anchor", || {
        let fronts = [
            Front::new(0, Limits::default(), Some(named("zero"))),
            Front::new(1, Limits::default(), Some(named("one"))),
            Front::new(2, Limits::default(), Some(named("two"))),
            Front::new(3, Limits::default(), None),
        ];
        siblings(&fronts);
        let anchor = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = anchor.local_addr().unwrap();
        fronts[0].worker.serve(PORT, anchor.into(), Role::Anchor).recv().unwrap().unwrap();
        let mut dealt = BTreeMap::new();
        for _ in 0..30 {
            *dealt.entry(ask(&connect(address)).unwrap()).or_insert(0) += 1;
        }
        assert_eq!(dealt, BTreeMap::from([("zero".into(), 10), ("one".into(), 10), ("two".into(), 10)]));
    });
}

#[test]
fn a_connection_accepted_elsewhere_is_adopted() {
    alone("moves::adopt", || {
        let front = Front::new(0, Limits::default(), Some(named("a")));
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = connect(elsewhere.local_addr().unwrap());
        stream.write_all(b"early\n").unwrap();
        let (accepted, _) = elsewhere.accept().unwrap();
        front.worker.adopt(PORT, accepted.into());
        assert_eq!(ask(&stream).unwrap(), "a");
        assert_eq!(front.worker.stats().adopted.get(), 1);
    });
}

#[test]
fn a_listener_that_stops_leaves_nobody_in_its_queue() {
    alone("moves::stop", || {
        let fronts = [Front::new(0, Limits::default(), None), Front::new(1, Limits::default(), None)];
        siblings(&fronts);
        let waiting: Vec<_> = (0..20).map(|_| fronts[0].connect()).collect();
        fronts[0].worker.stop_serving(PORT, Role::Slot).recv_timeout(SOON).unwrap();
        let stats = fronts[0].worker.stats();
        eventually("all were taken", SOON, || (stats.pending.get() == 20).then_some(()));
        fronts[1].set_backend(named("one"));
        for stream in &waiting {
            assert_eq!(ask(stream).unwrap(), "one");
        }
        // The listener itself lives on in the test's hands, and nobody accepts from it.
        let unheard = fronts[0].connect();
        unheard.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(ask(&unheard).is_err());
    });
}

#[test]
fn an_anchor_that_is_left_keeps_what_waits_in_it() {
    alone("moves::leave", || {
        let fronts = [Front::new(0, Limits::default(), None), Front::new(1, Limits::default(), Some(named("one")))];
        let anchor = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = anchor.local_addr().unwrap();
        let accepts = anchor.try_clone().unwrap();
        fronts[0].worker.serve(PORT, anchor.into(), Role::Anchor).recv().unwrap().unwrap();
        let waiting: Vec<_> = (0..20).map(|_| connect(address)).collect();
        fronts[0].worker.leave_anchor(PORT).recv_timeout(SOON).unwrap();
        let later = connect(address);
        let stats = fronts[0].worker.stats();
        assert_eq!((stats.accepted.get(), stats.pending.get()), (0, 0), "it has no shard, and no room for what waits");
        fronts[1].worker.serve(PORT, accepts.into(), Role::Anchor).recv().unwrap().unwrap();
        for stream in waiting.iter().chain([&later]) {
            assert_eq!(ask(stream).unwrap(), "one");
        }
    });
}

#[test]
fn a_worker_that_ends_gives_what_it_has_not_begun_to_its_siblings() {
    alone("moves::shutdown", || {
        let waits = Limits { pending_timeout: Duration::from_secs(60), ..Limits::default() };
        let mut fronts = vec![Front::new(0, waits, Some(nobody())), Front::new(1, waits, None)];
        siblings(&fronts);
        let stream = fronts[0].connect();
        let stats = fronts[0].worker.stats();
        eventually("it waits", SOON, || (stats.errors(Cause::ConnectRefused) > 0).then_some(()));
        fronts[1].set_backend(named("one"));
        fronts.remove(0).worker.shutdown();
        assert_eq!(ask(&stream).unwrap(), "one");
        assert!(fronts[0].worker.is_alive());
    });
}

#[test]
fn a_shard_that_resets_before_a_byte_moved_never_had_the_client() {
    alone("moves::reset_at_once", || {
        let resets = shard(|stream| SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
        let speaks = shard(|mut stream| stream.write_all(b"hello"));
        let fronts = [Front::new(0, Limits::default(), Some(resets)), Front::new(1, Limits::default(), Some(speaks))];
        siblings(&fronts);
        for _ in 0..10 {
            let mut greeting = String::new();
            fronts[0].connect().read_to_string(&mut greeting).unwrap();
            assert_eq!(greeting, "hello");
        }
        assert_eq!(fronts[1].worker.stats().adopted.get(), 10);
    });
}

/// A program's own socket is shut down once its shard has ended; the worker's other doors don't notice.
#[test]
fn a_listener_that_was_shut_down_holds_up_no_other() {
    alone("moves::shut_down", || {
        let front = Front::new(0, Limits::default(), Some(named("one")));
        let inner = TcpListener::bind("127.0.0.1:0").unwrap();
        let key = PortKey(PORT.0 + 1);
        front.worker.serve(key, inner.try_clone().unwrap().into(), Role::Inner).recv_timeout(SOON).unwrap().unwrap();
        SockRef::from(&inner).shutdown(std::net::Shutdown::Both).unwrap();
        for _ in 0..50 {
            assert_eq!(ask(&front.connect()).unwrap(), "one");
        }
        front.worker.stop_serving(key, Role::Inner).recv_timeout(SOON).expect("its queue is empty for good");
        assert_eq!(ask(&front.connect()).unwrap(), "one");
        assert_eq!(front.worker.stats().errors(Cause::AcceptFailed), 0);
    });
}

/// Whoever serves an address again when another one is new must not have to stop it twice.
#[test]
fn a_listener_that_is_served_twice_is_stopped_once() {
    alone("moves::twice", || {
        let Front { worker, listener, address } = Front::new(0, Limits::default(), Some(named("one")));
        worker.serve(PORT, listener.try_clone().unwrap().into(), Role::Slot).recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(ask(&connect(address)).unwrap(), "one");
        worker.stop_serving(PORT, Role::Slot).recv_timeout(SOON).unwrap();
        drop(listener);
        TcpListener::bind(address).expect("nobody has it any more");
    });
}
