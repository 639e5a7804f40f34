//! What the filter does to listen(2), with and without privileges, and where there is a listener already.

use std::{
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Command, Stdio},
};

use sherd_shim::hello::{Answer, Hello};
use sherd_testkit::{Need, needs};

use crate::broker::{Folder, Running, SHIM, text};

const NOBODY: u32 = 65534;

/// Listens, from a thread and a child as well.
const PROGRAM: &str = r"
import os, socket, threading
def listen():
    with socket.socket() as it:
        it.bind(('127.0.0.1', 0))
        try:
            it.listen()
            print('listening', flush=True)
        except OSError as error:
            print('errno', error.errno, flush=True)
listen()
thread = threading.Thread(target=listen)
thread.start()
thread.join()
if os.fork() == 0:
    listen()
    os._exit(0)
os.wait()
";

/// Answers three notifications on standard input: in Python, because its ioctl is safe.
const BROKER: &str = r"
import fcntl, struct, sys
RECV, SEND, CONTINUE = 0xc0502100, 0xc0182101, 1
errno = int(sys.argv[1])
for _ in range(3):
    request = bytearray(80)
    fcntl.ioctl(0, RECV, request)
    id, pid, flags, nr, arch = struct.unpack_from('=QIIiI', request)
    fcntl.ioctl(0, SEND, bytearray(struct.pack('=QqiI', id, 0, -errno, 0 if errno else CONTINUE)))
    print(nr, pid > 0)
";

#[test]
fn a_program_that_listens_is_trapped_and_answered() {
    if !needs("a_program_that_listens_is_trapped_and_answered", &[Need::Program("python3")]) {
        return;
    }
    let check = |errno: &str, expected: &str| {
        let folder = Folder::new();
        let broker = folder.broker();
        let program = Running::start(&mut folder.shim(&["python3", "-c", PROGRAM]));
        let trap: OwnedFd = broker.let_go().expect("a notify descriptor");
        let mut command = Command::new("python3");
        command.args(["-c", BROKER, errno]).stdin(trap).stdout(Stdio::piped()).stderr(Stdio::piped());
        let answers = Running(command.spawn().expect("python3")).finish();
        assert_eq!(text(&answers.stdout), format!("{} True\n", listen_number()).repeat(3), "{}", text(&answers.stderr));
        assert_eq!(text(&program.finish().stdout), expected.repeat(3));
    };
    check("0", "listening\n");
    check("98", "errno 98\n");
}

fn listen_number() -> u32 {
    if cfg!(target_arch = "x86_64") { 50 } else { 201 }
}

#[test]
fn only_who_must_gives_up_gaining_privileges() {
    if !needs("only_who_must_gives_up_gaining_privileges", &[Need::Root]) {
        return;
    }
    let folder = Folder::new();
    let check = |command: &mut Command, expected: &str| {
        let broker = folder.broker();
        let shim = Running::start(command);
        let guest = broker.accept();
        assert_eq!(guest.hello, Hello::Trapped);
        guest.answer(Answer::Go.to_byte());
        assert_eq!(text(&shim.finish().stdout), expected);
    };
    let program = ["grep", "NoNewPrivs", "/proc/self/status"];
    check(&mut folder.shim(&program), "NoNewPrivs:\t0\n");
    check(&mut as_nobody(&folder, &program), "NoNewPrivs:\t1\n");
}

/// The shim as another user, who may not see where it was built. Needs root.
pub(crate) fn as_nobody(folder: &Folder, program: &[&str]) -> Command {
    let copy = folder.path("shim");
    // By another process: a descriptor of ours for writing could be in a child of another test, which is ETXTBSY.
    let copied = Command::new("install").args(["-m", "755", SHIM]).arg(&copy).status().expect("install");
    assert!(copied.success());
    let mut command = Command::new(copy);
    command.uid(NOBODY).gid(NOBODY).arg("--socket").arg(folder.socket()).arg("--").args(program);
    command
}

#[test]
fn a_second_listener_is_told_and_the_program_runs() {
    let (outer, inner) = (Folder::new(), Folder::new());
    let (outer_broker, inner_broker) = (outer.broker(), inner.broker());
    let socket = inner.socket();
    let words = [SHIM, "--socket", socket.to_str().expect("UTF-8"), "echo", "ran"];
    let shim = Running::start(&mut outer.shim(&words));
    let _trap = outer_broker.let_go().expect("a notify descriptor");
    let guest = inner_broker.accept();
    const EBUSY: u32 = 16;
    assert_eq!((guest.hello, guest.trap.is_none()), (Hello::Untrapped { errno: EBUSY }, true));
    guest.answer(Answer::Go.to_byte());
    let output = shim.finish();
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("ran\n".into(), String::new()));
}
