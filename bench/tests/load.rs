//! The load generator against servers whose answers, delays and faults are known.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use sherd_bench::{
    interrupt::Interrupt,
    load::{
        self, IdleConnections, Load, LoadError, MAX_ECHO_BYTES, Outcome, Shape,
        planted::{CYCLE, Lateness, Planted, Tier},
    },
    measure::{allowed_cpus, raise_open_files},
    shard::Shard,
};

const NOBODY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9));

/// Tests that measure don't run beside each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shard() -> SocketAddr {
    let mut shard = Shard::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("loopback has a port");
    let address = shard.address().expect("it is bound");
    thread::spawn(move || shard.serve());
    address
}

fn load(target: SocketAddr, shape: Shape) -> Load {
    let cpus = allowed_cpus().expect("readable");
    Load {
        targets: vec![target],
        connections: 32,
        answer_bytes: 100,
        shape,
        cpus: cpus[..cpus.len().min(2)].to_vec(),
        warm_up: Duration::from_millis(50),
        duration: Duration::from_millis(300),
    }
}

fn run(load: &Load) -> Outcome {
    load::run(load, &Interrupt::default(), || ()).expect("the load runs").0
}

fn millis(outcome: &Outcome, quantile: f64) -> f64 {
    outcome.latency.value_at_quantile(quantile) as f64 / 1e6
}

#[test]
fn every_shape_is_answered_in_full() {
    let _alone = alone();
    let target = shard();
    let open = Shape::Open { requests_per_second: 1000.0, seed: 1 };
    for (shape, answer_bytes) in [
        (Shape::KeepAlive, 100),
        (Shape::KeepAlive, 3 << 20),
        (Shape::ConnectionPerRequest, 100),
        (Shape::ConnectionPerRequest, 1 << 20),
        (open, 100),
        (Shape::Echo, 1),
        (Shape::Echo, MAX_ECHO_BYTES),
        (Shape::Streams, 64 << 10),
    ] {
        // On a busy host the first large answers take their time.
        let windows = [300, 1500, 6000].map(Duration::from_millis);
        let mut outcomes =
            windows.into_iter().map(|duration| run(&Load { answer_bytes, duration, ..load(target, shape) }));
        let outcome = outcomes.find(|outcome| outcome.requests > 0).expect("an answer in six seconds");
        assert_eq!(outcome.errors.len(), 0, "{shape:?} with {answer_bytes} bytes: {outcome:?}");
        let answered = outcome.body_bytes as f64 / answer_bytes as f64;
        // Answers that lie across an edge of the window count with a part of their bytes: two for each connection. Of an open
        // loop those count that were due in it, and on a busy host come later.
        assert!(
            shape == open || (answered - outcome.requests as f64).abs() <= 64.0,
            "{shape:?}: {answered} for {outcome:?}"
        );
        assert_eq!(outcome.latency.len(), outcome.requests);
        assert!(outcome.own_cpu > Duration::ZERO && outcome.own_cpu < 2 * outcome.elapsed, "{outcome:?}");
    }
}

/// Checks percentiles against what arithmetic says of `lateness`. A busy host only ever adds to a latency: too low fails at
/// once. Too high is what neither a larger planted latency nor the host's own explains, which is measured just before;
/// tried again, because that changes. How exact they are on a quiet host is what `sherd-bench verify` tells.
fn check_percentiles(lateness: &Lateness, load: &Load, shares: &[f64], tolerance_millis: f64) -> u64 {
    const ATTEMPTS: usize = 8;
    let expected = |share: f64| lateness.expected_millis(load, share).expect("an open loop");
    let run_with = |lateness: Lateness| {
        let server = Planted::start(lateness).expect("loopback has a port");
        run(&Load { targets: vec![server.address()], ..load.clone() })
    };
    for attempt in 1..=ATTEMPTS {
        let host = run_with(Lateness::Tiers(vec![Tier { share: CYCLE, delay: Duration::ZERO }]));
        let outcome = run_with(lateness.clone());
        let mut is_explained = true;
        for share in shares {
            // Of all that exceed the sum, each exceeds the one part or the other.
            let either = 1.0 - (1.0 - share) / 2.0;
            let found = millis(&outcome, *share);
            let (least, most) = (expected(*share), expected(either) + millis(&host, either));
            // The stall begins when the server sees the first request.
            assert!(found > least - 2.0, "p{share}: {found} ms, and {least} were planted");
            if found > most + tolerance_millis {
                is_explained = false;
                eprintln!("attempt {attempt}: p{share}: {found} ms, and {most} are explained");
            }
        }
        if is_explained {
            return outcome.requests;
        }
    }
    panic!("in {ATTEMPTS} attempts, no percentiles as planted");
}

#[test]
fn planted_delays_come_out_as_percentiles() {
    let _alone = alone();
    let tier = |share, millis| Tier { share, delay: Duration::from_millis(millis) };
    let lateness = Lateness::Tiers(vec![tier(CYCLE * 6 / 10, 20), tier(CYCLE * 4 / 10, 200)]);
    let open = Shape::Open { requests_per_second: 200.0, seed: 1 };
    let load = Load { connections: 64, duration: Duration::from_secs(2), ..load(NOBODY, open) };
    let requests = check_percentiles(&lateness, &load, &[0.1, 0.7, 0.85], 20.0);
    assert!((300..500).contains(&requests), "200/s for 2 s: {requests}");
}

