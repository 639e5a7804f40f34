//! The worker lives in its shard's network namespace, and leaves nothing behind there.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    process::Command,
    sync::mpsc,
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use sherd_lb::relay::{Backend, Limits};
use sherd_testkit::eventually;

use crate::rig::{Front, PORT, SOON, alone, answer_lines, ask, shard_on};

pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

pub(crate) fn exists(link: &str) -> bool {
    Command::new("ip").args(["link", "show", link]).output().unwrap().status.success()
}

/// A namespace that only what is given out keeps alive. It is gone when the near end of its veth is.
pub(crate) fn namespace_with_shard(link: &str) -> (File, SocketAddr) {
    ip(&format!("link add {link} type veth peer name far-{link}"));
    let (gives, gets) = mpsc::channel();
    let (moved, moves) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        ip("addr add 192.0.2.7/32 dev lo");
        let listener = TcpListener::bind("192.0.2.7:0").unwrap();
        gives.send((gettid(), File::open("/proc/thread-self/ns/net").unwrap(), listener)).unwrap();
        moves.recv().unwrap();
    });
    let (tid, netns, listener) = gets.recv().unwrap();
    ip(&format!("link set far-{link} netns {tid}"));
    moved.send(()).unwrap();
    thread.join().unwrap();
    let address = listener.local_addr().unwrap();
    // The shard says whom it sees.
    shard_twice(listener, |stream| {
        let peer = stream.peer_addr()?.ip().to_string();
        answer_lines(stream, &peer)
    });
    (netns, address)
}

/// Two connections, then the listener is closed: as a shard that ends.
fn shard_twice(listener: TcpListener, serve: impl Fn(TcpStream) -> io::Result<()> + Send + Clone + 'static) {
    thread::spawn(move || {
        for stream in listener.incoming().take(2).flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
}

#[test]
fn a_worker_enters_its_shards_namespace_and_leaves_nothing_there() {
    alone("namespaces::enter_and_leave", || {
        let home = fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        let front = Front::new(0, Limits::default(), None);
        let (netns, address) = namespace_with_shard("near");
        let inode = netns.metadata().unwrap().ino();
        assert_ne!(inode, home);
        let backend = Backend { netns: Some(netns.into()), ports: vec![(PORT, address.into())] };
        front.worker.set_backend(Some(backend)).recv().unwrap().unwrap();
        let streams = [front.connect(), front.connect()];
        assert_eq!(ask(&streams[0]).unwrap(), "192.0.2.7", "the shard sees its own address, not loopback");
        assert!(exists("near"));

        front.worker.set_backend(None).recv().unwrap().unwrap();
        assert_eq!(ask(&streams[0]).unwrap(), "192.0.2.7", "connections outlive the move");
        let closed = front.worker.close_backend_connections().recv_timeout(SOON).unwrap();
        assert_eq!((closed.connections, closed.reset), (2, 2));
        eventually("the namespace is gone", SOON, || (!exists("near")).then_some(()));
    });
}

#[test]
fn a_worker_goes_from_namespace_to_namespace() {
    alone("namespaces::many", || {
        let front = Front::new(0, Limits::default(), None);
        for round in 0..3 {
            let link = format!("near{round}");
            let (netns, address) = namespace_with_shard(&link);
            let backend = Backend { netns: Some(netns.into()), ports: vec![(PORT, address.into())] };
            front.worker.set_backend(Some(backend)).recv().unwrap().unwrap();
            assert_eq!(ask(&front.connect()).unwrap(), "192.0.2.7");
            // The shard ends after its second connection.
            drop(front.connect());
        }
        front.worker.set_backend(None).recv().unwrap().unwrap();
        front.worker.close_backend_connections().recv_timeout(SOON).unwrap();
        for round in 0..3 {
            eventually("the namespace is gone", SOON, || (!exists(&format!("near{round}"))).then_some(()));
        }
    });
}

#[test]
fn a_backend_that_is_no_namespace_is_an_error_and_changes_nothing() {
    alone("namespaces::bad", || {
        let front = Front::new(0, Limits::default(), None);
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file = File::open("/proc/self/ns/uts").unwrap();
        let backend = Backend { netns: Some(file.into()), ports: vec![(PORT, address.into())] };
        assert!(front.worker.set_backend(Some(backend)).recv().unwrap().is_err());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        front.set_backend(listener.local_addr().unwrap());
        shard_on(listener, |stream| answer_lines(stream, "home"));
        assert_eq!(ask(&front.connect()).unwrap(), "home");
    });
}
