//! What became of a command that was run where a shard runs, and what an engine's own check says. Plain values.

use std::time::Duration;

/// Of what a command writes this much is kept: its end, where programs say what is wrong.
const KEPT_BYTES: usize = 1024;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// How.
    pub end: End,
    /// The last of what it wrote to standard output and standard error.
    pub output: String,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself; 128 + signal when a signal ended it.
    Exited(i32),
    /// It was killed because its time was up.
    TimedOut(Duration),
    /// Its time was up, and it can't be ended: it may run on.
    Escaped(Duration),
}

/// What an engine says of a container by its image's HEALTHCHECK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineHealth {
    /// There is no HEALTHCHECK.
    None,
    /// It hasn't succeeded yet, and not failed often enough.
    Starting,
    /// It succeeds.
    Healthy,
    /// It fails.
    Unhealthy {
        /// The end of what its last run wrote.
        output: String,
    },
}

/// The end of a text that comes in pieces.
#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let surplus = self.0.len().saturating_sub(KEPT_BYTES);
        self.0.drain(..surplus);
    }

    /// On one line, for people to read: what would move a terminal's cursor, or is not UTF-8, is replaced.
    pub(super) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines.join("; ").replace(char::is_control, "\u{fffd}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept() {
        let mut tail = Tail::default();
        for number in 0..1000 {
            tail.add(format!("{number}\n").as_bytes());
        }
        assert!(tail.0.len() <= KEPT_BYTES && tail.text().ends_with("998; 999"), "{tail:?}");
        tail.add(&[b'x'; 3 * KEPT_BYTES]);
        assert_eq!(tail.text(), "x".repeat(KEPT_BYTES));
    }

    #[test]
    fn a_container_moves_no_cursor() {
        let mut tail = Tail::default();
        tail.add(b"\n  gone\r\n\n\x1b[2Jaway \xff\n");
        assert_eq!(tail.text(), "gone; \u{fffd}[2Jaway \u{fffd}");
    }
}
