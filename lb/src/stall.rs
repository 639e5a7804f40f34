//! Tells from the accept queue of its listener whether a shard has stopped accepting. Pure: samples and time come in,
//! findings go out.

use std::time::{Duration, Instant};

/// How long a queue may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StallBounds {
    /// Before its shard counts as hung.
    pub hung_after: Duration,
    /// Before what is in it goes elsewhere.
    pub move_after: Duration,
}

impl Default for StallBounds {
    /// 50 ms, which with a look every 20 ms, and every 5 ms on [suspicion](AcceptQueue::is_suspicious), has a hung shard out
    /// within 100 ms; 2 s.
    fn default() -> Self {
        Self { hung_after: Duration::from_millis(50), move_after: Duration::from_secs(2) }
    }
}

/// What one look counts for at most: who looks late got no CPU, or the whole machine stood still, and the shard with it.
const MOST_OF_A_LOOK: Duration = Duration::from_millis(20);
/// So much of the time that a shard might have accepted in counts for nothing, for each part of it in which it waited for a CPU: on a
/// CPU that many want, the rest goes into what it had begun. One that hangs has no work, and waits for none.
const STARVED_WEIGHT: u32 = 4;
/// A queue that has been suspicious for so long without a finding, because its shard gets no CPU or was slow before, is looked at
/// as any other.
const SUSPECTED_FOR: Duration = Duration::from_millis(200);
/// A shard that comes back sooner than this was slow, not hung: it gets more time before the next finding.
const SLOW: Duration = Duration::from_secs(1);
/// The most that it gets.
const MOST_PATIENCE: u32 = 16;
/// It gets less again when nothing was found for so long.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// What one look at a listener shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSample {
    /// Connections that wait to be accepted.
    pub queued: u32,
    /// Connections whose handshake was completed before that was asked, and after: whoever looks may be kept from it in between,
    /// and what comes then must not seem accepted, now or at the next look.
    pub established: [u64; 2],
    /// How long its threads have had work and waited for a CPU since the last look: it can't be judged by that time.
    pub starved: Duration,
}

/// What has to be done about a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The shard doesn't accept: its slot goes out of service.
    Hung,
    /// It still doesn't: its queue is to be moved to other slots; see [`AcceptQueue::note_moved`].
    Move,
    /// It accepts again, after this long.
    Back(Duration),
}

/// A listener's accept queue over time.
#[derive(Debug, Clone)]
pub struct AcceptQueue {
    bounds: StallBounds,
    /// Times `hung_after`.
    patience: u32,
    last: Option<Look>,
    /// Time in which the queue stood though the shard could have accepted.
    standing: Duration,
    hung: Option<Hung>,
    last_finding: Option<Instant>,
    suspicious: Option<Suspicion>,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    /// At most.
    accepted: i64,
}

#[derive(Debug, Clone, Copy)]
struct Suspicion {
    since: Instant,
    is_fresh: bool,
}

#[derive(Debug, Clone, Copy)]
struct Hung {
    since: Instant,
    phase: Phase,
    /// Of the phase.
    began: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its queue stands.
    Standing,
    /// Somebody moves its queue: what leaves it now was not accepted.
    Moving,
    /// Only a connection that comes later, and is accepted, shows that the shard is back.
    Moved,
}

impl AcceptQueue {
    /// Nothing is known yet.
    pub fn new(bounds: StallBounds) -> Self {
        let (standing, last_finding) = (Duration::ZERO, None);
        Self { bounds, patience: 1, last: None, standing, hung: None, last_finding, suspicious: None }
    }

    /// Whether the shard is taken to be hung.
    pub fn is_hung(&self) -> bool {
        self.hung.is_some()
    }

    /// Whether the next look should come soon: nothing was accepted since the last one, or less than waits now.
    pub fn is_suspicious(&self) -> bool {
        self.suspicious.is_some_and(|suspicion| suspicion.is_fresh)
    }

    /// The queue was moved, or could not be; it is found again after a while then.
    pub fn note_moved(&mut self, now: Instant, moved: bool) {
        if let Some(hung) = &mut self.hung {
            (hung.phase, hung.began) = (if moved { Phase::Moved } else { Phase::Standing }, now);
            // What was moved was not accepted here: counting begins anew.
            self.last = None;
        }
    }

    /// Whether something was accepted since the last sample, or nothing is known. `established` is from before `queued`.
    pub fn moves(&self, established: u64, queued: u32) -> bool {
        self.last.is_none_or(|last| established.cast_signed() - i64::from(queued) > last.accepted)
    }

