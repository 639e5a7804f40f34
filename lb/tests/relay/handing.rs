//! Connections that change hands: from one worker, through a parcel, to another. No byte is lost or doubled, and nobody notices.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sherd_lb::{
    cells::Cells,
    front::{Front as Published, FrontConfig},
    relay::{
        Cause, Handed, Identity, Limits, MAX_CONNECTIONS, Origin, Parcel, ParcelError, PortKey, Role, Summary, Worker,
    },
    table::{Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::{
    rig::{Bytes, Front, PORT, SOON, alone, ask, connect, named, shard, worker},
    transfer::exchange,
};

fn release(worker: &Worker) -> Vec<Handed> {
    worker.stop_taking().recv().unwrap();
    worker.release().recv().unwrap()
}

fn address_of(port: PortKey, _: Role) -> Option<SocketAddr> {
    (port == PORT).then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 80)))
}

fn identify(origin: Origin) -> Option<Identity> {
    (origin.address == address_of(PORT, Role::Slot)).then_some(Identity { port: PORT, open: None })
}

/// As the holder would have it.
fn pack(connections: Vec<Handed>) -> Vec<OwnedFd> {
    let parcels = Parcel::split(connections).into_iter().map(|batch| Parcel::pack(batch, address_of).unwrap());
    let keep = |parcel: Parcel| {
        let kept = parcel.descriptor().try_clone_to_owned().unwrap();
        parcel.commit();
        kept
    };
    parcels.map(keep).collect()
}

fn open(parcels: &[OwnedFd]) -> Vec<Handed> {
    parcels.iter().flat_map(|parcel| Parcel::open(parcel, identify).unwrap().connections).collect()
}

/// The connections of one worker go to another.
fn hand_over(from: &Worker, to: &Worker) -> u32 {
    to.resume(open(&pack(release(from)))).recv().unwrap()
}

fn check_streams(limits: Limits, largest: usize) {
    let backend = shard(|mut stream| {
        let mut header = [0; 24];
        stream.read_exact(&mut header)?;
        let [seed, up, down] = [0, 8, 16].map(|at| u64::from_be_bytes(header[at..at + 8].try_into().unwrap()));
        exchange(&stream, (seed + 1, down as usize), (seed, up as usize));
        Ok(())
    });
    let front = Front::new(0, limits, Some(backend));
    let clients: Vec<_> = (0..16u64)
        .map(|client| {
            let mut stream = front.connect();
            thread::spawn(move || {
                // One-sided, even, and almost nothing: half-closed for long, and in both directions.
                let (up, down) = [(largest, 10), (10, largest), (largest, largest), (1, 1)][client as usize % 4];
                for number in [client * 2, up as u64, down as u64] {
                    stream.write_all(&number.to_be_bytes()).unwrap();
                }
                exchange(&stream, (client * 2, up), (client * 2 + 1, down));
            })
        })
        .collect();
    eventually("all are accepted", SOON, || (front.worker.stats().accepted.get() == 16).then_some(()));
    let mut workers = vec![front.worker];
    let (mut handed, mut most) = (0, 0);
    while !clients.iter().all(thread::JoinHandle::is_finished) {
        let next = worker(workers.len() as u16, limits);
        next.set_backend(Some(sherd_lb::relay::Backend { netns: None, ports: vec![(PORT, backend.into())] }));
        let count = hand_over(workers.last().unwrap(), &next);
        (handed, most) = (handed + count, most.max(count));
        workers.push(next);
        thread::sleep(Duration::from_millis(5));
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert!(most >= 4, "at most {most} were open at a hand-over");
    eprintln!("{} hand-overs, {handed} connections, at most {most} at a time", workers.len() - 1);
    let sum = |of: fn(&Worker) -> u64| workers.iter().map(of).sum::<u64>();
    // Nothing is counted twice, or not at all.
    eventually("all have ended", SOON, || (sum(|worker| worker.stats().active.get()) == 0).then_some(()));
    assert_eq!(sum(|worker| worker.stats().closed.get()), 16);
    assert_eq!(sum(|worker| worker.stats().resumed.get()), u64::from(handed));
    let (up, down) = (8 * largest as u64 + 4 * 11, 8 * largest as u64 + 4 * 11);
    assert_eq!(sum(|worker| worker.stats().bytes_in.get()), up + 16 * 24);
    assert_eq!(sum(|worker| worker.stats().bytes_out.get()), down);
    let spliced = sum(|worker| worker.stats().bytes_spliced.get());
    assert_eq!(spliced > 0, limits.splice_above.is_some(), "{spliced} bytes were spliced");
}

#[test]
fn streams_cross_hand_overs_copied_and_spliced() {
    alone("handing::spliced", || {
        check_streams(Limits { splice_above: Some(4 << 10), ..Limits::default() }, 8 << 20);
    });
}

#[test]
fn streams_cross_hand_overs_when_everything_is_copied() {
    alone("handing::copied", || check_streams(Limits { splice_above: None, ..Limits::default() }, 8 << 20));
}

/// Readers that don't read: what is held for them, in memory or in a pipe, goes along.
fn check_full_buffers(limits: Limits) {
    const TOTAL: usize = 24 << 20;
    let written = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&written);
    let backend = shard(move |stream| {
        let mut block = [0; 32 << 10];
        let mut bytes = Bytes::of(9);
        let mut left = TOTAL;
        while left > 0 {
            let piece = left.min(block.len());
            block[..piece].iter_mut().for_each(|byte| *byte = bytes.number() as u8);
            (&stream).write_all(&block[..piece])?;
            left -= piece;
            counter.fetch_add(piece as u64, Ordering::Relaxed);
        }
        stream.shutdown(Shutdown::Write)
    });
    let front = Front::new(0, limits, Some(backend));
    let mut stream = front.connect();
    let mut last = (0, Instant::now());
    eventually("the shard is stopped", SOON, || {
        let now = written.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > 0 && last.1.elapsed() > Duration::from_millis(300)).then_some(())
    });
    let connections = release(&front.worker);
    assert_eq!(front.worker.stats().active.get(), 0);
    let parcels = pack(connections);
    // The worker it came from is gone, as its process would be.
    drop(front);
    let next = worker(1, limits);
    assert_eq!(next.resume(open(&parcels)).recv().unwrap(), 1);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let mut bytes = Bytes::of(9);
    assert_eq!(rest.len(), TOTAL);
    assert!(rest.iter().all(|byte| *byte == bytes.number() as u8), "bytes differ");
}

