//! The seccomp filter that traps listen(2), and refuses what would get round the guard of the sockets that it brings.
//! Knows neither the broker nor the program.

use std::os::fd::OwnedFd;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_USER_NOTIF, c_ulong, seccomp_data, sock_filter,
};
use rustix::{io::Errno, thread::set_no_new_privs};

use crate::{stdio, sys};

/// AUDIT_ARCH_* of <linux/audit.h>: ELF machine, 64 bits (1 << 31), little endian (1 << 30).
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

const LISTEN: u32 = libc::SYS_listen as u32;

/// The 32-bit one, of i386 and of ARM.
#[cfg(target_arch = "x86_64")]
const FOREIGN_LISTEN: u32 = 363;
#[cfg(target_arch = "aarch64")]
const FOREIGN_LISTEN: u32 = 284;

/// Without WAIT_KILLABLE_RECV (Linux 5.19) any signal restarts a trapped call that the broker has already seen, and Go's
/// SIGURG does so for ever (seccomp_unotify(2)): better no trap at all.
const FLAGS: c_ulong = SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

const LOAD: u16 = (BPF_LD | BPF_W | BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (BPF_JMP | BPF_JEQ | BPF_K) as u16;
const RETURN: u16 = (BPF_RET | BPF_K) as u16;

/// Calls of a 32-bit kind that would get round the guard: the kernel runs no cgroup program for a 32-bit setsockopt
/// (`do_sock_setsockopt`, tried on 6.18), nor for one from a ring that such a call has set up. i386's setsockopt,
/// socketcall and io_uring_setup; x32's setsockopt, io_uring_setup and listen.
#[cfg(target_arch = "x86_64")]
const REFUSED: Refused = Refused { foreign: [366, 102, 425], native: [X32 | 541, X32 | 425, X32 | 50] };
/// The same of 32-bit ARM, which has no socketcall.
#[cfg(target_arch = "aarch64")]
const REFUSED: Refused = Refused { foreign: [294, 294, 425], native: [u32::MAX; 3] };

/// x32's calls have the native `arch`, and this bit.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

struct Refused {
    foreign: [u32; 3],
    native: [u32; 3],
}

const NOT_THERE: u32 = SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// `arch` first: the same number is another call elsewhere.
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
    step(RETURN, SECCOMP_RET_USER_NOTIF, 0, 0),
    step(RETURN, NOT_THERE, 0, 0),
];

const fn step(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Traps listen(2) of this process and its descendants, for ever, and gives the notify descriptor (close-on-exec).
///
/// Only a process without CAP_SYS_ADMIN gives up its right to gain privileges, because it must: set-user-ID programs
/// of a privileged container go on to work. Should the kernel then refuse for another reason, that right is gone all
/// the same: EBUSY, for one, is checked after EACCES (kernel/seccomp.c, seccomp_set_mode_filter).
pub(crate) fn install() -> Result<OwnedFd, Errno> {
    let listener = match sys::seccomp_new_listener(FLAGS, &PROGRAM) {
        Err(Errno::ACCESS) => {
            set_no_new_privs(true)?;
            sys::seccomp_new_listener(FLAGS, &PROGRAM)?
        }
        other => other?,
    };
    Ok(stdio::keep_off(listener))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would make of the program; only the instructions that it has.
    fn action(arch: u32, nr: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let step = PROGRAM[at];
            at += 1;
            match (step.code, step.k) {
                (LOAD, 0) => accumulator = nr,
                (LOAD, 4) => accumulator = arch,
                (JUMP_IF_EQUAL, k) => at += usize::from(if accumulator == k { step.jt } else { step.jf }),
                (RETURN, k) => return k,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn listen_is_trapped_and_what_skips_the_guard_is_refused() {
        const I386: u32 = 0x4000_0003;
        const ARM: u32 = 0x4000_0028;
        let check = |arch, nr, expected| assert_eq!(action(arch, nr), expected, "arch {arch:#x} nr {nr:#x}");
        check(NATIVE, LISTEN, SECCOMP_RET_USER_NOTIF);
        for nr in (0..600).chain([u32::MAX - 1, 1 << 31 | LISTEN]).filter(|nr| *nr != LISTEN) {
            check(NATIVE, nr, SECCOMP_RET_ALLOW);
        }
        let foreign = if cfg!(target_arch = "x86_64") { I386 } else { ARM };
        for nr in 0..600 {
            let expected = match nr {
                FOREIGN_LISTEN => SECCOMP_RET_USER_NOTIF,
                nr if REFUSED.foreign.contains(&nr) => NOT_THERE,
                _ => SECCOMP_RET_ALLOW,
            };
            check(foreign, nr, expected);
        }
        for nr in REFUSED.native {
            check(NATIVE, nr, NOT_THERE);
        }
    }
}
