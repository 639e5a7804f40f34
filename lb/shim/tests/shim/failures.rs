//! Programs that can't be run, and their exit codes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::broker::{Folder, Running, SHIM, text};

#[test]
fn programs_that_cannot_run_have_a_shells_codes() {
    let folder = Folder::new();
    let file = |name: &str, mode, content: &str| {
        fs::write(folder.path(name), content).expect("a file");
        fs::set_permissions(folder.path(name), Permissions::from_mode(mode)).expect("it is ours");
        folder.path(name).into_os_string().into_string().expect("UTF-8")
    };
    let plain = file("plain", 0o644, "#!/bin/sh\n");
    let data = file("data", 0o755, "no format that anybody knows");
    let orphan = file("orphan", 0o755, "#!/no/such/interpreter\n");
    let below = format!("{plain}/app");
    let dir = folder.path("").into_os_string().into_string().expect("UTF-8");
    let check = |program: &str, path: Option<&str>, code, reason: &str| {
        let broker = folder.broker();
        let mut command = folder.shim(&[program]);
        // In a folder that has such a file: it is no part of an empty PATH.
        command.env_clear().envs(path.map(|path| ("PATH", path))).current_dir(&dir);
        let shim = Running::start(&mut command);
        broker.let_go();
        let output = shim.finish();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{program} in {path:?}: {message}");
        assert!(message.starts_with(&format!("sherd-shim: {program}: {reason}")), "{message}");
    };
    const NOT_FOUND: &str = "No such file or directory";
    const DENIED: &str = "Permission denied";
    check("/no/such/program", None, 127, NOT_FOUND);
    check("no-such-program", Some("/usr/bin:/bin"), 127, NOT_FOUND);
    check("data", Some(""), 127, NOT_FOUND);
    check("data", Some(":"), 127, NOT_FOUND);
    check("data", None, 127, NOT_FOUND);
    check("", Some("/bin"), 127, NOT_FOUND);
    check(&orphan, None, 127, NOT_FOUND);
    check(&below, None, 127, "Not a directory");
    check(&plain, None, 126, DENIED);
    check("plain", Some(&format!("{dir}:/no/such/folder")), 126, DENIED);
    check(&dir, None, 126, DENIED);
    check(&data, None, 126, "Exec format error");
}

#[test]
fn a_wrong_command_line_asks_nobody() {
    let output = Running::start(std::process::Command::new(SHIM).args(["--sockets", "x"])).finish();
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("usage: sherd-shim --socket PATH"), "{}", text(&output.stderr));
}
