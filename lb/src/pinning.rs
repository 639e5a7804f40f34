//! CPU affinity, memory policy and scheduling policy of the calling thread. Knows numbers, no topology; touches no other thread.

use std::io;

use crate::sys;

/// How a thread takes memory from its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryPolicy {
    /// From these nodes only.
    Bind,
    /// From these nodes while they have some, else from others.
    Prefer,
    /// As the kernel likes; nodes are ignored.
    Default,
}

/// Linux 5.15's MPOL_PREFERRED takes one node only; this one takes several.
const MPOL_PREFERRED_MANY: libc::c_int = 5;

const WORD_BITS: usize = usize::BITS as usize;

/// The calling thread runs on `cpus` only.
///
/// # Errors
/// EINVAL when none of them is online and allowed by the cpuset.
pub fn set_affinity(cpus: &[u32]) -> io::Result<()> {
    sys::pinning::sched_setaffinity(&mask(cpus))
}

/// The CPUs that the calling thread may run on, ascending.
///
/// # Errors
/// As sched_getaffinity(2).
pub fn affinity() -> io::Result<Vec<u32>> {
    let mut mask = vec![0; 16];
    loop {
        match sys::pinning::sched_getaffinity(&mut mask) {
            // Fewer bits than the kernel has CPUs.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && mask.len() < 4096 => {
                mask.resize(mask.len() * 2, 0);
            }
            Err(error) => return Err(error),
            Ok(_) => return Ok(ids(&mask)),
        }
    }
}

/// The calling thread takes memory from `nodes` so.
///
/// # Errors
/// EINVAL when no node has memory and is allowed by the cpuset; ENOSYS without NUMA.
pub fn set_mempolicy(policy: MemoryPolicy, nodes: &[u32]) -> io::Result<()> {
    let mask = mask(nodes);
    match policy {
        MemoryPolicy::Default => sys::pinning::set_mempolicy(libc::MPOL_DEFAULT, &[]),
        MemoryPolicy::Bind => sys::pinning::set_mempolicy(libc::MPOL_BIND, &mask),
        MemoryPolicy::Prefer if nodes.len() == 1 => sys::pinning::set_mempolicy(libc::MPOL_PREFERRED, &mask),
        MemoryPolicy::Prefer => sys::pinning::set_mempolicy(MPOL_PREFERRED_MANY, &mask)
            // Before 5.15: the lowest of them is preferred.
            .or_else(|_| sys::pinning::set_mempolicy(libc::MPOL_PREFERRED, &mask)),
    }
}

/// The calling thread's memory policy and its nodes, ascending.
///
/// # Errors
/// ENOSYS without NUMA.
pub fn mempolicy() -> io::Result<(MemoryPolicy, Vec<u32>)> {
    let mut mask = vec![0; 1024 / WORD_BITS];
    // The kernel's MAX_NUMNODES is at most 1024 on every architecture.
    let policy = match sys::pinning::get_mempolicy(&mut mask)? {
        libc::MPOL_BIND => MemoryPolicy::Bind,
        libc::MPOL_PREFERRED | MPOL_PREFERRED_MANY => MemoryPolicy::Prefer,
        _ => MemoryPolicy::Default,
    };
    Ok((policy, ids(&mask)))
}

/// Waking up, the calling thread waits for the one that runs to sleep or to use up its slice (SCHED_BATCH, sched(7)). A
/// thread that somebody put under another policy than the default one keeps it.
///
/// # Errors
/// EPERM where a seccomp filter has it so.
pub fn yield_on_wakeup() -> io::Result<()> {
    if sys::pinning::sched_getscheduler()? == libc::SCHED_OTHER {
        sys::pinning::sched_setscheduler(libc::SCHED_BATCH)?;
    }
    Ok(())
}

fn mask(ids: &[u32]) -> Vec<usize> {
    let words = ids.iter().max().map_or(0, |max| *max as usize / WORD_BITS + 1);
    let mut mask = vec![0; words];
    for id in ids {
        mask[*id as usize / WORD_BITS] |= 1 << (*id as usize % WORD_BITS);
    }
    mask
}

fn ids(mask: &[usize]) -> Vec<u32> {
    let bits = |(word, bits): (usize, &usize)| {
        let bits = *bits;
        (0..WORD_BITS).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| (word * WORD_BITS + bit) as u32)
    };
    mask.iter().enumerate().flat_map(bits).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn masks_hold_any_id(set in prop::collection::btree_set(0u32..5000, 0..40)) {
            let list: Vec<u32> = set.into_iter().collect();
            prop_assert_eq!(ids(&mask(&list)), list);
        }
    }

    /// Runs `body` on a thread of its own: what it sets must not reach other tests.
    fn on_a_thread(body: impl FnOnce() + Send + 'static) {
        std::thread::spawn(body).join().expect("the body passes");
    }

    #[test]
    fn affinity_is_what_was_set() {
        on_a_thread(|| {
            let allowed = affinity().expect("affinity is readable");
            for cpu in allowed.clone() {
                set_affinity(&[cpu]).expect("an allowed CPU");
                assert_eq!(affinity().expect("affinity is readable"), [cpu]);
            }
            // The kernel ignores CPUs that it has not; ids above 1024 must get that far.
            set_affinity(&[allowed[0], 4999]).expect("one of them is allowed");
            assert_eq!(affinity().expect("affinity is readable"), [allowed[0]]);
            assert_eq!(set_affinity(&[4999]).map_err(|error| error.raw_os_error()), Err(Some(libc::EINVAL)));
            assert_eq!(set_affinity(&[]).map_err(|error| error.raw_os_error()), Err(Some(libc::EINVAL)));
        });
    }

    #[test]
    fn a_thread_of_the_default_policy_yields_on_wakeup() {
        on_a_thread(|| {
            yield_on_wakeup().expect("needs no privilege");
            assert_eq!(sys::pinning::sched_getscheduler().expect("policy is readable"), libc::SCHED_BATCH);
            sys::pinning::sched_setscheduler(libc::SCHED_IDLE).expect("needs no privilege");
            yield_on_wakeup().expect("there is nothing to do");
            assert_eq!(sys::pinning::sched_getscheduler().expect("policy is readable"), libc::SCHED_IDLE);
        });
    }

    #[test]
    fn memory_policy_is_what_was_set() {
        on_a_thread(|| {
            if mempolicy().is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS)) {
                eprintln!("SKIPPED memory_policy_is_what_was_set: this kernel has no NUMA");
                return;
            }
            for policy in [MemoryPolicy::Bind, MemoryPolicy::Prefer] {
                set_mempolicy(policy, &[0]).expect("node 0 has memory");
                assert_eq!(mempolicy().expect("policy is readable"), (policy, vec![0]));
            }
            set_mempolicy(MemoryPolicy::Default, &[0]).expect("nodes are ignored");
            assert_eq!(mempolicy().expect("policy is readable"), (MemoryPolicy::Default, vec![]));
        });
    }
}
