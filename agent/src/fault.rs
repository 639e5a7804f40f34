//! Fault points: places in a start or a stop where a test may kill the agent. Owns the one environment variable
//! that arms them and touches nothing else.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Names the armed point: `NAME`, or `NAME:N` for the N-th time it is passed.
pub const VARIABLE: &str = "SHERD_FAULT_POINT";

static ARMED: OnceLock<Option<(String, u32)>> = OnceLock::new();
static PASSED: AtomicU32 = AtomicU32::new(0);

/// Ends this process with SIGKILL if `name` is the armed point; otherwise costs one comparison.
///
/// SIGKILL and not abort: no handler, no destructor and no flushing may soften the crash that is being tested.
pub fn point(name: &str) {
    #[cfg(all(test, feature = "simulation"))]
    crate::reconcile::simulation::at_fault_point(name);
    let Some((armed, count)) = ARMED.get_or_init(|| std::env::var(VARIABLE).ok().map(|value| parse(&value))) else {
        return;
    };
    if armed == name && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *count {
        // The only failure is "no such process", and this process exists.
        let _ = kill(Pid::this(), Signal::SIGKILL);
    }
}

fn parse(value: &str) -> (String, u32) {
    match value.rsplit_once(':').and_then(|(name, count)| Some((name, count.parse().ok()?))) {
        Some((name, count)) => (name.to_owned(), count),
        None => (value.to_owned(), 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_named_with_or_without_a_count() {
        assert_eq!(parse("create.before"), ("create.before".to_owned(), 1));
        assert_eq!(parse("create.before:3"), ("create.before".to_owned(), 3));
        assert_eq!(parse("odd:name"), ("odd:name".to_owned(), 1));
    }
}
