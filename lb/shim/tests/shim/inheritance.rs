//! The program is as it would be without the shim: whatever it inherits is compared with a run without.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    os::unix::{ffi::OsStrExt, process::ExitStatusExt},
    process::Command,
};

use crate::broker::{Folder, Running, SHIM, text};

/// Programs that show themselves. No shell: while it forks, its own signal mask is another.
const SHOW: [&[&[u8]]; 3] = [
    &[b"grep", b"-ahe", b"", b"-e", b"two words\n", b"-e", b"odd \xff\x01", b"--", ENVIRON, CMDLINE, STATUS, LIMITS],
    &[b"ls", b"/proc/self/fd"],
    &[b"readlink", b"/proc/self/cwd"],
];
const ENVIRON: &[u8] = b"/proc/self/environ";
const CMDLINE: &[u8] = b"/proc/self/cmdline";
const STATUS: &[u8] = b"/proc/self/status";
const LIMITS: &[u8] = b"/proc/self/limits";

/// Lines of STATUS that differ between any two processes, or that a filter changes.
const OWN: [&str; 16] = [
    "Tgid:",
    "Pid:",
    "PPid:",
    "NSpid:",
    "NStgid:",
    "NSpgid:",
    "Vm",
    "Rss",
    "Hugetlb",
    "SigQ:",
    "NoNewPrivs:",
    "Seccomp",
    "Speculation",
    "Cpus_allowed",
    "voluntary_",
    "nonvoluntary_",
];

/// What they show behind `wrapper`, with the shim in a folder or without.
fn show(wrapper: &[&str], folder: Option<&Folder>) -> String {
    let mut shown = String::new();
    for words in SHOW {
        let odd = OsStr::from_bytes(b"odd \xff\x01");
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]);
        if let Some(folder) = folder {
            command.arg(SHIM).arg("--socket").arg(folder.socket()).arg("--");
        }
        command.args(words.iter().map(|word| OsStr::from_bytes(word))).current_dir("/usr");
        // `_` is a shell's own, and names the file it starts.
        command.env_clear().env("PATH", "/usr/bin:/bin").env("EMPTY", "").env(odd, odd).env("_", "");
        let broker = folder.map(Folder::broker);
        let running = Running::start(&mut command);
        let _trap = broker.map(|broker| broker.let_go());
        let output = running.finish();
        assert!(output.status.success(), "{wrapper:?}: {}", text(&output.stderr));
        shown += &output.stdout.escape_ascii().to_string().replace(r"\n", "\n");
    }
    shown.lines().filter(|line| !OWN.iter().any(|own| line.starts_with(own))).map(|line| format!("{line}\n")).collect()
}

#[test]
fn nothing_of_the_shim_is_inherited_and_everything_else_is() {
    let folder = Folder::new();
    let check = |wrapper: &[&str], expected: &str| {
        let (without, with) = (show(wrapper, None), show(wrapper, Some(&folder)));
        let differ: Vec<_> = without.lines().zip(with.lines()).filter(|(one, other)| one != other).collect();
        assert!(without == with, "{wrapper:?}: {differ:#?}\nwithout:\n{without}\nwith:\n{with}");
        assert!(with.contains(expected), "{wrapper:?}: {expected:?} in\n{with}");
    };
    check(&["env"], "EMPTY=\\x00");
    check(&["env", "--ignore-signal=TERM", "--block-signal=USR1"], "SigBlk:\\t0000000000000200\n");
    check(&["sh", "-c", "exec \"$@\" 7</dev/null", "sh"], "\n7\n");
    // `ls` opens the folder as the first free one.
    check(&["sh", "-c", "exec \"$@\" <&-", "sh"], "\n0\n1\n");
    check(&["sh", "-c", "exec \"$@\" 2>&-", "sh"], "\n0\n1\n");
    check(&["sh", "-c", "umask 77; ulimit -n 99; exec \"$@\"", "sh"], "Umask:\\t0077\n");
}

/// Rust's runtime would ignore it before the shim's first line.
#[test]
fn sigpipe_is_as_it_was() {
    const SIGPIPE: u32 = 13;
    let folder = Folder::new();
    let check = |option: &str, expected| {
        let shown = show(&["env", option], Some(&folder));
        let mask = shown.lines().find_map(|line| line.strip_prefix(r"SigIgn:\t")).expect("a line of the kernel's");
        let mask = u64::from_str_radix(mask, 16).expect("a mask");
        assert_eq!(mask >> (SIGPIPE - 1) & 1, expected, "{option}");
    };
    check("--default-signal=PIPE", 0);
    check("--ignore-signal=PIPE", 1);
}

#[test]
fn a_signal_ends_the_program() {
    let folder = Folder::new();
    let broker = folder.broker();
    let mut shim = Running::start(&mut folder.shim(&["sh", "-c", "echo ready; exec sleep 60"]));
    let _trap = broker.let_go();
    let mut line = String::new();
    BufReader::new(shim.0.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("its output");
    assert_eq!(line, "ready\n");
    let killed = Command::new("kill").args(["-TERM", &shim.0.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    assert_eq!(shim.finish().status.signal(), Some(15));
}

#[test]
fn a_message_does_not_go_into_a_socket_of_ours() {
    let folder = Folder::new();
    let broker = folder.broker();
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" <&- >&- 2>&-", "sh", SHIM, "--socket"]);
    let shim = Running::start(command.arg(folder.socket()).args(["--", "echo", "ran"]));
    // It reads to the end, and finds nothing.
    broker.accept().answer(b'x');
    assert_eq!(shim.finish().status.code(), Some(75));
}