    /// Takes a sample in.
    pub fn observe(&mut self, now: Instant, sample: QueueSample) -> Option<Finding> {
        let [at_least, at_most] = sample.established.map(|count| count.cast_signed() - i64::from(sample.queued));
        let last = self.last.replace(Look { at: now, accepted: at_most })?;
        let moves = at_least > last.accepted;
        self.suspect(now, at_least - last.accepted, sample.queued);
        let finding = match self.hung {
            Some(hung) => self.observe_hung(now, hung, moves, sample.queued),
            None => self.observe_moving(now, now.duration_since(last.at), moves, sample),
        };
        if finding.is_some() {
            self.last_finding = Some(now);
        } else if self.patience > 1 && self.last_finding.is_none_or(|at| now.duration_since(at) >= FORGET_AFTER) {
            (self.patience, self.last_finding) = (self.patience / 2, Some(now));
        }
        finding
    }

    fn suspect(&mut self, now: Instant, accepted: i64, queued: u32) {
        let before = self.suspicious.take();
        let stands = accepted <= 0 && queued > 0;
        // It may have stopped since the last look; the next one tells.
        let stops = before.is_none() && i64::from(queued) > accepted;
        if self.hung.is_none() && (stands || stops) {
            let since = before.map_or(now, |suspicion| suspicion.since);
            self.suspicious = Some(Suspicion { since, is_fresh: now.duration_since(since) < SUSPECTED_FOR });
        }
    }

    fn observe_moving(&mut self, now: Instant, passed: Duration, moves: bool, sample: QueueSample) -> Option<Finding> {
        if moves || sample.queued == 0 {
            self.standing = Duration::ZERO;
        } else {
            self.standing += passed.min(MOST_OF_A_LOOK).saturating_sub(sample.starved.saturating_mul(STARVED_WEIGHT));
        }
        if self.standing < self.bounds.hung_after * self.patience {
            return None;
        }
        self.hung = Some(Hung { since: now, phase: Phase::Standing, began: now });
        Some(Finding::Hung)
    }