#[test]
fn what_is_held_for_a_slow_reader_goes_along_from_memory() {
    alone("handing::memory", || check_full_buffers(Limits { splice_above: None, ..Limits::default() }));
}

#[test]
fn what_is_held_for_a_slow_reader_goes_along_from_a_pipe() {
    alone("handing::pipe", || check_full_buffers(Limits { splice_above: Some(4 << 10), ..Limits::default() }));
}

#[test]
fn ends_that_come_while_nobody_has_the_connection_are_passed_on() {
    alone("handing::ends", || {
        let backend = shard(|mut stream| {
            let mut request = Vec::new();
            stream.read_to_end(&mut request)?;
            stream.write_all(format!("{} bytes", request.len()).as_bytes())
        });
        let front = Front::new(0, Limits::default(), Some(backend));
        let (mut half, mut whole, cut) = (front.connect(), front.connect(), front.connect());
        for mut stream in [&half, &whole, &cut] {
            stream.write_all(&[1; 1000]).unwrap();
        }
        // One is half-closed before, and the shard hasn't answered: it answers at the end of the request, which it gets.
        eventually("all is relayed", SOON, || (front.worker.stats().bytes_in.get() == 3000).then_some(()));
        let parcels = pack(release(&front.worker));
        whole.write_all(&[2; 500]).unwrap();
        whole.shutdown(Shutdown::Write).unwrap();
        socket2::SockRef::from(&cut).set_linger(Some(Duration::ZERO)).unwrap();
        drop(cut);
        let next = worker(1, Limits::default());
        next.resume(open(&parcels)).recv().unwrap();
        let mut answer = String::new();
        whole.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "1500 bytes");
        eventually("the reset is found", SOON, || (next.stats().errors(Cause::ResetByClient) == 1).then_some(()));
        let third = worker(2, Limits::default());
        half.shutdown(Shutdown::Write).unwrap();
        eventually("it is passed on or waits", SOON, || (next.stats().active.get() <= 1).then_some(()));
        hand_over(&next, &third);
        let mut answer = String::new();
        half.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "1000 bytes");
    });
}

