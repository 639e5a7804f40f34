//! How connections end: half-closes, resets, deadlines, drains.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc,
    time::{Duration, Instant},
};

use sherd_lb::relay::{Cause, Drained, Limits};
use sherd_testkit::eventually;
use socket2::SockRef;

use crate::rig::{Front, SOON, alone, ask, named, shard};

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[test]
fn the_client_may_end_first_and_still_be_answered() {
    alone("ends::client_first", || {
        let backend = shard(|mut stream| {
            let mut request = Vec::new();
            stream.read_to_end(&mut request)?;
            stream.write_all(format!("{} bytes", request.len()).as_bytes())
        });
        let front = Front::new(0, Limits::default(), Some(backend));
        let mut stream = front.connect();
        stream.write_all(&[1; 70_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "70000 bytes");
        front.becomes_idle();
    });
}

#[test]
fn the_shard_may_end_first_and_still_be_told() {
    alone("ends::shard_first", || {
        let (told, tells) = mpsc::channel();
        let backend = shard(move |mut stream| {
            stream.write_all(b"bye")?;
            stream.shutdown(Shutdown::Write)?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest)?;
            told.send(rest).unwrap();
            Ok(())
        });
        let front = Front::new(0, Limits::default(), Some(backend));
        let mut stream = front.connect();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "bye");
        stream.write_all(b"last words").unwrap();
        drop(stream);
        assert_eq!(tells.recv_timeout(SOON).unwrap(), b"last words");
        front.becomes_idle();
    });
}

#[test]
fn a_client_that_resets_resets_the_shard() {
    alone("ends::reset_by_client", || {
        let (told, tells) = mpsc::channel();
        let backend = shard(move |mut stream| {
            stream.write_all(b"x")?;
            told.send(stream.read(&mut [0; 16]).and_then(|_| stream.read(&mut [0; 16])).map_err(|e| e.kind())).unwrap();
            Ok(())
        });
        let front = Front::new(0, Limits::default(), Some(backend));
        let mut stream = front.connect();
        stream.write_all(b"y").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        reset(stream);
        assert_eq!(tells.recv_timeout(SOON).unwrap(), Err(ErrorKind::ConnectionReset));
        front.becomes_idle();
        assert_eq!(front.worker.stats().errors(Cause::ResetByClient), 1);
    });
}

#[test]
fn a_shard_that_resets_resets_the_client() {
    alone("ends::reset_by_shard", || {
        let backend = shard(|mut stream| {
            stream.read_exact(&mut [0])?;
            reset(stream);
            Ok(())
        });
        let front = Front::new(0, Limits::default(), Some(backend));
        let mut stream = front.connect();
        stream.write_all(b"y").unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        front.becomes_idle();
        assert_eq!(front.worker.stats().errors(Cause::ResetByShard), 1);
    });
}

#[test]
fn a_silent_connection_ends_and_a_busy_one_does_not() {
    alone("ends::idle", || {
        let limits = Limits { idle_timeout: Some(Duration::from_millis(400)), ..Limits::default() };
        let front = Front::new(0, limits, Some(named("a")));
        let (silent, busy) = (front.connect(), front.connect());
        let begin = Instant::now();
        assert_eq!(ask(&silent).unwrap(), "a");
        while begin.elapsed() < Duration::from_millis(1_200) {
            assert_eq!(ask(&busy).unwrap(), "a");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!((&silent).read(&mut [0]).unwrap(), 0);
        assert_eq!(front.worker.stats().errors(Cause::IdleTimeout), 1);
        assert_eq!(front.worker.stats().active.get(), 1);
    });
}

#[test]
fn a_drain_waits_for_connections_and_then_resets_them() {
    alone("ends::drain", || {
        let front = Front::new(0, Limits::default(), Some(named("a")));
        let (done, stays) = (front.connect(), front.connect());
        ask(&done).unwrap();
        ask(&stays).unwrap();
        let deadline = Instant::now() + Duration::from_millis(600);
        let drained = front.worker.drain(deadline);
        assert!(drained.recv_timeout(Duration::from_millis(100)).is_err(), "connections are open");
        drop(done);
        assert_eq!(ask(&stays).unwrap(), "a", "a drain disturbs nobody before its deadline");
        assert_eq!(drained.recv_timeout(SOON).unwrap(), Drained { connections: 2, reset: 1 });
        assert!(Instant::now() >= deadline);
        assert_eq!((&stays).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(front.worker.stats().errors(Cause::DrainDeadline), 1);
        let nothing = front.worker.drain(Instant::now() + SOON);
        assert_eq!(nothing.recv_timeout(SOON).unwrap(), Drained { connections: 0, reset: 0 });
    });
}

#[test]
fn a_new_backend_leaves_the_connections_of_the_former() {
    alone("ends::former", || {
        let front = Front::new(0, Limits::default(), Some(named("old")));
        let (first, second) = (front.connect(), front.connect());
        ask(&first).unwrap();
        ask(&second).unwrap();
        front.set_backend(named("new"));
        let third = front.connect();
        assert_eq!([&first, &third].map(|stream| ask(stream).unwrap()), ["old", "new"]);
        let drained = front.worker.drain_former(Instant::now() + Duration::from_millis(300));
        drop(second);
        assert_eq!(drained.recv_timeout(SOON).unwrap(), Drained { connections: 2, reset: 1 });
        assert!(ask(&first).is_err());
        assert_eq!(ask(&third).unwrap(), "new");
    });
}

/// What a shard answers, what it drops, and what its client gave up are told apart.
#[test]
fn answers_are_counted_and_so_are_connections_without_one() {
    alone("ends::answers", || {
        // It does with a connection what its first byte says.
        let backend = shard(|mut stream| {
            let mut word = [0];
            stream.read_exact(&mut word)?;
            match word[0] {
                b'a' => stream.write_all(b"yes")?,
                b'r' => reset(stream),
                _ => {}
            }
            Ok(())
        });
        let front = Front::new(0, Limits::default(), Some(backend));
        let stats = front.worker.stats();
        let counted = |closed: u64| {
            eventually("it has ended", SOON, || (stats.closed.get() == closed).then_some(()));
            (stats.answered.get(), stats.unanswered.get())
        };
        for (word, closed, expected) in [(b"a", 1, (1, 0)), (b"c", 2, (1, 1)), (b"r", 3, (1, 2))] {
            let mut stream = front.connect();
            stream.write_all(word).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
            drop(stream);
            assert_eq!(counted(closed), expected, "{word:?}");
        }
        drop(front.connect());
        assert_eq!(counted(4), (1, 2), "the client ended first");
    });
}
