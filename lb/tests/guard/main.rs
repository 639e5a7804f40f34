//! The guard against the kernel: what is refused, what works, that it lasts, and that the proof tells. Each test has a
//! cgroup and a network namespace of its own; what tries is never in the guard's cgroup, unless it says so.

mod accounts;
mod allowed;
mod lasting;
mod making;
mod proving;
mod refused;
mod rig;
