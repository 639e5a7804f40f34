//! Direct listeners, reached by force: from a worker's inner door and by probes, past what the table says.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use sherd_lb::{
    ready::{HttpCheck, ProbeError, Route, probe_http, probe_tcp},
    relay::{Backend, Cause, Limits, PortKey, Role, Target, Worker},
};
use sherd_testkit::eventually;
use socket2::SockRef;

use crate::{
    namespaces::{exists, namespace_with_shard},
    published::{close, name_and_peer, with_published},
    rig::{PORT, SOON, alone, answer_lines, ask, connect, named, shard_on, worker},
};

const INNER: PortKey = PortKey(8);

fn set_backend(worker: &Worker, ports: Vec<(PortKey, Target)>) {
    worker.set_backend(Some(Backend { netns: None, ports })).recv().unwrap().unwrap();
}

/// An inner door of the worker.
fn open_door(worker: &Worker) -> SocketAddr {
    let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = door.local_addr().unwrap();
    worker.serve(INNER, door.into(), Role::Inner).recv().unwrap().unwrap();
    address
}

fn check_door(test: &str, v6: bool) {
    with_published(test, v6, |mut published| {
        let _direct = published.with_shards();
        let host = published.address.ip();
        for (slot, name) in [(0, "direct 0"), (1, "direct 1")] {
            let worker = worker(slot, Limits::default());
            set_backend(&worker, vec![(INNER, published.target(slot))]);
            let door = open_door(&worker);
            for _ in 0..20 {
                assert_eq!(ask(&connect(door)).unwrap(), format!("{name} sees {host}"));
            }
        }
        let plain = published.client_from((host, 0).into());
        assert_eq!(published.who_answers(plain), format!("relayed 1 sees {host}"), "the table is what it was");
    });
}

#[test]
fn an_inner_door_leads_to_its_own_slot_whatever_the_table_says() {
    check_door("direct::door", false);
    check_door("direct::door_v6", true);
}

