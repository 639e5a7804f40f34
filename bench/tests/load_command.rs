//! `sherd-bench load`, as a person uses it.

use std::{
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
};

use sherd_testkit::eventually;

const BENCH: &str = env!("CARGO_BIN_EXE_sherd-bench");

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let child = Command::new(BENCH).args(["shard", "--listen", &free.to_string()]).spawn().expect("it starts");
        eventually("the shard listens", std::time::Duration::from_secs(10), || std::net::TcpStream::connect(free).ok());
        Self { child, address: free.to_string() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn load(target: &str, options: &[&str]) -> (Output, String) {
    let mut command = Command::new(BENCH);
    command.args(["load", target, "--duration", "0.3", "--warm-up", "0.1"]).args(options);
    let output = command.stderr(Stdio::inherit()).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

/// The figure of the line that begins so.
fn figure(text: &str, line: &str) -> f64 {
    let found =
        text.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_else(|| panic!("no {line:?}: {text}"));
    found.split([' ', ',']).find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("no figure in {found:?}"))
}

#[test]
fn every_shape_is_told() {
    let server = Server::start();
    for (shape, line) in
        [("keep-alive", "requests:"), ("connections", "requests:"), ("echo", "requests:"), ("streams", "blocks:")]
    {
        let (output, text) = load(&server.address, &["--shape", shape, "--path", "/7", "--connections", "9"]);
        assert!(output.status.success(), "{shape}: {text}");
        assert!(figure(&text, line) > 10.0 && figure(&text, "failed:") == 0.0, "{shape}: {text}");
    }
    let (output, text) = load(&server.address, &["--shape", "open", "--rate", "200"]);
    assert!(output.status.success(), "{text}");
    assert!((30.0..=90.0).contains(&figure(&text, "requests:")) && text.contains("p99.9"), "{text}");
}

#[test]
fn failures_are_told_and_end_with_1() {
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    for shape in ["connections", "streams"] {
        let (output, text) = load(&nobody.to_string(), &["--shape", shape, "--connections", "4"]);
        assert_eq!(output.status.code(), Some(1), "{shape}: {text}");
        assert!(figure(&text, "failed:") >= 4.0 && text.contains("refused"), "{shape}: {text}");
    }
}
