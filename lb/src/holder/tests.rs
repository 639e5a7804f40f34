//! The holder over its socket: what it keeps, what it refuses, and clients of every bad kind.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    thread::JoinHandle,
    time::Duration,
};

use sherd_testkit::eventually;

use super::*;

/// A holder on a thread; ends with the test.
struct Running {
    directory: tempfile::TempDir,
    listener: UnixListener,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Running {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(directory.path().join("holder.sock")).expect("a unix socket");
        let served = listener.try_clone().expect("a copy");
        Self { directory, listener, thread: Some(std::thread::spawn(|| serve(served, Idle::Stay))) }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("holder.sock")
    }

    fn client(&self) -> HolderClient {
        HolderClient::connect(&self.path()).expect("the holder serves")
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).expect("the holder serves");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
        stream
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both).expect("it listens");
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(Ok(())))), "the holder must end without an error");
    }
}

fn file(content: &str) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(content.as_bytes()).expect("it grows");
    file
}

fn content(fd: OwnedFd) -> String {
    let mut text = String::new();
    let mut file = File::from(fd);
    file.seek(SeekFrom::Start(0)).expect("it is a file");
    file.read_to_string(&mut text).expect("it is readable");
    text
}

fn send(stream: &UnixStream, bytes: &[u8], fd: Option<BorrowedFd<'_>>) {
    assert_eq!(crate::sys::scm::send(stream.as_fd(), bytes, fd).expect("it is connected"), bytes.len());
}

#[test]
fn descriptors_outlive_their_client() {
    let holder = Running::start();
    let mut first = holder.client();
    assert_eq!(first.ping().expect("it answers").protocol, 1);
    for name in ["web/a", "web/b", "dns/a"] {
        first.put(name, file(name).as_fd()).expect("it takes it");
    }
    first.put("web/a", file("new").as_fd()).expect("it takes another in its place");
    drop(first);
    let mut second = holder.client();
    assert_eq!(second.list().expect("it answers"), ["dns/a", "web/a", "web/b"]);
    assert_eq!(content(second.get("web/a").expect("it is there")), "new");
    let web = second.get_prefix("web/").expect("they are there");
    assert_eq!(
        web.into_iter().map(|(name, fd)| (name, content(fd))).collect::<Vec<_>>(),
        [("web/a".into(), "new".into()), ("web/b".into(), "web/b".to_owned())]
    );
    second.remove("web/a").expect("it is there");
    assert!(matches!(second.remove("web/a"), Err(HolderError::NotFound { .. })));
    assert!(matches!(second.get("web/a"), Err(HolderError::NotFound { .. })));
    second.remove_prefix("web/").expect("it answers");
    assert_eq!(second.list().expect("it answers"), ["dns/a"]);
}

#[test]
fn many_descriptors_come_back() {
    let holder = Running::start();
    let mut client = holder.client();
    let shared = file("one");
    // 64 slots x 8 ports, with the steering of each port.
    let names: Vec<_> = (0..8 * (64 + 8)).map(|i| format!("web/{i:04}")).collect();
    for name in &names {
        client.put(name, shared.as_fd()).expect("it takes it");
    }
    let all = client.get_prefix("web/").expect("all come back");
    assert!(all.iter().map(|(name, _)| name).eq(&names));
}

#[test]
fn what_is_given_for_a_while_ends_then_and_not_before() {
    let holder = Running::start();
    let mut client = holder.client();
    let (short, long) = (Duration::from_secs(1), Duration::from_secs(100));
    client.put("kept", file("kept").as_fd()).expect("it takes it");
    for name in ["taken over", "short", "long"] {
        let name = name.replace(' ', "-");
        client.put_for(&name, file(&name).as_fd(), if name == "long" { long } else { short }).expect("it takes it");
    }
    // What is put again has the new end: here none.
    client.put("taken-over", file("new").as_fd()).expect("it takes it");
    assert_eq!(client.list().expect("it answers"), ["kept", "long", "short", "taken-over"]);
    let began = std::time::Instant::now();
    eventually("it has ended", Duration::from_secs(10), || {
        (client.list().expect("it answers") == ["kept", "long", "taken-over"]).then_some(())
    });
    assert!(began.elapsed() > short / 2, "it ended after {:?}", began.elapsed());
    client.remove("long").expect("it is there");
    assert!(matches!(client.put_for("", file("").as_fd(), long), Err(HolderError::Malformed { .. })));
    assert!(matches!(client.put_for(&"n".repeat(201), file("").as_fd(), long), Err(HolderError::Malformed { .. })));
    assert_eq!(client.list().expect("it answers"), ["kept", "taken-over"]);
}

