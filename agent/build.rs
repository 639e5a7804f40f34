//! Builds the shim (`lb/shim`) statically into OUT_DIR, for the agent to embed. Touches nothing outside of OUT_DIR.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, exit},
};

/// What the shim's program is made of: a change of any of these, and of nothing else, may change it.
const INPUTS: [&str; 4] = ["../lb/shim/src", "../lb/shim/Cargo.toml", "../Cargo.toml", "../Cargo.lock"];

/// Settings of the outer build that are not meant for the shim's: wrappers (clippy's, coverage's, an editor's that
/// compiles nothing) and incremental compilation, which excludes LTO. Flags and directories are overruled instead.
const OUTER: [&str; 5] = [
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CARGO_INCREMENTAL",
];

fn main() {
    for input in INPUTS {
        println!("cargo::rerun-if-changed={input}");
    }
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let directory = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("shim");
    build(&target, &directory);
    println!("cargo::rustc-env=SHERD_SHIM={}", directory.join(target).join("shim/sherd-shim").display());
}

/// Cargo within cargo: a dependency could be neither of another profile nor static while the agent is dynamic.
fn build(target: &str, directory: &Path) {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--package", "sherd-shim", "--profile", "shim", "--target", target]);
    // The outer cargo holds the lock of its own directories until this ends, also that of a separate `build.build-dir`.
    cargo.arg("--target-dir").arg(directory).env("CARGO_BUILD_BUILD_DIR", directory);
    OUTER.iter().for_each(|name| _ = cargo.env_remove(name));
    // Of all places where cargo looks for flags this is the first, and only the first counts.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("building it ended with {status}")),
        Err(error) => fail(&format!("cargo does not start: {error}")),
    }
}

fn fail(what: &str) -> ! {
    println!(
        "cargo::error=the shim: {what}. It is linked statically and needs the C library's archive: apt-get install \
         libc6-dev"
    );
    exit(1);
}
