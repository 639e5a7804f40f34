//! The step before a program that runs without sherd beside one behind sherd's shim: the same confinement, and nothing else.
//!
//! On the direct path a program has two seccomp filters, the engine's and the shim's, and `no_new_privs`. Its rival gets
//! them too, or the comparison would be of filters. The only difference is what it must be: listen(2) is let through.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt,
    process::Command,
};

use nix::libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, ENOSYS, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SYS_listen,
    seccomp_data,
};
use seccompiler::sock_filter;

/// The hidden subcommand.
pub const CONFINE_COMMAND: &str = "confine";

/// AUDIT_ARCH_* of <linux/audit.h>, as in the shim.
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

/// What the shim refuses: 32-bit calls, and x32's.
#[cfg(target_arch = "x86_64")]
const REFUSED: Refused = Refused { foreign: [366, 102, 425], native: [X32 | 541, X32 | 425, X32 | 50] };
#[cfg(target_arch = "aarch64")]
const REFUSED: Refused = Refused { foreign: [294, 294, 425], native: [u32::MAX; 3] };

#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

#[cfg(target_arch = "x86_64")]
const FOREIGN_LISTEN: u32 = 363;
#[cfg(target_arch = "aarch64")]
const FOREIGN_LISTEN: u32 = 284;

struct Refused {
    foreign: [u32; 3],
    native: [u32; 3],
}

const LISTEN: u32 = SYS_listen as u32;
const LOAD: u16 = (BPF_LD | BPF_W | BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (BPF_JMP | BPF_JEQ | BPF_K) as u16;
const RETURN: u16 = (BPF_RET | BPF_K) as u16;
const NOT_THERE: u32 = SECCOMP_RET_ERRNO | ENOSYS as u32;

/// The shim's program step by step, with ALLOW in the place of USER_NOTIF.
const PROGRAM: [sock_filter; 16] = [
    step(LOAD, std::mem::offset_of!(seccomp_data, arch) as u32, 0, 0),
    step(JUMP_IF_EQUAL, NATIVE, 0, 6),
    step(LOAD, std::mem::offset_of!(seccomp_data, nr) as u32, 0, 0),
    step(JUMP_IF_EQUAL, LISTEN, 10, 0),
    step(JUMP_IF_EQUAL, REFUSED.native[0], 10, 0),
    step(JUMP_IF_EQUAL, REFUSED.native[1], 9, 0),
    step(JUMP_IF_EQUAL, REFUSED.native[2], 8, 0),
    step(RETURN, SECCOMP_RET_ALLOW, 0, 0),
    step(LOAD, std::mem::offset_of!(seccomp_data, nr) as u32, 0, 0),
    step(JUMP_IF_EQUAL, REFUSED.foreign[0], 5, 0),
    step(JUMP_IF_EQUAL, REFUSED.foreign[1], 4, 0),
    step(JUMP_IF_EQUAL, REFUSED.foreign[2], 3, 0),
    step(JUMP_IF_EQUAL, FOREIGN_LISTEN, 1, 0),
    step(RETURN, SECCOMP_RET_ALLOW, 0, 0),
    step(RETURN, SECCOMP_RET_ALLOW, 0, 0),
    step(RETURN, NOT_THERE, 0, 0),
];

const fn step(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Confines this process and becomes `program`; comes back only with the reason why it could not.
pub fn run_confined(program: &OsStr, arguments: &[OsString]) -> io::Error {
    // It sets no_new_privs first, as the shim does where it has no CAP_SYS_ADMIN.
    match seccompiler::apply_filter(&PROGRAM) {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    /// The lines of a source's `const NAME`, for every architecture.
    fn constant(source: &str, name: &str) -> Vec<String> {
        let begins = format!("const {name}:");
        let mut lines = source.lines().map(str::trim);
        let mut found = Vec::new();
        while let Some(first) = lines.find(|line| line.starts_with(&begins)) {
            found.push(first.to_owned());
            if !first.ends_with(';') {
                found.extend(lines.by_ref().map_while(|line| (line != "];").then(|| line.to_owned())));
            }
        }
        found
    }

    /// One that the shim's has left behind would be compared with what sherd is no more.
    #[test]
    fn the_filter_is_the_shims_but_for_its_trap() {
        let ours = include_str!("confine.rs");
        let shims = include_str!("../../../lb/shim/src/filter.rs");
        assert_eq!(constant(ours, "REFUSED"), constant(shims, "REFUSED"));
        let allowing: Vec<String> = constant(shims, "PROGRAM")
            .iter()
            .map(|line| line.replace("SECCOMP_RET_USER_NOTIF", "SECCOMP_RET_ALLOW"))
            .collect();
        assert!(allowing.len() > 10 && shims.contains("SECCOMP_RET_USER_NOTIF, 0, 0"), "{allowing:?}");
        assert_eq!(constant(ours, "PROGRAM"), allowing);
    }
}
