//! When the watch looks. Pure: the clock comes in.

use std::time::{Duration, Instant};

use super::{BUSY, CALM, SUSPICIOUS};

/// Where is looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    /// At all addresses.
    All,
    /// At those with a queue that may have begun to stand.
    Suspicious,
}

/// One round after the other.
#[derive(Debug)]
pub(super) struct Rounds {
    all: Instant,
    suspicious: Instant,
    moved: Instant,
}

impl Rounds {
    pub(super) fn new(now: Instant) -> Self {
        Self { all: now, suspicious: now, moved: now }
    }

    /// When the next one is due.
    pub(super) fn next(&self, is_suspicious: bool) -> Instant {
        if is_suspicious { self.all.min(self.suspicious) } else { self.all }
    }

    /// The one that is due, if one is.
    pub(super) fn due(&self, now: Instant, is_suspicious: bool) -> Option<Round> {
        match now >= self.all {
            true => Some(Round::All),
            false => (is_suspicious && now >= self.suspicious).then_some(Round::Suspicious),
        }
    }

    /// A round was made, and found something that moves, or nothing; `idle` after it the next one comes where nothing has for long.
    pub(super) fn note(&mut self, round: Round, (began, ended): (Instant, Instant), moves: bool, idle: Duration) {
        if moves {
            self.moved = ended;
        }
        // However long looking takes, it takes half of a CPU at most.
        let after = |period: Duration| (began + period).max(ended + (ended - began));
        self.suspicious = after(SUSPICIOUS);
        if round == Round::All {
            self.all = after(if ended - self.moved < CALM { BUSY } else { idle });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::IDLE, *};

    #[test]
    fn rounds_come_as_often_as_there_is_something_to_see() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut rounds = Rounds::new(start);
        let check = |rounds: &Rounds, is_suspicious, next| {
            assert_eq!(rounds.next(is_suspicious), at(next));
            assert_eq!(rounds.due(at(next - 1), is_suspicious), None);
            rounds.due(at(next), is_suspicious)
        };
        assert_eq!(rounds.due(start, false), Some(Round::All));
        rounds.note(Round::All, (start, start), true, IDLE);
        assert_eq!(check(&rounds, false, 20), Some(Round::All));
        assert_eq!(check(&rounds, true, 5), Some(Round::Suspicious));
        // The others' turn comes as if nobody was suspicious.
        rounds.note(Round::Suspicious, (at(5), at(6)), true, IDLE);
        assert_eq!(check(&rounds, true, 10), Some(Round::Suspicious));
        rounds.note(Round::Suspicious, (at(10), at(18)), true, IDLE);
        assert_eq!(check(&rounds, true, 20), Some(Round::All));
        // A long look is followed by as long a rest.
        rounds.note(Round::All, (at(20), at(50)), true, IDLE);
        assert_eq!(check(&rounds, true, 80), Some(Round::All));
        rounds.note(Round::All, (at(1050), at(1050)), false, IDLE);
        assert_eq!(check(&rounds, false, 1150), Some(Round::All));
    }
}
