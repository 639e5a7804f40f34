//! A process that `docker exec` starts in a container: no filter of the shim sees its calls. Says what came of them.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Stdio},
};

use super::ENGINE;

/// See the module. It ends by itself.
pub(super) struct Unfiltered {
    client: Child,
    said: BufReader<ChildStdout>,
}

impl Unfiltered {
    /// It waits for a descriptor.
    pub(super) fn start(container: &str, attempt: &str) -> Self {
        let mut exec = ENGINE.docker();
        exec.args(["exec", container, "/hostile", attempt]);
        let mut client = exec.stdout(Stdio::piped()).spawn().expect("docker exec");
        let said = BufReader::new(client.stdout.take().expect("a pipe"));
        let mut unfiltered = Self { client, said };
        assert_eq!(unfiltered.until("waits"), "waits OK\n");
        unfiltered
    }

    /// What it says, to the end of the line of that name.
    pub(super) fn until(&mut self, name: &str) -> String {
        let mut text = String::new();
        loop {
            let start = text.len();
            let len = self.said.read_line(&mut text).expect("text");
            assert!(len > 0, "it ended before it came to {name}:\n{text}");
            if text[start..].split(' ').next() == Some(name) {
                return text;
            }
        }
    }
}

impl Drop for Unfiltered {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
