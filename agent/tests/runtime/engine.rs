//! A real engine for tests: raw requests to its socket, and an image made of busybox that goes with the test.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    process::Command,
};

use sherd::runtime::docker::{DockerConfig, DockerRuntime, Timeouts};

/// An engine, and an instance of the test's own on it.
pub(crate) struct Engine {
    pub(crate) socket: String,
    pub(crate) instance: String,
    pub(crate) image: String,
}

impl Engine {
    /// With an image that has no program of its own.
    pub(crate) fn new(socket: String, test: &str) -> Self {
        Self::with_image(socket, test, &["ENV FROM_IMAGE=yes", "ENV JAVA_TOOL_OPTIONS=-Xss1m"])
    }

    /// Imports the image, to which a Dockerfile would do `changes`; it and every container of the instance go when
    /// this is dropped.
    pub(crate) fn with_image(socket: String, test: &str, changes: &[&str]) -> Self {
        let id = format!("{test}-{}", std::process::id());
        let engine = Self { socket, instance: id.clone(), image: format!("localhost/sherd-test-{id}:latest") };
        // Without a tag: Podman 4.3 does not read it here.
        let mut path = format!("/images/create?fromSrc=-&repo=localhost/sherd-test-{id}");
        for change in changes {
            path += "&changes=";
            path.extend(change.bytes().map(|byte| format!("%{byte:02X}")));
        }
        let (status, answer) = engine.request("POST", &path, "application/x-tar", &busybox_tar());
        assert_eq!(status, 200, "{answer}");
        engine
    }

    pub(crate) fn runtime(&self) -> DockerRuntime {
        DockerRuntime::new(self.config())
    }

    pub(crate) fn config(&self) -> DockerConfig {
        DockerConfig {
            address: format!("unix://{}", self.socket),
            instance: self.instance.clone(),
            timeouts: Timeouts::default(),
            credentials: None,
            own_ids: None,
        }
    }

    /// A specification that runs a shell script in the test's image.
    pub(crate) fn shell(&self, script: &str, more: &str) -> String {
        format!(
            "name = \"web\"\n[container]\nimage = \"{}\"\nnetwork = \"none\"\npull = \"never\"\n\
             command = [\"/bin/sh\", \"-c\", '''{script}''']\n{more}\n",
            self.image
        )
    }

    pub(crate) fn json(&self, method: &str, path: &str, body: &serde_json::Value) -> (u16, serde_json::Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = self.request(method, path, "application/json", body.as_bytes());
        (status, serde_json::from_str(&answer).unwrap_or(serde_json::Value::Null))
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
        self.try_request(method, path, kind, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn try_request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> io::Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: engine\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        Ok((status, body.to_owned()))
    }

    pub(crate) fn containers(&self) -> Vec<String> {
        let filter = format!("%7B%22label%22%3A%5B%22sherd.instance%3D{}%22%5D%7D", self.instance);
        let path = format!("/containers/json?all=1&filters={filter}");
        let found = self.try_request("GET", &path, "text/plain", b"").map(|(_, answer)| answer).unwrap_or_default();
        let found: serde_json::Value = serde_json::from_str(&found).unwrap_or_default();
        let ids = found.as_array().into_iter().flatten().filter_map(|container| container["Id"].as_str());
        ids.map(str::to_owned).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for id in self.containers() {
            let _ = self.try_request("DELETE", &format!("/containers/{id}?force=1&v=1"), "text/plain", b"");
        }
        let _ = self.try_request("DELETE", &format!("/images/{}?force=1", self.image), "text/plain", b"");
    }
}

/// A root file system of busybox alone.
pub(crate) fn busybox_tar() -> Vec<u8> {
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(root.path().join("etc")).unwrap();
    std::fs::write(root.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n").unwrap();
    // A layer that no other test has: an engine does not pull what it has already.
    let unique = format!("{:?} {}", std::time::SystemTime::now(), root.path().display());
    std::fs::write(root.path().join("etc/unique"), unique).unwrap();
    std::fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
    for applet in ["sh", "cat", "ls", "sleep", "env", "id", "touch", "echo", "true", "grep", "test"] {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
    }
    let tar = Command::new("tar").arg("-C").arg(root.path()).args(["-cf", "-", "bin", "etc"]).output().unwrap();
    assert!(tar.status.success());
    tar.stdout
}
