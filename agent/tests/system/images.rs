//! Container images made in the test, from programs of this machine: nothing is pulled.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Once, OnceLock},
};

use crate::world::World;

/// Directories of Go programs, each named after the run that built them.
const GO_PROGRAMS: &str = "sherd-go-";

/// An engine to make images with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
    /// A Docker Engine that the test has started, at this socket.
    Own(&'static str),
}

impl Engine {
    /// The socket of its API.
    pub(crate) fn socket(self) -> String {
        match self {
            Engine::Docker => sherd_testkit::docker_socket(),
            Engine::Podman => sherd_testkit::podman_socket(),
            Engine::Own(socket) => socket.to_owned(),
        }
    }

    /// The docker command line against this engine; Podman speaks the same API.
    pub(crate) fn docker(self) -> Command {
        let mut command = Command::new("docker");
        command.arg("-H").arg(format!("unix://{}", self.socket())).stdin(Stdio::null());
        command
    }
}

/// Makes the image `name` from a directory of files, with `docker import` changes such as `CMD ["/server"]`.
pub(crate) fn import(engine: Engine, name: &str, root: &Path, changes: &[&str]) {
    let archive = root.with_extension("tar");
    run(Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&archive).arg("."));
    let mut import = engine.docker();
    import.arg("import");
    for change in changes {
        import.arg("--change").arg(change);
    }
    run(import.arg(&archive).arg(name));
}

/// An image of one static program, which is its own for each agent.
pub(crate) fn import_program(engine: Engine, world: &World, name: &str, program: &Path) -> String {
    let image = format!("sherd-test-{name}-{}:latest", world.instance());
    let root = world.dir().join(name);
    fs::create_dir_all(&root).expect("a directory");
    fs::copy(program, root.join("server")).expect("the program");
    import(engine, &image, &root, &["CMD [\"/server\"]"]);
    image
}

/// Removes an image.
pub(crate) fn remove(engine: Engine, name: &str) {
    let _ = engine.docker().args(["rmi", "-f", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// A static Go server that answers with what the agent told it, and with what its kernel says.
pub(crate) fn go_server() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| go_program("server", include_str!("server.go")))
}

/// A static program, built from one file.
pub(crate) fn go_program(name: &str, source: &str) -> PathBuf {
    static FORMER: Once = Once::new();
    FORMER.call_once(remove_former_programs);
    let directory = std::env::temp_dir().join(format!("{GO_PROGRAMS}{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let (file, program) = (directory.join(format!("{name}.go")), directory.join(name));
    fs::write(&file, source).expect("its source");
    run(Command::new("go")
        .current_dir(&directory)
        .envs([("CGO_ENABLED", "0"), ("GO111MODULE", "off"), ("GOFLAGS", "")])
        .args(["build", "-ldflags", "-s -w", "-o"])
        .args([&program, &file]));
    program
}

/// Those of test runs that have ended: nothing tells a run that its last test is over.
fn remove_former_programs() {
    for entry in fs::read_dir(std::env::temp_dir()).expect("a directory").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(GO_PROGRAMS).and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            // Another run may be at it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A root with busybox.
pub(crate) fn busybox_root(directory: &Path) -> PathBuf {
    let root = directory.join("busybox");
    for part in ["bin", "www/cgi-bin", "tmp", "etc"] {
        fs::create_dir_all(root.join(part)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for applet in ["sh", "cat", "httpd", "sleep", "echo", "hostname"] {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link).expect("a link");
        }
    }
    let script = "#!/bin/sh\necho 'Content-Type: text/plain'\necho\ncat /proc/self/status\n";
    let path = root.join("www/cgi-bin/status");
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
    fs::write(root.join("www/index.html"), "busybox\n").expect("a page");
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").expect("users");
    root
}

/// A root with this machine's nginx and the libraries it needs.
pub(crate) fn nginx_root(directory: &Path) -> PathBuf {
    let root = directory.join("nginx");
    copy_with_libraries(&root, Path::new("/usr/sbin/nginx"));
    fs::create_dir_all(root.join("bin")).expect("a directory");
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for part in ["var/log/nginx", "var/lib/nginx", "run", "tmp", "etc"] {
        fs::create_dir_all(root.join(part)).expect("a directory");
    }
    let users = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";
    fs::write(root.join("etc/passwd"), users).expect("users");
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").expect("groups");
    let settings = "daemon off;\nmaster_process on;\nworker_processes 2;\nuser nobody nogroup;\nerror_log /dev/stderr;\npid /run/nginx.pid;\n\
                    events {}\nhttp { access_log off; server { listen 80; location / { default_type text/plain; \
                    return 200 \"nginx $hostname client=$remote_addr:$remote_port\\n\"; } } }\n";
    fs::write(root.join("etc/nginx.conf"), settings).expect("its settings");
    root
}

/// Copies a program, or a library, and all libraries that it needs to where they are on this machine. What is in the
/// root already stays.
pub(crate) fn copy_with_libraries(root: &Path, file: &Path) {
    let libraries = Command::new("ldd").arg(file).output().expect("ldd");
    let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
    let words = libraries.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
    for file in words.chain([file]).filter(|file| !file.starts_with(root)) {
        copy_into(root, file);
    }
}

fn copy_into(root: &Path, file: &Path) {
    let target = root.join(file.strip_prefix("/").expect("an absolute path"));
    fs::create_dir_all(target.parent().expect("a directory")).expect("a directory");
    fs::copy(file, &target).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// Runs a command, which must succeed.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