#[test]
fn half_closed_connections_stay_so() {
    alone("handing::half_closed", || {
        let (go, wait) = (Arc::new(AtomicBool::new(false)), Duration::from_millis(5));
        let told = Arc::clone(&go);
        let backend = shard(move |mut stream| {
            let mut first = [0];
            stream.read_exact(&mut first)?;
            if first == *b"s" {
                // It has said all it will, and listens.
                stream.shutdown(Shutdown::Write)?;
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest)?;
                assert_eq!(rest, b"afterwards");
                return Ok(());
            }
            assert_eq!(stream.read(&mut [0])?, 0);
            while !told.load(Ordering::Relaxed) {
                thread::sleep(wait);
            }
            stream.write_all(b"late answer")
        });
        let front = Front::new(0, Limits::default(), Some(backend));
        let (mut by_client, mut by_shard) = (front.connect(), front.connect());
        by_client.write_all(b"c").unwrap();
        by_client.shutdown(Shutdown::Write).unwrap();
        by_shard.write_all(b"s").unwrap();
        assert_eq!(by_shard.read(&mut [0]).unwrap(), 0);
        eventually("the client's end is passed on", SOON, || (front.worker.stats().bytes_in.get() == 2).then_some(()));
        let next = worker(1, Limits::default());
        assert_eq!(hand_over(&front.worker, &next), 2);
        assert_eq!(next.stats().active.get(), 2, "a half-closed connection was taken for an ended one");
        go.store(true, Ordering::Relaxed);
        let mut answer = String::new();
        by_client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "late answer");
        by_shard.write_all(b"afterwards").unwrap();
        by_shard.shutdown(Shutdown::Write).unwrap();
        eventually("both have ended", SOON, || (next.stats().closed.get() == 2).then_some(()));
        assert_eq!(next.stats().errors(Cause::ResetByShard), 0);
    });
}

#[test]
fn a_client_without_a_shard_is_dialled_anew() {
    alone("handing::waiting", || {
        let limits = Limits { max_connections: 1, ..Limits::default() };
        let front = Front::new(0, limits, Some(named("old")));
        let (first, second) = (front.connect(), front.connect());
        ask(&first).unwrap();
        eventually("the second waits", SOON, || (front.worker.stats().pending.get() == 1).then_some(()));
        let connections = release(&front.worker);
        assert_eq!(connections.len(), 2);
        assert_eq!((front.worker.stats().active.get(), front.worker.stats().pending.get()), (0, 0));
        let next = Front::new(1, Limits::default(), Some(named("new")));
        assert_eq!(next.worker.resume(open(&pack(connections))).recv().unwrap(), 2);
        assert_eq!([&first, &second].map(|stream| ask(stream).unwrap()), ["old", "new"]);
    });
}

#[test]
fn one_who_gives_up_what_nobody_keeps_goes_on_with_it() {
    alone("handing::back", || {
        let front = Front::new(0, Limits::default(), Some(named("a")));
        let stream = front.connect();
        ask(&stream).unwrap();
        let parcel = Parcel::pack(release(&front.worker), address_of).unwrap();
        let elsewhere = parcel.descriptor().try_clone_to_owned().unwrap();
        let back = parcel.take_back();
        assert_eq!(back.len(), 1);
        assert!(matches!(Parcel::open(&elsewhere, identify), Err(ParcelError::Empty)), "two would have it");
        front.worker.resume(back).recv().unwrap();
        assert_eq!(ask(&stream).unwrap(), "a");
        // And the other way round: who was first is the only one.
        let parcel = Parcel::pack(release(&front.worker), address_of).unwrap();
        let taken = Parcel::open(&parcel.descriptor().try_clone_to_owned().unwrap(), identify).unwrap();
        assert_eq!((taken.connections.len(), parcel.take_back().len()), (1, 0));
        front.worker.resume(taken.connections).recv().unwrap();
        assert_eq!(ask(&stream).unwrap(), "a");
        // An end is an end again, no reset.
        drop(stream);
        front.becomes_idle();
        assert_eq!(front.worker.stats().errors(Cause::ResetByClient), 0);
    });
}

#[test]
fn what_is_lost_on_its_way_is_reset() {
    alone("handing::lost", || {
        let check = |lose: fn(Vec<Handed>)| {
            let front = Front::new(0, Limits::default(), Some(named("a")));
            let mut stream = front.connect();
            ask(&stream).unwrap();
            lose(release(&front.worker));
            assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        };
        check(drop);
        check(|connections| drop(Parcel::pack(connections, address_of).unwrap()));
        check(|connections| drop(pack(connections)));
        check(|connections| drop(open(&pack(connections))));
    });
}

