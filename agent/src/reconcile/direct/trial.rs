//! Whether a slot's next shard is to accept by itself, by what became of the former ones. PURE.
//!
//! A program that breaks on a listener of ours looks like one that is broken anyway. What tells them apart is that the same
//! image works on relay: so it is tried there once, and only if that comes up the listener is to blame.

use crate::runtime::ImageId;

/// Exits in a row that make a listener suspect: an exit has many causes, silence on a fresh listener few.
const SUSPICIOUS_EXITS: u32 = 2;

/// How a shard failed that was never ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reconcile) enum Failed {
    /// It ran for its start time-out and didn't accept.
    TimedOut,
    /// It ended.
    Exited,
}

/// What is held against a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::reconcile) struct Suspicion {
    /// What the failed shard was made from.
    pub(in crate::reconcile) image: ImageId,
    pub(in crate::reconcile) reason: String,
}

/// The trial of one slot.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::reconcile) struct Trial {
    exits: u32,
    suspicion: Option<Suspicion>,
}

impl Trial {
    /// Why the slot's next shard is to be relayed; absent: it is to accept by itself.
    pub(in crate::reconcile) fn suspicion(&self) -> Option<&Suspicion> {
        self.suspicion.as_ref()
    }

    /// A shard that had a listener of ours failed.
    pub(in crate::reconcile) fn note_grafted_failure(&mut self, failed: Failed, suspicion: Suspicion) {
        self.exits = if failed == Failed::Exited { self.exits + 1 } else { SUSPICIOUS_EXITS };
        if self.exits >= SUSPICIOUS_EXITS {
            (self.exits, self.suspicion) = (0, Some(suspicion));
        }
    }

    /// A shard without one failed: the listener was not to blame.
    pub(in crate::reconcile) fn note_relayed_failure(&mut self) {
        *self = Self::default();
    }

    /// A shard is ready. What is given back is proven: the same image works without a listener of ours.
    pub(in crate::reconcile) fn note_ready(&mut self, image: Option<&ImageId>, grafted: bool) -> Option<Suspicion> {
        let suspicion = std::mem::take(self).suspicion;
        suspicion.filter(|suspicion| !grafted && image == Some(&suspicion.image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspicion() -> Suspicion {
        Suspicion { image: ImageId::new("a"), reason: "silence".into() }
    }

    /// `T`: a grafted shard times out, `E`: it exits, `R`: a relayed one fails. Whether the next one is relayed.
    fn check(history: &str, relayed: bool) -> Trial {
        let mut trial = Trial::default();
        for event in history.chars() {
            match event {
                'T' => trial.note_grafted_failure(Failed::TimedOut, suspicion()),
                'E' => trial.note_grafted_failure(Failed::Exited, suspicion()),
                _ => trial.note_relayed_failure(),
            }
        }
        assert_eq!(trial.suspicion().is_some(), relayed, "{history}");
        trial
    }

    #[test]
    fn silence_is_suspect_at_once_and_exits_are_when_they_repeat() {
        check("", false);
        check("T", true);
        check("E", false);
        check("EE", true);
        check("ERE", false);
        check("TR", false);
        check("TRT", true);
    }

    #[test]
    fn only_the_same_image_on_relay_proves_it() {
        let (image, other) = (ImageId::new("a"), ImageId::new("b"));
        assert_eq!(check("T", true).note_ready(Some(&image), false), Some(suspicion()));
        assert_eq!(check("T", true).note_ready(Some(&image), true), None);
        assert_eq!(check("T", true).note_ready(Some(&other), false), None);
        assert_eq!(check("E", false).note_ready(Some(&image), false), None);
        let mut trial = check("T", true);
        trial.note_ready(None, false);
        assert_eq!(trial, Trial::default());
    }
}
