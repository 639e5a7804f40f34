//! Programs that listen in all the ways there are.

use std::{
    collections::BTreeSet,
    io::Read,
    net::{TcpListener, TcpStream},
};

use rustix::process::PidfdFlags;
use sherd_lb::graft::Report;
use sherd_testkit::{Need, eventually, in_new_netns, needs};
use socket2::SockRef;

use crate::{
    broker::SOON,
    rig::{INNER, Rig, ask},
};

/// Of <linux/pidfd.h>.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);

const NEEDS: [Need; 3] = [Need::Root, Need::Bpf, Need::Program("python3")];

/// Answers one line with the client's address, then closes.
const SERVE: &str = r"
def serve(connection, peer):
    connection.recv(100)
    connection.sendall(('%s:%d' % peer[:2]).encode())
    connection.close()
";

pub(crate) fn needed(test: &str) -> bool {
    needs(test, &NEEDS)
}

pub(crate) fn script(body: &str) -> String {
    format!("import os, select, socket, struct, sys, threading, time\n{SERVE}\n{body}")
}

/// The program of `body` is reached, and sees its clients' own addresses.
fn check(name: &str, body: &str, moved: usize) {
    if !needs(name, &NEEDS) {
        return;
    }
    let body = script(body);
    in_new_netns(move || {
        let rig = Rig::python(&body);
        let grafted = rig.grafted();
        assert_eq!((grafted.address.port(), grafted.moved_registrations), (INNER, moved));
        assert_eq!(grafted.unset_options, Vec::<&str>::new());
        for _ in 0..20 {
            let (answer, from) = rig.ask();
            assert_eq!(answer, from.to_string());
        }
    });
}

#[test]
fn a_blocking_server() {
    let body = r"
listener = socket.socket()
listener.bind(('0.0.0.0', 9000))
listener.listen()
while True:
    serve(*listener.accept())
";
    check("a_blocking_server", body, 0);
}

#[test]
fn an_event_loop_that_registers_before_it_listens() {
    let body = r"
listener = socket.socket()
listener.setblocking(False)
listener.bind(('0.0.0.0', 9000))
epoll = select.epoll()
other = select.epoll()
epoll.register(listener.fileno(), select.EPOLLIN)
other.register(listener.fileno(), select.EPOLLIN | select.EPOLLET)
other.register(sys.stderr.fileno(), select.EPOLLOUT) if sys.stderr.isatty() else None
listener.listen()
while True:
    for number, events in epoll.poll():
        assert number == listener.fileno()
        connection, peer = listener.accept()
        connection.setblocking(True)
        serve(connection, peer)
";
    check("an_event_loop_that_registers_before_it_listens", body, 2);
}

#[test]
fn workers_that_share_a_listener_and_listen_again() {
    let body = r"
listener = socket.socket()
listener.bind(('0.0.0.0', 9000))
listener.listen(5)
for _ in range(3):
    if os.fork() == 0:
        listener.listen(511)
        while True:
            serve(*listener.accept())
os.wait()
";
    check("workers_that_share_a_listener_and_listen_again", body, 0);
}

#[test]
fn processes_with_sockets_of_their_own_accept_from_one_listener() {
    let name = "processes_with_sockets_of_their_own_accept_from_one_listener";
    if !needs(name, &NEEDS) {
        return;
    }
    let body = script(
        r"
def listen():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(('0.0.0.0', 9000))
    listener.listen()
    return listener
first = listen()
if os.fork() == 0:
    first.close()
    first = listen()
while True:
    connection, peer = first.accept()
    time.sleep(0.01)
    connection.recv(100)
    connection.sendall(str(os.getpid()).encode())
    connection.close()
",
    );
    in_new_netns(move || {
        let rig = Rig::python(&body);
        let (first, second) = (rig.grafted(), rig.grafted());
        assert_eq!(first.address, second.address);
        assert_ne!(first.holder, second.holder);
        let address = rig.address;
        let asked = || {
            let asking: Vec<_> = (0..16).map(|_| std::thread::spawn(move || ask(address).0)).collect();
            asking.into_iter().map(|asked| asked.join().expect("an answer")).collect::<BTreeSet<_>>()
        };
        eventually("both processes answer", SOON, || (asked().len() == 2).then_some(()));
    });
}

#[test]
fn a_thread_with_descriptors_of_its_own() {
    // Before Linux 6.9 only the first thread's can be got at: the call is answered with EBADF.
    if rustix::process::pidfd_open(rustix::thread::gettid(), PIDFD_THREAD).is_err() {
        return println!("SKIPPED a_thread_with_descriptors_of_its_own: pidfd_open(2) doesn't take a thread here");
    }
    let body = r"
import ctypes
def listen():
    assert ctypes.CDLL(None).unshare(0x400) == 0
    listener = socket.socket()
    listener.bind(('0.0.0.0', 9000))
    listener.listen()
    while True:
        serve(*listener.accept())
thread = threading.Thread(target=listen)
thread.start()
thread.join()
";
    check("a_thread_with_descriptors_of_its_own", body, 0);
}

#[test]
fn another_user_without_privileges() {
    let body = r"
os.setgid(65534)
os.setuid(65534)
listener = socket.socket()
listener.bind(('0.0.0.0', 9000))
listener.listen()
while True:
    serve(*listener.accept())
";
    check("another_user_without_privileges", body, 0);
}

