//! What is seen while waiting: redrawn in place on a terminal, one line per change elsewhere; all of it on stderr.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::SystemTime;

use sherd_topology::plan::SlotId;

use super::states;
use crate::cli::ps::{slot_remark, table};
use crate::status::{GroupStatus, SlotState};

/// Slots that are shown one by one; more are counted.
const TABLE_SLOTS: usize = 16;

/// How far a group is that has too many slots to show each.
fn summary(group: &GroupStatus) -> String {
    let all = group.slots.len();
    format!("{}: {} of {all} shards ready ({})", group.name, group.ready_slots(), states(group))
}

/// Shows a group again and again.
pub(in crate::cli) struct Screen {
    live: bool,
    /// Lines on the terminal that the next drawing replaces.
    drawn: usize,
    /// What was last said of each slot, where lines are printed.
    said: BTreeMap<SlotId, SlotState>,
    summary: String,
    note: String,
}

impl Screen {
    pub(in crate::cli) fn new(live: bool) -> Self {
        Self { live, drawn: 0, said: BTreeMap::new(), summary: String::new(), note: String::new() }
    }

    /// Shows how far the group is.
    pub(in crate::cli) fn show(&mut self, group: &GroupStatus) {
        if self.live {
            self.redraw(&self.picture(group));
            return;
        }
        if group.slots.len() > TABLE_SLOTS {
            let summary = summary(group);
            if self.summary != summary {
                eprintln!("sherd: {summary}");
                self.summary = summary;
            }
            return;
        }
        for slot in &group.slots {
            if self.said.insert(slot.slot, slot.state) != Some(slot.state) {
                let plain = || format!("{}/{} is {} on CPUs {}", group.name, slot.slot, slot.state, slot.cpus);
                eprintln!("sherd: {}", slot_remark(group, slot).unwrap_or_else(plain));
            }
        }
    }

    /// Shows what is being done before there are shards to show.
    pub(in crate::cli) fn note(&mut self, text: &str) {
        if self.note != text {
            text.clone_into(&mut self.note);
            if !self.live {
                eprintln!("sherd: {text}");
            }
        }
    }

    /// Leaves the terminal to what follows.
    pub(in crate::cli) fn finish(&mut self) {
        if self.live {
            self.redraw("");
        }
    }

    fn picture(&self, group: &GroupStatus) -> String {
        let mut text = match group.slots.len() {
            0..=TABLE_SLOTS => table(std::slice::from_ref(group), SystemTime::now()),
            _ => format!("{}\n", summary(group)),
        };
        if !self.note.is_empty() && group.slots.iter().any(|slot| !slot.ready) {
            text.push_str(&format!("{}\n", self.note));
        }
        text
    }

    /// Goes up over the last drawing, clears to the end and draws again. Automatic wrapping is off meanwhile: a line
    /// that the terminal wraps would be two lines up.
    fn redraw(&mut self, text: &str) {
        let up = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        let frame = format!("{up}\r\x1b[J\x1b[?7l{text}\x1b[?7h");
        self.drawn = text.lines().count();
        // A terminal that is gone needs no drawing.
        drop(io::stderr().lock().write_all(frame.as_bytes()));
    }
}