    fn observe_hung(&mut self, now: Instant, hung: Hung, moves: bool, queued: u32) -> Option<Finding> {
        let back = match hung.phase {
            Phase::Standing => moves || queued == 0,
            Phase::Moving => false,
            Phase::Moved => moves,
        };
        if back {
            let passed = now.duration_since(hung.since);
            (self.hung, self.standing) = (None, Duration::ZERO);
            if passed < SLOW {
                self.patience = (self.patience * 2).min(MOST_PATIENCE);
            }
            return Some(Finding::Back(passed));
        }
        // After a move one connection of ours waits there, which is not worth another.
        let stands = queued > u32::from(hung.phase == Phase::Moved) && hung.phase != Phase::Moving;
        if !stands {
            self.hung = Some(Hung { began: if hung.phase == Phase::Moved { now } else { hung.began }, ..hung });
            return None;
        }
        if now.duration_since(hung.began) < self.bounds.move_after {
            return None;
        }
        self.hung = Some(Hung { phase: Phase::Moving, began: now, ..hung });
        Some(Finding::Move)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP_MS: u64 = 20;

    /// Samples every 20 ms: (queued, established, starved); findings with the sample's number. A queue is moved 100 ms after
    /// that was found to be due.
    fn check(samples: impl IntoIterator<Item = (u32, u64, bool)>, expected: &[(usize, Finding)]) {
        let (start, mut queue) = (Instant::now(), AcceptQueue::new(StallBounds::default()));
        let at = |n: usize| start + Duration::from_millis(STEP_MS * n as u64);
        let mut due = None;
        let findings = samples.into_iter().enumerate().filter_map(|(n, (queued, established, starved))| {
            if due == Some(n) {
                queue.note_moved(at(n), true);
            }
            let starved = if starved { Duration::from_millis(STEP_MS) } else { Duration::ZERO };
            let finding = queue.observe(at(n), QueueSample { queued, established: [established; 2], starved })?;
            due = (finding == Finding::Move).then_some(n + 5).or(due);
            Some((n, finding))
        });
        assert_eq!(findings.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_queue_that_moves_is_none_of_a_hung_shard() {
        check((0..500).map(|_| (0, 7, false)), &[]);
        // Always full, and always one is accepted.
        check((0..500).map(|n| (100, 100 + n, false)), &[]);
        // Two looks without any, then one.
        check((0..500).map(|n| (5, 5 + n / 3, false)), &[]);
    }

    #[test]
    fn a_queue_that_stands_is_found_within_100_ms() {
        // It fills right after the look 9, 60 ms before, and is first seen at the look 10.
        let samples = (0..20).map(|n| if n < 10 { (0, 7, false) } else { (3 + n, 10 + u64::from(n), false) });
        check(samples, &[(12, Finding::Hung)]);
    }

    /// Looks as often as is asked for at a shard that gets and accepts 5 connections a millisecond, until it stops at
    /// `stop`; when it is found. The first of the looks that find it standing knows nothing of the time before.
    fn found_ms(stop: u64) -> u64 {
        let (start, mut queue, mut now) = (Instant::now(), AcceptQueue::new(StallBounds::default()), 0);
        let mut knows = false;
        loop {
            let (established, accepted) = (5 * now, 5 * now.min(stop));
            let queued = u32::try_from(established - accepted).unwrap();
            let stands = queued > 0 && !queue.moves(established, queued);
            let starved = if stands && !knows { Duration::MAX } else { Duration::ZERO };
            knows = stands;
            let sample = QueueSample { queued, established: [established; 2], starved };
            if let Some(finding) = queue.observe(start + Duration::from_millis(now), sample) {
                assert!(finding == Finding::Hung && now > stop, "{finding:?} at {now}");
                return now - stop;
            }
            now += if queue.is_suspicious() { 5 } else { STEP_MS };
        }
    }

    #[test]
    fn a_shard_that_stops_at_any_time_is_found_within_85_ms() {
        let found: Vec<u64> = (100..=200).map(found_ms).collect();
        assert!(found.iter().all(|ms| (60..=85).contains(ms)), "{found:?}");
    }

    #[test]
    fn a_late_look_counts_for_little() {
        let (start, mut queue) = (Instant::now(), AcceptQueue::new(StallBounds::default()));
        let looks = (0..10).map(|n| {
            let sample = QueueSample { queued: 1, established: [1; 2], starved: Duration::ZERO };
            queue.observe(start + Duration::from_secs(n), sample)
        });
        let first = looks.collect::<Vec<_>>().iter().position(|finding| *finding == Some(Finding::Hung));
        assert_eq!(first, Some(3));
    }

    #[test]
    fn what_comes_during_a_look_seems_not_accepted() {
        let (start, mut queue) = (Instant::now(), AcceptQueue::new(StallBounds::default()));
        // One comes every 5 ms and none is accepted. Look 5 is kept off before the queue, look 8 after it.
        let looks = (0..20u32).map(|n| {
            let (queued, after) = match n {
                5 => (n + 2, n + 2),
                8 => (n, n + 1),
                _ => (n, n),
            };
            let sample = QueueSample { queued, established: [n.into(), after.into()], starved: Duration::ZERO };
            queue.observe(start + Duration::from_millis(5) * n, sample)
        });
        assert_eq!(looks.collect::<Vec<_>>().iter().position(Option::is_some), Some(10));
    }

    /// Looks every 5 ms: (queued, accepted so far, starved); after which of them another should come soon.
    fn check_suspicion(looks: &[(u32, u64, bool)], expected: &[bool]) {
        let (start, mut queue) = (Instant::now(), AcceptQueue::new(StallBounds::default()));
        let suspicious = looks.iter().zip(0..).map(|((queued, accepted, starved), n)| {
            let starved = if *starved { Duration::MAX } else { Duration::ZERO };
            let established = [accepted + u64::from(*queued); 2];
            let sample = QueueSample { queued: *queued, established, starved };
            queue.observe(start + Duration::from_millis(5 * n), sample);
            queue.is_suspicious()
        });
        assert_eq!(suspicious.collect::<Vec<_>>(), expected, "{looks:?}");
    }

    #[test]
    fn what_may_have_stopped_is_looked_at_soon_and_not_for_ever() {
        check_suspicion(&[(0, 0, false), (0, 10, false), (5, 20, false)], &[false; 3]);
        // Less was accepted than waits; it goes on, it doesn't.
        check_suspicion(&[(0, 0, false), (9, 5, false), (9, 6, false)], &[false, true, false]);
        check_suspicion(&[(0, 0, false), (9, 5, false), (9, 5, false)], &[false, true, true]);
        // A long queue that moves: every other look at most.
        check_suspicion(
            &[(99, 0, false), (99, 5, false), (99, 9, false), (99, 12, false)],
            &[false, true, false, true],
        );
        // A shard that gets no CPU.
        let starved = [(9, 5, true); 60];
        let expected: Vec<bool> = (0..60).map(|n| (1..=40).contains(&n)).collect();
        check_suspicion(&starved, &expected);
        // One that is known to be hung.
        let stands = [(9, 5, false); 60];
        let expected: Vec<bool> = (0..60).map(|n| (1..=10).contains(&n)).collect();
        check_suspicion(&stands, &expected);
    }

    #[test]
    fn a_shard_that_often_waits_for_a_cpu_has_more_time() {
        for (starved_ms, expected) in [(0, Some(3)), (2, Some(5)), (5, None)] {
            let (start, mut queue) = (Instant::now(), AcceptQueue::new(StallBounds::default()));
            let starved = Duration::from_millis(starved_ms);
            let looks = (0..100u32).map(|n| {
                let sample = QueueSample { queued: 1, established: [1; 2], starved };
                queue.observe(start + Duration::from_millis(STEP_MS) * n, sample)
            });
            assert_eq!(looks.collect::<Vec<_>>().iter().position(Option::is_some), expected, "{starved_ms} ms");
        }
    }

    #[test]
    fn time_without_a_cpu_does_not_count() {
        check((0..500).map(|_| (3, 10, true)), &[]);
        check((0..12).map(|n| (3, 10, n < 5)), &[(7, Finding::Hung)]);
    }

    #[test]
    fn a_shard_that_accepts_again_is_back() {
        let stood = Duration::from_millis(STEP_MS * 7);
        check(
            (0..40).map(|n| if n < 10 { (3, 10, false) } else { (2, 10, false) }),
            &[
                (3, Finding::Hung),
                (10, Finding::Back(stood)),
                // It was slow, and has twice the time.
                (15, Finding::Hung),
            ],
        );
        // Empty: it has accepted all.
        check(
            (0..40).map(|n| if n < 10 { (3, 10, false) } else { (0, 10, false) }),
            &[(3, Finding::Hung), (10, Finding::Back(stood))],
        );
    }

    #[test]
    fn a_queue_is_moved_once_and_only_a_later_accept_tells() {
        // 2 s after the look 3 it is due; what is in it goes; a connection comes at the look 150, and is accepted at 160.
        let samples = (0..200).map(|n| match n {
            0..=106 => (3, 10, false),
            107..150 => (0, 10, false),
            150..160 => (1, 11, false),
            _ => (0, 11, false),
        });
        let back = Finding::Back(Duration::from_millis(STEP_MS * (160 - 3)));
        check(samples, &[(3, Finding::Hung), (103, Finding::Move), (160, back)]);
    }

    #[test]
    fn what_comes_after_a_move_is_moved_too() {
        // Connections come again at the look 150, because nobody else was there for a while.
        let samples = (0..300).map(|n| match n {
            0..=106 => (3, 10, false),
            107..150 => (1, 11, false),
            _ => (5, 15, false),
        });
        check(samples, &[(3, Finding::Hung), (103, Finding::Move), (249, Finding::Move)]);
    }

    #[test]
    fn what_could_not_be_moved_is_found_again() {
        let (start, mut queue) = (Instant::now(), AcceptQueue::new(StallBounds::default()));
        let mut found = Vec::new();
        for n in 0..250 {
            let now = start + Duration::from_millis(STEP_MS * n);
            match queue.observe(now, QueueSample { queued: 1, established: [1; 2], starved: Duration::ZERO }) {
                Some(Finding::Move) => {
                    found.push(n);
                    queue.note_moved(now, false);
                }
                other => assert!(matches!(other, None | Some(Finding::Hung)), "{other:?}"),
            }
        }
        assert_eq!(found, [103, 203]);
    }

    #[test]
    fn patience_is_forgotten() {
        let (start, mut queue) = (Instant::now(), AcceptQueue::new(StallBounds::default()));
        let mut now = start;
        let mut look = |queued, established| {
            now += Duration::from_millis(STEP_MS);
            queue.observe(now, QueueSample { queued, established: [established; 2], starved: Duration::ZERO })
        };
        let hung_after = |look: &mut dyn FnMut(u32, u64) -> Option<Finding>| {
            let looks = (1..).find(|_| look(1, 1) == Some(Finding::Hung)).expect("it stands for ever");
            assert!(matches!(look(0, 1), Some(Finding::Back(_))));
            looks
        };
        look(0, 0);
        let first = hung_after(&mut look);
        assert!(hung_after(&mut look) > first);
        (0..3 * FORGET_AFTER.as_millis() as u64 / STEP_MS).for_each(|_| assert_eq!(look(0, 1), None));
        assert_eq!(hung_after(&mut look), first);
    }
}