#[test]
fn the_programs_own_socket_is_kept_and_its_options_are_replayed() {
    let name = "the_programs_own_socket_is_kept_and_its_options_are_replayed";
    if !needs(name, &NEEDS) {
        return;
    }
    let body = script(
        r"
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
listener.settimeout(3600)
listener.bind(('127.0.0.1', 9000))
listener.listen(7)
while True:
    connection, peer = listener.accept()
    connection.recv(100)
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
               (socket.IPPROTO_TCP, socket.TCP_NODELAY)]
    connection.sendall(repr([connection.getsockopt(*option) for option in options]).encode())
    connection.close()
",
    );
    in_new_netns(move || {
        let rig = Rig::python(&body);
        let grafted = rig.grafted();
        assert_eq!(grafted.backlog, 7);
        assert_eq!(rig.ask().0, "[1, 77, 1]");
        // The inner door: what comes to the program's own address comes to us.
        SockRef::from(&grafted.original).listen(grafted.backlog).expect("it is bound");
        let door = TcpListener::from(grafted.original);
        let client = TcpStream::connect(("127.0.0.1", INNER)).expect("the inner door");
        assert_eq!(door.accept().expect("a client").1, client.local_addr().expect("a socket"));
    });
}

#[test]
fn an_accepted_socket_does_not_become_a_listener() {
    let name = "an_accepted_socket_does_not_become_a_listener";
    if !needs(name, &NEEDS) {
        return;
    }
    let body = script(
        r"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
listener = socket.socket()
listener.bind(('0.0.0.0', 9000))
listener.listen()
connection, peer = listener.accept()
connection.recv(100)
spare = socket.socket(fileno=os.dup(connection.fileno()))
connection.sendall(b'accepted')
connection.close()
# AF_UNSPEC: no hook of the kernel's sees it.
print(libc.connect(spare.fileno(), b'\0' * 16, 16))
try:
    spare.listen()
    print('listens at', spare.getsockname())
except OSError as error:
    print(error.errno)
listener.listen()
print('still listens')
",
    );
    in_new_netns(move || {
        let rig = Rig::python(&body);
        drop(rig.grafted());
        let mut stream = TcpStream::connect(rig.address).expect("it is published");
        std::io::Write::write_all(&mut stream, b"x").expect("it reads");
        let output = rig.program.finish();
        let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.0, "0\n1\nstill listens\n", "{}", said.1);
    });
}

#[test]
fn calls_that_are_none_of_ours_get_what_the_kernel_says() {
    let name = "calls_that_are_none_of_ours_get_what_the_kernel_says";
    if !needs(name, &NEEDS) {
        return;
    }
    let body = script(
        r"
other = socket.socket()
other.bind(('127.0.0.1', 9001))
other.listen()
unbound = socket.socket()
unbound.listen()
assert unbound.getsockname()[1] != 0
local = socket.socket(socket.AF_UNIX)
local.bind('\0sherd-test-%d' % os.getpid())
local.listen()
guest = socket.socket(socket.AF_UNIX)
guest.connect('\0sherd-test-%d' % os.getpid())
assert struct.unpack('iii', guest.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0] == os.getpid()
multipath = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) if os.path.exists('/proc/sys/net/mptcp') else socket.socket()
multipath.bind(('127.0.0.1', 9002))
multipath.listen()
socket.create_connection(('127.0.0.1', 9002)).close()
twins = [socket.socket(), socket.socket()]
for twin in twins:
    twin.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    twin.bind(('127.0.0.1', 9003))
twins[0].listen()
for failing in (twins[1], socket.create_connection(('127.0.0.1', 9003))):
    try:
        failing.listen()
        print('listens at', failing.getsockname())
    except OSError as error:
        print(error.errno, end=' ')
for number in (os.open('/dev/null', os.O_RDONLY), 999):
    try:
        socket.socket(fileno=number).listen() if number == 999 else socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=number).listen()
        print('listens on', number)
    except OSError as error:
        print(error.errno, end=' ')
datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    datagram.listen()
except OSError as error:
    print(error.errno)
client = socket.create_connection(('127.0.0.1', 9001))
other.accept()
print('accepted')
",
    );
    in_new_netns(move || {
        let rig = Rig::python(&body);
        assert!(matches!(rig.reports.recv_timeout(SOON), Ok(Report::Ended)), "no graft, and an end");
        assert!(!rig.has_direct_listener());
        let output = rig.program.finish();
        let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // EADDRINUSE, EINVAL, ENOTSOCK, EBADF, EOPNOTSUPP.
        assert_eq!(said.0, "98 22 88 9 95\naccepted\n", "{}", said.1);
    });
}

#[test]
fn a_listener_that_closes_leaves_the_array_and_the_next_one_enters() {
    let name = "a_listener_that_closes_leaves_the_array_and_the_next_one_enters";
    if !needs(name, &NEEDS) {
        return;
    }
    let body = script(
        r"
for turn in range(3):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(('127.0.0.1', 9000))
    listener.listen()
    serve(*listener.accept())
    listener.close()
    sys.stdin.read(1)
    print(turn, flush=True)
    time.sleep(0.2) if turn < 2 else None
",
    );
    in_new_netns(move || {
        let mut rig = Rig::python(&body);
        for turn in 0..3 {
            // The agent gives up the former inner socket with the shard's listener.
            drop(rig.grafted());
            let (answer, from) = rig.ask();
            assert_eq!(answer, from.to_string());
            rig.listener_is_gone();
            let mut said = [0; 2];
            rig.program.0.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("a line");
            assert_eq!(String::from_utf8_lossy(&said), format!("{turn}\n"));
        }
    });
}
