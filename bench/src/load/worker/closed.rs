//! The closed loop: the next request when the last is over; owns nothing but the order of things.

use std::{io, time::Instant};

use nix::sys::epoll::EpollEvent;

use super::Worker;
use crate::load::window::Window;

impl Worker<'_> {
    pub(super) fn closed_loop(&mut self, window: &Window) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        self.broken = (0..self.slots.len()).collect();
        loop {
            let now = Instant::now();
            self.tally.mark_cpu(window, now);
            if now >= window.closes || self.interrupt.is_raised() {
                return Ok(());
            }
            for token in std::mem::take(&mut self.broken) {
                self.begin(token, now, window);
            }
            let count = self.wait(&mut events)?;
            for event in &events[..count] {
                let token = event.data() as usize;
                if let Some(since) = self.step(token, window) {
                    let now = Instant::now();
                    if window.contains(now) {
                        self.tally.answered(since, now);
                    }
                    self.begin(token, now, window);
                }
            }
        }
    }
}