/// The end must come by itself, not with the next request.
#[test]
fn an_end_closes_the_descriptor_with_nobody_there() {
    let holder = Running::start();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    holder.client().put_for("end", writer.as_fd(), Duration::from_secs(1)).expect("it takes it");
    drop(writer);
    let (told, tells) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send({ reader }.read(&mut [0])));
    assert!(matches!(tells.recv_timeout(Duration::from_secs(10)), Ok(Ok(0))), "the pipe's end is open");
}

#[test]
fn bad_clients_are_cut_off_and_others_go_on() {
    let holder = Running::start();
    let mut good = holder.client();
    good.put("kept", file("kept").as_fd()).expect("it takes it");
    let put = wire::frame(wire::Kind::Put, b"half");
    let sparse = file("x");
    // Half a message and then nothing; half a message with a descriptor and then gone; garbage; another protocol.
    let half = holder.raw();
    send(&half, &put[..6], None);
    let gone = holder.raw();
    send(&gone, &put[..10], Some(sparse.as_fd()));
    drop(gone);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4000], b"SH\x02\x01\0\0\0\0"] {
        let mut stranger = holder.raw();
        let _ = stranger.write_all(garbage);
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer[3] == wire::Kind::Malformed as u8, "{answer:?}");
    }
    // A put without a descriptor, and with a name that is none.
    let mut sloppy = holder.raw();
    send(&sloppy, &put, None);
    send(&sloppy, &wire::frame(wire::Kind::Put, b"a b"), Some(sparse.as_fd()));
    for _ in 0..2 {
        let mut header = [0; 8];
        sloppy.read_exact(&mut header).expect("an answer");
        assert_eq!(header[3], wire::Kind::Malformed as u8);
        let mut text = vec![0; usize::from(header[4])];
        sloppy.read_exact(&mut text).expect("its text");
    }
    // Two descriptors at once.
    let greedy = holder.raw();
    send(&greedy, &put[..4], Some(sparse.as_fd()));
    send(&greedy, &put[4..6], Some(sparse.as_fd()));
    assert_eq!(good.list().expect("it goes on"), ["kept"]);
    assert!(matches!(good.put(&"n".repeat(201), sparse.as_fd()), Err(HolderError::Malformed { .. })));
    assert!(matches!(good.put("", sparse.as_fd()), Err(HolderError::Malformed { .. })));
    drop(half);
    assert_eq!(content(good.get("kept").expect("it is kept")), "kept");
}

#[test]
fn a_flood_of_silent_clients_leaves_room() {
    let holder = Running::start();
    let mut agent = holder.client();
    let silent: Vec<_> = (0..300)
        .map(|i| {
            if i % 20 == 0 {
                agent.ping().expect("who speaks is not the one that makes room");
            }
            holder.raw()
        })
        .collect();
    eventually("a new client is served", Duration::from_secs(5), || holder.client().ping().ok());
    drop(silent);
}

#[test]
fn a_client_that_reads_nothing_holds_nobody_up() {
    let holder = Running::start();
    let mut good = holder.client();
    let shared = file("one");
    for i in 0..500 {
        good.put(&format!("{}{i:04}", "x".repeat(190)), shared.as_fd()).expect("it takes it");
    }
    let deaf = holder.raw();
    deaf.set_nonblocking(true).expect("a flag");
    let list = wire::frame(wire::Kind::List, b"");
    while crate::sys::scm::send(deaf.as_fd(), &list, None).is_ok() {}
    assert_eq!(good.list().expect("it goes on").len(), 500);
}

#[test]
fn without_a_holder_the_error_says_so() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let connected = HolderClient::connect(&directory.path().join("none"));
    assert!(matches!(connected, Err(HolderError::Connect { .. })));
}
