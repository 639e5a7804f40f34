//! Roots of images with this machine's own programs: their files, and the libraries that they need.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::images::{copy_with_libraries, go_server, run};

/// Busybox is in all of them: its wget is what a HEALTHCHECK runs.
fn root(directory: &Path, name: &str) -> PathBuf {
    let root = directory.join(name);
    for part in ["bin", "tmp", "etc", "srv"] {
        fs::create_dir_all(root.join(part)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").expect("users");
    fs::write(root.join("etc/group"), "root:x:0:\n").expect("groups");
    root
}

/// The Go server of the other tests.
pub(super) fn go(directory: &Path) -> PathBuf {
    let root = root(directory, "go");
    fs::copy(go_server(), root.join("bin/server")).expect("the server");
    root
}

/// Node, and a server of one file.
pub(super) fn node(directory: &Path) -> PathBuf {
    let root = root(directory, "node");
    copy_with_libraries(&root, Path::new("/usr/bin/node"));
    fs::write(root.join("srv/server.js"), include_str!("server.js")).expect("its source");
    root
}

/// Python with its library, gunicorn, a server and an application.
pub(super) fn python(directory: &Path) -> PathBuf {
    let root = root(directory, "python");
    let python = fs::canonicalize("/usr/bin/python3").expect("python3 is installed");
    copy_with_libraries(&root, &python);
    let version = python.file_name().expect("a file").to_str().expect("UTF-8");
    let library = Path::new("/usr/lib").join(version);
    copy_tree(&root, &library);
    for module in fs::read_dir(library.join("lib-dynload")).expect("its modules").flatten() {
        copy_with_libraries(&root, &module.path());
    }
    for package in ["gunicorn", "pkg_resources"] {
        copy_tree(&root, &Path::new("/usr/lib/python3/dist-packages").join(package));
    }
    std::os::unix::fs::symlink(&python, root.join("bin/python3")).expect("a link");
    fs::write(root.join("srv/single.py"), include_str!("single.py")).expect("its source");
    fs::write(root.join("srv/application.py"), include_str!("application.py")).expect("its source");
    root
}

/// Redis with its client.
pub(super) fn redis(directory: &Path) -> PathBuf {
    let root = root(directory, "redis");
    for program in ["redis-server", "redis-cli"] {
        copy_with_libraries(&root, &Path::new("/usr/bin").join(program));
    }
    root
}

/// A runtime of the JDK's own modules, a server that needs no other, and one of Netty's where that can be had.
pub(super) fn java(directory: &Path) -> PathBuf {
    let root = root(directory, "java");
    let jvm = root.join("jvm");
    let modules = "java.base,jdk.httpserver,java.logging,java.management,jdk.unsupported";
    run(Command::new("jlink").args(["--strip-debug", "--add-modules", modules, "--output"]).arg(&jvm));
    for part in ["bin/java", "lib/server/libjvm.so", "lib/libnet.so", "lib/libnio.so", "lib/libzip.so"] {
        copy_with_libraries(&root, &jvm.join(part));
    }
    fs::write(directory.join("Server.java"), include_str!("Server.java")).expect("its source");
    run(Command::new("javac").arg("-d").arg(root.join("srv")).arg(directory.join("Server.java")));
    root
}

/// Netty with its native transport, and a server, into the root of [`java`]. False: Debian's source can't be had.
pub(super) fn add_netty(root: &Path, directory: &Path) -> bool {
    const NATIVE: &str = "netty/libnetty_transport_native_epoll_x86_64.so";
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    run(&mut Command::new(workspace.join(".ci/netty.sh")));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let library = target.join(NATIVE);
    if !library.exists() {
        return false;
    }
    fs::create_dir_all(root.join("netty")).expect("a directory");
    fs::copy(&library, root.join(NATIVE)).expect("the library");
    let parts = ["buffer", "common", "resolver", "transport", "transport-native-epoll", "transport-native-unix-common"];
    let jars = parts.map(|part| format!("netty-{part}.jar")).into_iter().chain(["jctools-core.jar".to_owned()]);
    for jar in jars {
        fs::copy(Path::new("/usr/share/java").join(&jar), root.join("netty").join(&jar)).expect("libnetty-java");
    }
    fs::write(directory.join("Netty.java"), include_str!("Netty.java")).expect("its source");
    let mut compile = Command::new("javac");
    compile.arg("-cp").arg(root.join("netty/*")).arg("-d").arg(root.join("srv")).arg(directory.join("Netty.java"));
    run(&mut compile);
    true
}

/// A static program that listens in ways of its own.
pub(super) fn native(directory: &Path) -> PathBuf {
    let root = root(directory, "native");
    fs::write(directory.join("native.c"), include_str!("native.c")).expect("its source");
    let mut compile = Command::new("gcc");
    compile.args(["-O2", "-static", "-o"]).arg(root.join("bin/native")).arg(directory.join("native.c"));
    run(&mut compile);
    root
}

fn copy_tree(root: &Path, tree: &Path) {
    let target = root.join(tree.strip_prefix("/").expect("an absolute path"));
    fs::create_dir_all(target.parent().expect("a directory")).expect("a directory");
    run(Command::new("cp").arg("-a").arg(tree).arg(&target));
}
