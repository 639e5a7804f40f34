//! How far a run is, on standard error; owns that line. On a terminal it is one line that changes, elsewhere one line
//! for each tenth.

use std::{
    io::{self, IsTerminal, Write},
    time::Instant,
};

/// How far a run is.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    style: Style,
}

#[derive(Debug)]
enum Style {
    Line,
    Tenths { last: usize },
}

impl Progress {
    /// Begins.
    pub fn on_standard_error() -> Self {
        let style = if io::stderr().is_terminal() { Style::Line } else { Style::Tenths { last: 0 } };
        Self { started: Instant::now(), style }
    }

    /// Says what happens now, outside the counted part.
    pub fn say(&mut self, what: &str) {
        self.clear();
        eprintln!("{what}");
    }

    /// Begins the counted part.
    pub fn restart(&mut self) {
        self.started = Instant::now();
    }

    /// Says that `done` of `total` steps are done and that `what` comes next.
    pub fn step(&mut self, done: usize, total: usize, what: &str) {
        let elapsed = self.started.elapsed().as_secs_f64();
        let left = if done == 0 { String::new() } else { left(elapsed / done as f64 * (total - done) as f64) };
        match &mut self.style {
            Style::Line => {
                eprint!("\r\x1b[K{:3} %  {what}{left}", 100 * done / total);
                let _ = io::stderr().flush();
            }
            Style::Tenths { last } if 10 * done / total > *last => {
                *last = 10 * done / total;
                eprintln!("{:3} %{left}", 100 * done / total);
            }
            Style::Tenths { .. } => {}
        }
    }

    /// Leaves the line free for what comes after.
    pub fn clear(&mut self) {
        if let Style::Line = self.style {
            eprint!("\r\x1b[K");
        }
    }
}

fn left(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    format!("  {}:{:02} left", seconds / 60, seconds % 60)
}
