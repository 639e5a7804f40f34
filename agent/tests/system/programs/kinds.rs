//! The programs: what their images say of them, and how a client talks to them.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;

use crate::containers::address;

/// A program as its image says it.
pub(super) struct Program {
    /// Words, in JSON.
    pub(super) command: &'static str,
    /// What the image's HEALTHCHECK runs, in JSON.
    pub(super) health: &'static str,
    /// What it ends with after SIGTERM.
    pub(super) exit_code: &'static str,
    /// Its socket is registered with epoll before listen(2).
    pub(super) registers_first: bool,
    /// What it is asked once; then it closes.
    request: fn() -> String,
    /// What it answers to that.
    answer: fn(&str) -> Answer,
}

/// `WHO client=ADDRESS:PORT`.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) who: String,
    pub(super) client: String,
}

const WGET: &str = r#"["/bin/busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/"]"#;

pub(super) const NODE: Program = Program {
    command: r#"["/usr/bin/node", "/srv/server.js"]"#,
    health: WGET,
    exit_code: "0",
    registers_first: false,
    request: get,
    answer: line,
};

pub(super) const PYTHON: Program = Program {
    command: r#"["/bin/python3", "/srv/single.py"]"#,
    health: WGET,
    exit_code: "0",
    registers_first: false,
    request: get,
    answer: line,
};

pub(super) const GUNICORN: Program = Program {
    command: r#"["/bin/python3", "-m", "gunicorn", "-w", "4", "-b", "0.0.0.0:80", "--chdir", "/srv", "application"]"#,
    ..PYTHON
};

pub(super) const NGINX: Program = Program { command: r#"["/usr/sbin/nginx", "-c", "/etc/nginx.conf"]"#, ..NODE };

pub(super) const REDIS: Program = Program {
    command: r#"["/usr/bin/redis-server", "--port", "80", "--save", ""]"#,
    health: r#"["/usr/bin/redis-cli", "-p", "80", "ping"]"#,
    exit_code: "0",
    registers_first: false,
    request: redis_commands,
    answer: redis_replies,
};

/// A JVM says that SIGTERM ended it.
pub(super) const JAVA: Program = Program {
    command: r#"["/jvm/bin/java", "-Xshare:auto", "-cp", "/srv", "Server"]"#,
    health: WGET,
    exit_code: "143",
    registers_first: false,
    request: get,
    answer: line,
};

pub(super) const NETTY: Program = Program {
    command: r#"["/jvm/bin/java", "-Djava.library.path=/netty", "-cp", "/srv:/netty/*", "Netty"]"#,
    registers_first: true,
    ..JAVA
};

pub(super) const GO: Program = Program { command: r#"["/bin/server"]"#, answer: go_json, ..NODE };

pub(super) const EPOLL: Program = Program { command: r#"["/bin/native", "epoll"]"#, registers_first: true, ..NODE };
pub(super) const URING: Program = Program { command: r#"["/bin/native", "uring"]"#, ..NODE };

impl Program {
    /// A client that has asked.
    pub(super) fn open(&self) -> TcpStream {
        let mut stream = TcpStream::connect(address()).expect("it is published");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        stream.write_all((self.request)().as_bytes()).expect("the kernel takes it");
        stream
    }

    /// Who answered whom, and the client's own address.
    pub(super) fn read(&self, mut stream: TcpStream) -> (Answer, String) {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let Answer { who, client } = (self.answer)(&answer);
        let client = client.trim_start_matches("::ffff:").to_owned();
        (Answer { who, client }, stream.local_addr().expect("a socket").to_string())
    }

    pub(super) fn ask(&self) -> (Answer, String) {
        self.read(self.open())
    }
}

fn get() -> String {
    "GET / HTTP/1.0\r\nHost: test\r\n\r\n".to_owned()
}

fn line(answer: &str) -> Answer {
    let (who, client) = answer.lines().last().and_then(|line| line.split_once(" client=")).expect("its answer");
    Answer { who: who.to_owned(), client: client.to_owned() }
}

fn go_json(answer: &str) -> Answer {
    let answer: Value = serde_json::from_str(answer.lines().last().expect("its answer")).expect("JSON");
    Answer { who: answer["slot"].to_string(), client: answer["client"].as_str().expect("a client").to_owned() }
}

fn redis_commands() -> String {
    let commands: [&[&str]; 6] =
        [&["PING"], &["SET", "shard", "sherd"], &["GET", "shard"], &["CLIENT", "INFO"], &["INFO", "server"], &["QUIT"]];
    let word = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
    let command = |words: &[&str]| format!("*{}\r\n{}", words.len(), words.iter().map(word).collect::<String>());
    commands.map(command).concat()
}

fn redis_replies(answer: &str) -> Answer {
    assert!(answer.starts_with("+PONG\r\n+OK\r\n$5\r\nsherd\r\n"), "{answer}");
    let field = |name| answer.split_once(name).and_then(|(_, rest)| rest.split_whitespace().next());
    let (who, client) = (field("run_id:").expect("its id"), field(" addr=").expect("our address"));
    Answer { who: who.to_owned(), client: client.to_owned() }
}