#[test]
fn a_stall_is_not_omitted() {
    let _alone = alone();
    // A quarter of the requests fall due in the stall and wait 0 to 500 ms for its end, evenly. A closed loop would have had
    // 16 slow requests of 2,000, and a p99 near zero.
    let lateness = Lateness::Stall { from: Duration::from_millis(500), to: Duration::from_millis(1000) };
    let open = Shape::Open { requests_per_second: 1000.0, seed: 1 };
    let load = Load { connections: 16, duration: Duration::from_secs(2), ..load(NOBODY, open) };
    assert!(lateness.expected_millis(&load, 0.99).is_some_and(|millis| millis > 450.0));
    check_percentiles(&lateness, &load, &[0.4, 0.8, 0.9, 0.99], 20.0);
}

#[test]
fn what_is_never_answered_counts_with_its_age() {
    let _alone = alone();
    let never = Lateness::Tiers(vec![Tier { share: CYCLE, delay: Duration::from_secs(60) }]);
    let server = Planted::start(never).expect("loopback has a port");
    let open = Shape::Open { requests_per_second: 100.0, seed: 1 };
    let outcome = run(&load(server.address(), open));
    assert!(outcome.failed() > 0 && outcome.failed() == outcome.requests, "{outcome:?}");
    assert!(millis(&outcome, 0.5) > 2500.0, "{outcome:?}");
}

#[test]
fn a_refused_load_fails_without_spinning() {
    let _alone = alone();
    let unused = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let outcome = run(&load(unused, Shape::ConnectionPerRequest));
    assert_eq!(outcome.requests, 0);
    assert!(outcome.failed() > 0 && outcome.own_cpu < outcome.elapsed, "{outcome:?}");
}

#[test]
fn an_interrupted_load_ends_at_once() {
    let _alone = alone();
    let interrupt = Interrupt::default();
    let load = Load { duration: Duration::from_secs(60), ..load(shard(), Shape::KeepAlive) };
    let waker = interrupt.clone();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        waker.raise();
    });
    let start = Instant::now();
    assert!(matches!(load::run(&load, &interrupt, || ()), Err(LoadError::Interrupted)));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_cpu_that_is_not_there_is_an_error() {
    let _alone = alone();
    let load = Load { cpus: vec![0, 1023], ..load(shard(), Shape::KeepAlive) };
    let failed = load::run(&load, &Interrupt::default(), || ()).err();
    assert!(matches!(failed, Some(LoadError::Thread { cpu: 1023, .. })), "{failed:?}");
}

#[test]
fn idle_connections_are_open_until_they_are_dropped() {
    let _alone = alone();
    // Beyond 28,000 the ports of one address would not do.
    let wanted = if std::env::var_os("SHERD_PROVE").is_some() { 100_000 } else { 500 };
    // Both ends of them are ours, and what else the tests have open.
    let limit = raise_open_files(2 * wanted + 100).expect("readable");
    let count = wanted.min((limit - 100) / 2) as usize;
    if count < wanted as usize {
        println!(
            "{count} idle connections instead of {wanted}: the limit of open files is {limit} and cannot be raised"
        );
    }
    let listener = shard();
    let idle = IdleConnections::open(&[listener], count, 10, &Interrupt::default()).expect("they open");
    assert_eq!(idle.len(), count);
}

/// What a faulty echo does, once, at its 300,000th byte.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Flips,
    Loses,
    Doubles,
    Ends,
    Keeps,
}

/// Echoes every connection; the first one with a fault.
fn echo_with(fault: Fault) -> SocketAddr {
    const AT: usize = 300_000;
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            thread::spawn(move || echo(stream, (number == 0).then_some((AT, fault))));
        }
    });
    address
}

fn echo(mut stream: TcpStream, mut fault: Option<(usize, Fault)>) {
    let (mut buffer, mut seen) = (vec![0; 10_000], 0);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let mut bytes = buffer[..count].to_vec();
        seen += count;
        if let Some((_, fault)) = fault.take_if(|(at, _)| seen >= *at) {
            match fault {
                Fault::Flips => bytes[count / 2] ^= 1,
                Fault::Loses => drop(bytes.remove(count / 2)),
                Fault::Doubles => bytes.insert(count / 2, bytes[count / 2]),
                Fault::Ends => return,
                Fault::Keeps => bytes.truncate(count - 1),
            }
            if fault == Fault::Keeps {
                let _ = stream.write_all(&bytes);
                return thread::sleep(Duration::from_secs(60));
            }
        }
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

#[test]
fn a_faulty_stream_is_found_and_the_others_go_on() {
    let _alone = alone();
    for (fault, says) in [
        (Fault::Flips, "a stream has a wrong byte"),
        (Fault::Loses, "a stream has a wrong byte"),
        (Fault::Doubles, "a stream has a wrong byte"),
        (Fault::Ends, "a stream ended before its time"),
        (Fault::Keeps, "bytes of a stream did not come back"),
    ] {
        let streams = Load { connections: 4, answer_bytes: 10_000, ..load(echo_with(fault), Shape::Streams) };
        let outcome = run(&streams);
        let expected = [(says.to_owned(), 1)].into();
        // What ends with bytes unread resets; the system's word for that is its own.
        let reset = fault == Fault::Ends && outcome.failed() == 1;
        assert!(outcome.errors == expected || reset, "{fault:?}: {outcome:?}");
        assert!(outcome.requests > 0, "{fault:?}: {outcome:?}");
    }
}

#[test]
fn streams_that_nobody_takes_fail_once_each() {
    let _alone = alone();
    let unused = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let outcome = run(&Load { connections: 5, ..load(unused, Shape::Streams) });
    assert_eq!((outcome.failed(), outcome.requests), (5, 0), "{outcome:?}");
}

#[test]
fn an_echo_too_long_for_buffers_is_refused() {
    let _alone = alone();
    let long = Load { answer_bytes: MAX_ECHO_BYTES + 1, ..load(shard(), Shape::Echo) };
    assert!(matches!(load::run(&long, &Interrupt::default(), || ()), Err(LoadError::Thread { .. })));
}
