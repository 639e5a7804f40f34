//! The only home of `unsafe` in this crate: system calls and shared memory that neither nix nor aya wraps, each
//! behind a safe function. Decides nothing.
#![allow(unsafe_code)]

pub(crate) mod bpf;
pub(crate) mod epoll;
pub(crate) mod guard;
pub(crate) mod heap;
pub(crate) mod pinning;
pub(crate) mod relay;
pub(crate) mod scm;
pub(crate) mod seccomp;
pub(crate) mod shared_map;
pub(crate) mod sockopt;
