//! The shim's binary against a broker in this process, with and without root. Needs seccomp, a shell and coreutils.

mod answers;
mod broker;
mod failures;
mod inheritance;
mod trapping;
