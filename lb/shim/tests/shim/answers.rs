//! What the broker says, or doesn't, and what the shim makes of it.

use std::{
    fs,
    os::fd::AsRawFd,
    os::unix::fs::PermissionsExt,
    process::Output,
    time::{Duration, Instant},
};

use sherd_shim::hello::{Answer, Hello};

use crate::broker::{Folder, Running, SHIM, SOON, text};

fn check_fails(output: &Output, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{message}");
    assert!(message.starts_with("sherd-shim: ") && message.matches('\n').count() == 1, "one line: {message}");
    assert!(words.iter().all(|word| message.contains(word)), "{words:?} in {message}");
    assert_eq!(text(&output.stdout), "", "the program did not run");
}

#[test]
fn the_program_runs_when_the_broker_says_so() {
    let folder = Folder::new();
    let broker = folder.broker();
    let shim = Running::start(&mut folder.shim(&["sh", "-c", "echo $$; exit 42"]));
    let pid = shim.0.id();
    let guest = broker.accept();
    assert_eq!(guest.hello, Hello::Trapped);
    let trap = guest.answer(Answer::Go.to_byte()).expect("a notify descriptor");
    let link = fs::read_link(format!("/proc/self/fd/{}", trap.as_raw_fd())).expect("it is open");
    assert_eq!(link.to_str(), Some("anon_inode:seccomp notify"));
    let output = shim.finish();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(42), format!("{pid}\n")));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn it_does_not_run_when_the_broker_refuses_or_talks_nonsense() {
    for (byte, word) in [(b'x', "refuses"), (0, "0x00"), (b'G', "0x47")] {
        let folder = Folder::new();
        let broker = folder.broker();
        let shim = Running::start(&mut folder.shim(&["echo", "ran"]));
        broker.accept().answer(byte);
        check_fails(&shim.finish(), &[word]);
    }
}

#[test]
fn an_absent_agent_is_waited_for_and_named() {
    let check = |folder: &Folder, why: &str| {
        let start = Instant::now();
        let mut command = std::process::Command::new(SHIM);
        command.arg("--socket").arg(folder.socket()).args(["--wait", "1", "echo", "ran"]);
        let output = Running::start(&mut command).finish();
        let took = start.elapsed();
        assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "{took:?}");
        let path = folder.socket();
        check_fails(&output, &["within 1 s", path.to_str().expect("UTF-8"), why]);
    };
    check(&Folder::new(), "No such file");
    let stale = Folder::new();
    drop(stale.broker());
    check(&stale, "Connection refused");
    let silent = Folder::new();
    // The kernel takes the hello; nobody reads it.
    let _broker = silent.broker();
    check(&silent, "timed out");
}

#[test]
fn a_wrong_path_is_told_at_once() {
    let folder = Folder::new();
    fs::write(folder.path("file"), "").expect("a file");
    let long = format!("/{}", "a".repeat(108));
    for (path, why) in [(folder.path("file/broker"), "Not a directory"), (long.into(), "too long")] {
        let start = Instant::now();
        let mut command = std::process::Command::new(SHIM);
        command.arg("--socket").arg(&path).args(["--wait", "3600", "echo", "ran"]);
        check_fails(&Running::start(&mut command).finish(), &[path.to_str().expect("UTF-8"), why]);
        assert!(start.elapsed() < SOON);
    }
}

#[test]
fn a_late_agent_is_found() {
    let folder = Folder::new();
    let shim = Running::start(&mut folder.shim(&["echo", "ran"]));
    shim.is_filtered();
    folder.broker().let_go();
    assert_eq!(text(&shim.finish().stdout), "ran\n");
}

#[test]
fn an_agent_that_restarts_is_asked_again() {
    let folder = Folder::new();
    let shim = Running::start(&mut folder.shim(&["echo", "ran"]));
    let first = folder.broker();
    let guest = first.accept();
    drop(first);
    fs::remove_file(folder.socket()).expect("the broker's socket");
    drop(guest);
    let second = folder.broker();
    // Once more it is closed without an answer, by an agent that stays.
    drop(second.accept());
    let guest = second.accept();
    assert_eq!((guest.hello, guest.trap.is_some()), (Hello::Trapped, true));
    guest.answer(Answer::Go.to_byte());
    assert_eq!(text(&shim.finish().stdout), "ran\n");
}

#[test]
fn a_socket_that_opens_late_is_entered() {
    if !sherd_testkit::needs("a_socket_that_opens_late_is_entered", &[sherd_testkit::Need::Root]) {
        return;
    }
    let folder = Folder::new();
    let broker = folder.broker();
    fs::set_permissions(folder.socket(), fs::Permissions::from_mode(0o700)).expect("it is ours");
    let shim = Running::start(&mut crate::trapping::as_nobody(&folder, &["echo", "ran"]));
    shim.is_filtered();
    fs::set_permissions(folder.socket(), fs::Permissions::from_mode(0o777)).expect("it is ours");
    broker.let_go();
    assert_eq!(text(&shim.finish().stdout), "ran\n");
}
