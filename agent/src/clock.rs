//! What time it is, for everything that the reconcile loop decides and waits by. With tokio's clock paused, as in the simulation of
//! the loop, time is what the test makes it.

use std::time::{Duration, Instant, SystemTime};

/// The monotonic clock that tokio's timers go by.
pub(crate) fn now() -> Instant {
    let now = tokio::time::Instant::now().into_std();
    #[cfg(all(test, feature = "simulation"))]
    let now = crate::reconcile::simulation::after_the_last(now);
    now
}

/// How long ago that was; zero if it is yet to come.
pub(crate) fn since(past: Instant) -> Duration {
    now().saturating_duration_since(past)
}

/// The wall clock.
pub(crate) fn wall() -> SystemTime {
    #[cfg(all(test, feature = "simulation"))]
    if let Some(simulated) = crate::reconcile::simulation::wall() {
        return simulated;
    }
    SystemTime::now()
}