#[test]
fn many_fill_several_parcels() {
    alone("handing::many", || {
        const MANY: usize = 2 * MAX_CONNECTIONS + 50;
        let front = Front::new(0, Limits::default(), Some(named("a")));
        let streams: Vec<TcpStream> = (0..MANY).map(|_| front.connect()).collect();
        streams.iter().for_each(|stream| drop(ask(stream).unwrap()));
        let before = descriptors();
        let parcels = pack(release(&front.worker));
        assert_eq!(parcels.len(), 3);
        assert_eq!(before - descriptors(), 2 * MANY - parcels.len(), "a parcel is one descriptor, whatever is in it");
        let summaries: Vec<Summary> = parcels.iter().map(|parcel| Parcel::summary(parcel.as_fd()).unwrap()).collect();
        assert_eq!(summaries.iter().map(|summary| summary.connections as usize).sum::<usize>(), MANY);
        let next = worker(1, Limits::default());
        assert_eq!(next.resume(open(&parcels)).recv().unwrap() as usize, MANY);
        drop(parcels);
        assert_eq!(descriptors(), before + NEXT_WORKER);
        streams.iter().for_each(|stream| assert_eq!(ask(stream).unwrap(), "a"));
    });
}

/// Its bell, epoll instance and home namespace.
const NEXT_WORKER: usize = 3;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn silence_goes_on_where_it_was() {
    alone("handing::silence", || {
        let idle = Duration::from_secs(3);
        let limits = Limits { idle_timeout: Some(idle), ..Limits::default() };
        let front = Front::new(0, limits, Some(named("a")));
        let mut stream = front.connect();
        ask(&stream).unwrap();
        let began = Instant::now();
        thread::sleep(Duration::from_millis(2_000));
        let next = worker(1, limits);
        hand_over(&front.worker, &next);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        let silent = began.elapsed();
        assert!(silent > idle - Duration::from_millis(200), "ended after {silent:?}");
        assert!(silent < idle + Duration::from_millis(1_500), "it began anew: {silent:?}");
        assert_eq!(next.stats().errors(Cause::IdleTimeout), 1);
    });
}

#[test]
fn a_connection_is_counted_once_whoever_has_it() {
    if !needs("a_connection_is_counted_once_whoever_has_it", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let slot = SlotIndex(3);
        let config =
            FrontConfig { cells: Some(Cells::create().unwrap()), ..FrontConfig::new((Ipv4Addr::LOCALHOST, 0).into()) };
        let mut front = Published::open(&config, &SteeringTable::flat(Policy::Connection, [slot])).unwrap();
        front.add_slot(slot).unwrap();
        front.set_in(slot, true).unwrap();
        let counted = Arc::clone(front.cells().unwrap());
        let serving = worker(3, Limits::default());
        let listener = front.listener(slot).unwrap().try_clone_to_owned().unwrap();
        serving.serve_slot(PORT, listener, Some(counted.account(slot))).recv().unwrap().unwrap();
        let backend = sherd_lb::relay::Backend { netns: None, ports: vec![(PORT, named("it").into())] };
        serving.set_backend(Some(backend)).recv().unwrap().unwrap();
        let (kept, other) = (connect(front.address()), connect(front.address()));
        ask(&kept).unwrap();
        ask(&other).unwrap();
        let parcels = pack(release(&serving));
        drop(serving);
        let address = address_of(PORT, Role::Slot).unwrap();
        let summary = Parcel::summary(parcels[0].as_fd()).unwrap();
        assert_eq!(summary, Summary { connections: 2, counted: vec![(address, slot, 2)] });
        // The next agent takes off what was not handed over: nothing.
        front.forget_relayed(|of| if of == slot { 2 } else { 0 });
        let counts = || (counted.counts(slot).established, counted.counts(slot).closed, counted.load(slot).load);
        assert_eq!(counts(), (2, 0, 2));
        let next = worker(3, Limits::default());
        let opened = Parcel::open(&parcels[0], |origin| {
            let slot = origin.counted.expect("it is counted");
            Some(Identity { port: PORT, open: Some(counted.account(slot).resume()) })
        });
        next.resume(opened.unwrap().connections).recv().unwrap();
        assert_eq!(counts(), (2, 0, 2));
        assert_eq!(ask(&kept).unwrap(), "it");
        drop(other);
        eventually("it has ended", SOON, || (counts() == (2, 1, 1)).then_some(()));
        drop(next);
        assert_eq!(counts(), (2, 2, 0));
    });
}