#[test]
fn a_slot_whose_direct_listener_closed_costs_its_clients_a_bounded_wait() {
    with_published("direct::closed", false, |mut published| {
        let direct = published.with_shards();
        let limits = Limits { pending_timeout: Duration::from_millis(300), ..Limits::default() };
        let workers = [worker(0, limits), worker(1, limits)];
        for (slot, worker) in (0..).zip(&workers) {
            set_backend(worker, vec![(INNER, published.target(slot))]);
        }
        workers[0].set_siblings(vec![workers[1].handle()]);
        let door = open_door(&workers[0]);
        close(&direct[0]);
        let begin = Instant::now();
        assert_eq!(connect(door).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!((Duration::from_millis(300)..Duration::from_secs(2)).contains(&begin.elapsed()));
        let stats = workers[0].stats();
        assert!(stats.errors(Cause::ConnectRefused) > 1, "it is tried again");
        assert_eq!((stats.errors(Cause::PendingTimeout), stats.handed_over.get()), (1, 0));
        shard_on(published.direct(0), name_and_peer("new"));
        assert_eq!(ask(&connect(door)).unwrap(), "new sees 198.51.100.1");
    });
}

#[test]
fn clients_of_an_inner_door_never_go_to_a_sibling() {
    alone("direct::siblings", || {
        let limits = Limits { pending_timeout: Duration::from_millis(300), ..Limits::default() };
        let workers = [worker(0, limits), worker(1, Limits::default())];
        set_backend(&workers[1], vec![(INNER, named("one").into())]);
        workers[0].set_siblings(vec![workers[1].handle()]);
        let door = open_door(&workers[0]);
        let waits = connect(door);
        set_backend(&workers[0], vec![(PORT, named("zero").into())]);
        eventually("it has no target", SOON, || (workers[0].stats().pending.get() == 1).then_some(()));
        workers[0].set_backend(None).recv().unwrap().unwrap();
        assert_eq!(ask(&waits).unwrap_err().kind(), ErrorKind::ConnectionReset);
        set_backend(&workers[0], vec![(INNER, named("zero").into())]);
        assert_eq!(ask(&connect(door)).unwrap(), "zero");
        let resets = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        set_backend(&workers[0], vec![(INNER, resets.local_addr().unwrap().into())]);
        shard_on(resets, |stream| SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
        assert!(TcpStream::connect(door).and_then(|mut client| client.read_exact(&mut [0])).is_err());
        assert_eq!(workers[0].stats().handed_over.get(), 0);
    });
}

#[test]
fn what_was_forced_leaves_nothing_behind() {
    with_published("direct::leftovers", false, |mut published| {
        let direct = published.direct(0);
        let (sees, seen) = mpsc::channel();
        shard_on(direct, move |stream| {
            sees.send(stream.peer_addr()?).unwrap();
            answer_lines(stream, "direct")
        });
        shard_on(published.relayed(1), |stream| answer_lines(stream, "table"));
        let worker = worker(0, Limits::default());
        set_backend(&worker, vec![(INNER, published.target(0))]);
        let door = open_door(&worker);
        let other = published.client_from((published.address.ip(), 0).into());
        for _ in 0..2_000 {
            let client = connect(door);
            assert_eq!(ask(&client).unwrap(), "direct");
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        }
        // While none is forced the program doesn't look for entries.
        let forced = published.force(0).bind(&other).unwrap();
        let sources: Vec<SocketAddr> = seen.try_iter().collect();
        assert_eq!(sources.len(), 2_000);
        for source in sources {
            assert_eq!(published.who_answers(published.client_from(source)), "table", "{source}");
        }
        assert_eq!(published.who_answers(other), "direct");
        drop(forced);
    });
}

#[test]
fn forced_connections_go_on_past_the_ephemeral_ports() {
    with_published("direct::ports", false, |mut published| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40031").unwrap();
        let _direct = published.with_shards();
        let worker = worker(0, Limits::default());
        set_backend(&worker, vec![(INNER, published.target(0))]);
        let door = open_door(&worker);
        let clients: Vec<TcpStream> = (0..60)
            .map(|number| {
                // From several addresses, so that only the worker has to make do with one.
                let client = published.client_from((Ipv4Addr::new(127, 0, 1, 1 + number / 20), 0).into());
                client.connect_timeout(&door.into(), SOON).unwrap();
                client.into()
            })
            .collect();
        clients.iter().for_each(|client| assert_eq!(ask(client).unwrap(), "direct 0 sees 198.51.100.1"));
    });
}

fn check_strangers(test: &str, v6: bool) {
    with_published(test, v6, move |mut published| {
        let _direct = published.with_shards();
        let host = published.address.ip();
        let stranger = if v6 { Ipv6Addr::LOCALHOST.into() } else { IpAddr::from(Ipv4Addr::new(127, 0, 0, 9)) };
        let ours = published.client_from((host, 0).into());
        let port = ours.local_addr().unwrap().as_socket().unwrap().port();
        let forced = published.force(0).bind(&ours).unwrap();
        let theirs = published.client_from((stranger, port).into());
        assert_eq!(published.who_answers(theirs), format!("relayed 1 sees {stranger}"));
        assert_eq!(published.who_answers(ours), format!("direct 0 sees {host}"));
        drop(forced);
        let again = published.client_from((host, port).into());
        assert_eq!(published.who_answers(again), format!("relayed 1 sees {host}"));
    });
}

#[test]
fn strangers_with_a_forced_port_are_not_forced() {
    check_strangers("direct::strangers", false);
    check_strangers("direct::strangers_v6", true);
}

fn answer_http(mut stream: TcpStream, status: u16) -> std::io::Result<()> {
    // A probe that only connects sends nothing.
    let asked = stream.read(&mut [0; 1024])?;
    if asked > 0 { stream.write_all(format!("HTTP/1.1 {status} \r\n\r\n").as_bytes()) } else { Ok(()) }
}

fn check_probes(test: &str, v6: bool) {
    with_published(test, v6, |mut published| {
        let direct = published.direct(0);
        shard_on(direct.try_clone().unwrap(), |stream| answer_http(stream, 204));
        shard_on(published.relayed(1), |stream| answer_http(stream, 503));
        let force = published.force(0);
        let plain = Route::from(published.address);
        let forced = Route { force: Some(&force), ..plain };
        let http = HttpCheck { method: "GET", path: "/", host: None, status: &[200..=299], body: None };
        probe_tcp(&forced, SOON).unwrap();
        probe_http(&forced, &http, SOON).unwrap();
        let elsewhere = probe_http(&plain, &http, SOON);
        assert!(matches!(elsewhere, Err(ProbeError::UnexpectedStatus { status: 503, .. })), "{elsewhere:?}");
        close(&direct);
        for refused in [probe_tcp(&forced, SOON), probe_http(&forced, &http, SOON)] {
            assert!(matches!(refused, Err(ProbeError::Refused { .. })), "{refused:?}");
        }
        let absent = Route { address: "192.0.2.99:1".parse().unwrap(), force: Some(&force), netns: None };
        let unreachable = probe_tcp(&absent, SOON);
        assert!(matches!(unreachable, Err(ProbeError::Unreachable { .. })), "{unreachable:?}");
        probe_tcp(&plain, SOON).unwrap();
    });
}

#[test]
fn a_forced_probe_speaks_with_its_slot_or_with_nobody() {
    check_probes("direct::probes", false);
    check_probes("direct::probes_v6", true);
}

fn inside<T: Send>(netns: &File, body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let entered = || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        };
        scope.spawn(entered).join().unwrap()
    })
}

#[test]
fn a_worker_leaves_its_shards_namespace_for_a_forced_target_and_comes_back() {
    with_published("direct::namespaces", false, |mut published| {
        let _direct = published.with_shards();
        let (netns, address) = namespace_with_shard("near");
        let (door, outer) =
            (inside(&netns, || TcpListener::bind("192.0.2.7:0")).unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (inner, outer_address) = (door.local_addr().unwrap(), outer.local_addr().unwrap());
        let worker = worker(0, Limits::default());
        worker.serve(INNER, door.into(), Role::Inner).recv().unwrap().unwrap();
        worker.serve(PORT, outer.into(), Role::Slot).recv().unwrap().unwrap();
        let ports = vec![(PORT, address.into()), (INNER, published.target(0))];
        let backend = Backend { netns: Some(netns.try_clone().unwrap().into()), ports };
        worker.set_backend(Some(backend)).recv().unwrap().unwrap();
        for _ in 0..2 {
            assert_eq!(ask(&connect(outer_address)).unwrap(), "192.0.2.7");
            assert_eq!(ask(&inside(&netns, || connect(inner))).unwrap(), "direct 0 sees 198.51.100.1");
        }
        drop(netns);
        worker.stop_serving(INNER, Role::Inner).recv_timeout(SOON).unwrap();
        worker.set_backend(None).recv().unwrap().unwrap();
        worker.close_backend_connections().recv_timeout(SOON).unwrap();
        eventually("the namespace is gone", SOON, || (!exists("near")).then_some(()));
    });
}
