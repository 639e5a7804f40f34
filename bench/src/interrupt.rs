//! Whether somebody wants the run to end; owns the process's SIGINT, SIGTERM and SIGHUP and decides nothing about what ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use nix::sys::signal::{SigSet, Signal};

/// A wish to end, shared by all that wait or loop. A run asks at least every 100 ms.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes the ending signals of this process and turns them into the wish. To be called before any thread is made:
    /// a thread inherits the mask, and a thread without it would die of the signal.
    pub fn on_signals() -> nix::Result<Self> {
        let interrupt = Self::default();
        let signals = ending_signals();
        signals.thread_block()?;
        let wish = interrupt.clone();
        thread::spawn(move || {
            while signals.wait().is_ok() {
                wish.raise();
            }
        });
        Ok(interrupt)
    }

    /// Wishes the end.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the end is wished.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a terminal, an init or a person sends to end a run.
pub fn ending_signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}
