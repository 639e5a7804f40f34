//! Compiles the programs of `bpf/` with clang into OUT_DIR. Nothing of the result depends on this machine's kernel.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, exit},
};

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=SHERD_CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    compile(Path::new("bpf/steer.bpf.c"), &out.join("steer.o"));
    compile(Path::new("bpf/guard.bpf.c"), &out.join("guard.o"));
    compile(Path::new("bpf/account.bpf.c"), &out.join("account.o"));
}

fn compile(source: &Path, object: &Path) {
    let clang = env::var("SHERD_CLANG").unwrap_or_else(|_| "clang".into());
    let mut command = Command::new(&clang);
    // mcpu=v3 (Linux 5.12) has the atomics with fetch that the steering program uses as a barrier.
    command.args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v3"]);
    // Debian keeps <asm/types.h> in the directory of the host's architecture, where `-target bpf` does not look.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the architecture");
    command.arg(format!("-I/usr/include/{arch}-linux-gnu"));
    if arch == "x86_64" {
        command.arg("-DSHERD_ORDERED_LOADS");
    }
    let outcome = command.arg("-c").arg(source).arg("-o").arg(object).status();
    match outcome {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("{clang} on {} ended with {status}", source.display())),
        Err(error) => fail(&format!("{clang} does not start: {error}")),
    }
}

fn fail(what: &str) -> ! {
    println!(
        "cargo::error={what}. The eBPF programs need clang and libbpf's headers: apt-get install clang libbpf-dev"
    );
    exit(1);
}
