//! Tables of cases, what holds for all, and how often chance decides: distributions are simulated with fixed seeds.

use proptest::prelude::*;

use super::*;

const POLICY: Policy =
    Policy { min_connections: 100, max_error_points: Some(0.01), max_slowdown: Some(1.5), max_cpu_ratio: Some(1.5) };

fn sample(connections: u64, unanswered: u64, answer_millis: f64, cpu_millis: f64) -> Sample {
    let count = connections as f64;
    Sample {
        connections,
        unanswered,
        first_answer: Some(Times { count: connections, sum_seconds: count * answer_millis / 1e3, squares: None }),
        cpu_seconds: count * cpu_millis / 1e3,
        ..Sample::default()
    }
}

const fn plain() -> (u64, u64, f64, f64) {
    (500, 1, 2.0, 1.0)
}

fn of((connections, unanswered, answer, cpu): (u64, u64, f64, f64)) -> Sample {
    sample(connections, unanswered, answer, cpu)
}

/// The kind of the judgement, and that its sentence has these words.
fn check(shard: &Sample, siblings: &[Sample], before: Option<&Sample>, expected: Result<bool, &str>) {
    let judgement = judge(Evidence { shard, siblings, before }, &POLICY);
    match (&judgement, expected) {
        (Judgement::Good, Ok(true)) | (Judgement::TooLittle(_), Ok(false)) => {}
        (Judgement::Bad(why), Err(words)) if why.contains(words) => {}
        _ => panic!("{judgement:?}, expected {expected:?}"),
    }
}

const GOOD: Result<bool, &str> = Ok(true);
const TOO_LITTLE: Result<bool, &str> = Ok(false);

#[test]
fn a_shard_is_bad_when_it_is_worse_than_its_siblings() {
    let siblings = [plain(), (480, 0, 2.1, 1.1), (510, 2, 1.9, 0.9)].map(of);
    check(&of(plain()), &siblings, None, GOOD);
    let words = "10.0 % of 500 of its connections failed, of its siblings' 0.2 % of 1490: more than 1.0 points more";
    check(&sample(500, 50, 2.0, 1.0), &siblings, None, Err(words));
    let words = "its first answers took 6.00 ms, its siblings' 2.10 ms: more than 1.5 times as long";
    check(&sample(500, 1, 6.0, 1.0), &siblings, None, Err(words));
    let words = "it took 4.00 ms of CPU time for a connection, its siblings' 1.10 ms: more than 1.5 times as much";
    check(&sample(500, 1, 2.0, 4.0), &siblings, None, Err(words));
    // Better is never bad.
    check(&sample(500, 0, 0.1, 0.1), &siblings, None, GOOD);
    let refused = Sample { connect_failures: 50, ..of(plain()) };
    check(&refused, &siblings, None, Err("9.3 % of 550 of its connections failed"));
}

#[test]
fn a_group_of_one_goes_by_its_former_shard() {
    check(&of(plain()), &[], Some(&of(plain())), GOOD);
    check(&sample(500, 1, 6.0, 1.0), &[], Some(&of(plain())), Err("its predecessor's 2.00 ms"));
    check(&of(plain()), &[], None, TOO_LITTLE);
}

#[test]
fn what_the_former_shard_did_too_is_the_slots() {
    let siblings = [of(plain()); 3];
    let slow = sample(500, 60, 6.0, 4.0);
    check(&slow, &siblings, None, Err("failed"));
    check(&slow, &siblings, Some(&of(plain())), Err("its siblings' 0.2 %"));
    check(&slow, &siblings, Some(&slow), GOOD);
    // And what siblings suffer at the same time is not the new shard's.
    check(&slow, &[slow; 3], Some(&of(plain())), GOOD);
}

#[test]
fn too_little_is_said_to_be_too_little() {
    let siblings = [of(plain()); 2];
    check(&sample(99, 99, 2.0, 1.0), &siblings, None, TOO_LITTLE);
    check(&sample(100, 100, 2.0, 1.0), &siblings, None, Err("100.0 %"));
    check(&sample(500, 400, 2.0, 1.0), &[sample(99, 0, 2.0, 1.0)], None, TOO_LITTLE);
    // The other one still tells.
    check(&sample(500, 400, 2.0, 1.0), &[sample(99, 0, 2.0, 1.0), of(plain())], None, Err("its sibling's"));
    let untimed = Sample { first_answer: Some(Times { count: 99, ..Times::default() }), ..of(plain()) };
    check(&untimed, &siblings, None, TOO_LITTLE);
    // Where nobody times anything, the rest decides.
    let never = Sample { first_answer: None, ..of(plain()) };
    check(&never, &siblings, None, GOOD);
    check(&Sample { unanswered: 50, ..never }, &siblings, None, Err("failed"));
    let nothing = Judgement::TooLittle("0 of its connections have ended, 1 are needed".into());
    let policy = Policy { min_connections: 0, ..POLICY };
    assert_eq!(judge(Evidence { shard: &Sample::default(), siblings: &siblings, before: None }, &policy), nothing);
}

#[test]
fn one_sibling_hides_nothing() {
    let outlier = sample(500, 250, 20.0, 10.0);
    let siblings = [of(plain()), of(plain()), outlier, of(plain())];
    check(&of(plain()), &siblings, None, GOOD);
    check(&sample(500, 100, 2.0, 1.0), &siblings, None, Err("failed"));
    check(&sample(500, 1, 10.0, 1.0), &siblings, None, Err("took 10.00 ms"));
    check(&sample(500, 1, 2.0, 5.0), &siblings, None, Err("CPU"));
    // Of two nobody knows which is the odd one; worse than both is worse.
    check(&sample(500, 1, 10.0, 1.0), &[of(plain()), outlier], None, TOO_LITTLE);
    check(&of(plain()), &[of(plain()), outlier], None, GOOD);
    check(&sample(500, 1, 40.0, 1.0), &[of(plain()), outlier], None, Err("took 40.00 ms"));
}

#[test]
fn what_is_not_asked_for_is_not_judged() {
    let policy = Policy { min_connections: 100, max_error_points: None, max_slowdown: None, max_cpu_ratio: None };
    let (bad, good) = (sample(500, 500, 900.0, 900.0), of(plain()));
    assert_eq!(judge(Evidence { shard: &bad, siblings: &[good], before: None }, &policy), Judgement::Good);
}

fn any_sample() -> impl Strategy<Value = Sample> {
    let times = (0..2000_u64, 0.0..100.0_f64, 0.0..1000.0_f64, any::<bool>());
    let times = times.prop_map(|(count, sum_seconds, squares, is_known)| Times {
        count,
        sum_seconds,
        squares: is_known.then_some(squares),
    });
    let counts = (0..2000_u64, 0..2000_u64, 0..100_u64);
    (counts, prop::option::of(times), 0.0..100.0_f64).prop_map(
        |((connections, unanswered, connect_failures), first_answer, cpu_seconds)| Sample {
            connections,
            unanswered: unanswered.min(connections),
            connect_failures,
            first_answer,
            cpu_seconds,
        },
    )
}

proptest! {
    #[test]
    fn few_connections_never_condemn(
        shard in any_sample(), siblings in prop::collection::vec(any_sample(), 0..5), before in prop::option::of(any_sample()),
    ) {
        let policy = Policy { min_connections: 3000, ..POLICY };
        let judgement = judge(Evidence { shard: &shard, siblings: &siblings, before: before.as_ref() }, &policy);
        prop_assert!(matches!(judgement, Judgement::TooLittle(_)));
    }

    #[test]
    fn who_does_as_others_do_is_never_bad(shard in any_sample(), count in 1..6_usize, before in prop::option::of(any_sample())) {
        let siblings = vec![shard; count];
        let judgement = judge(Evidence { shard: &shard, siblings: &siblings, before: before.as_ref() }, &POLICY);
        prop_assert!(!matches!(judgement, Judgement::Bad(_)), "{judgement:?}");
        let judgement = judge(Evidence { shard: &shard, siblings: &[], before: Some(&shard) }, &POLICY);
        prop_assert!(!matches!(judgement, Judgement::Bad(_)), "{judgement:?}");
    }

    #[test]
    fn more_failures_make_no_bad_shard_good(
        shard in any_sample(), siblings in prop::collection::vec(any_sample(), 0..5), more in 0..500_u64,
    ) {
        let judged = |shard: &Sample| judge(Evidence { shard, siblings: &siblings, before: None }, &POLICY);
        let worse = Sample { unanswered: (shard.unanswered + more).min(shard.connections), ..shard };
        if matches!(judged(&shard), Judgement::Bad(_)) {
            let worse = judged(&worse);
            prop_assert!(matches!(worse, Judgement::Bad(_)), "{worse:?}");
        }
    }

    #[test]
    fn a_former_shard_only_ever_excuses(
        shard in any_sample(), siblings in prop::collection::vec(any_sample(), 1..5), before in any_sample(),
    ) {
        let judged = |before| judge(Evidence { shard: &shard, siblings: &siblings, before }, &POLICY);
        if judged(None) == Judgement::Good {
            prop_assert_eq!(judged(Some(&before)), Judgement::Good);
        }
    }
}

/// SplitMix64: as good as it must be here, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Of a log-normal distribution with this median and sigma, by Box and Muller.
    fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let (one, other) = (1.0 - self.next(), self.next());
        median * (sigma * (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos()).exp()
    }
}

/// How connections of a shard go.
#[derive(Debug, Clone, Copy)]
struct Service {
    connections: u64,
    errors: f64,
    median_seconds: f64,
    /// 0.5 is a quiet service; at 2 one answer in a hundred takes a hundred times the median.
    sigma: f64,
}

impl Service {
    /// What would be counted of it, times by the histogram.
    fn observe(self, random: &mut Random) -> Sample {
        let bounds: Vec<u64> = (5..24).map(|bits| 1 << bits).collect();
        let mut buckets = vec![0; bounds.len() + 1];
        let (mut unanswered, mut sum, mut cpu_seconds) = (0, 0, 0.0);
        for _ in 0..self.connections {
            let micros = (random.log_normal(self.median_seconds, self.sigma) * 1e6) as u64;
            unanswered += u64::from(random.next() < self.errors);
            cpu_seconds += random.log_normal(1e-3, 0.5);
            buckets[bounds.iter().position(|bound| micros < *bound).unwrap_or(bounds.len())] += 1;
            sum += micros;
        }
        let first_answer = Some(Times::of_buckets(&bounds, &buckets, sum));
        Sample { connections: self.connections, unanswered, first_answer, cpu_seconds, ..Sample::default() }
    }
}

/// Of so many rollouts, the share that was condemned.
fn condemned(new: Service, old: Service, siblings: usize, trials: u64) -> f64 {
    let bad = (0..trials).filter(|trial| {
        let mut random = Random(trial.wrapping_mul(0x5851_f42d_4c95_7f2d));
        let shard = new.observe(&mut random);
        let siblings: Vec<Sample> = (0..siblings).map(|_| old.observe(&mut random)).collect();
        let judgement = judge(Evidence { shard: &shard, siblings: &siblings, before: None }, &POLICY);
        matches!(judgement, Judgement::Bad(_))
    });
    bad.count() as f64 / trials as f64
}

#[test]
fn chance_hardly_ever_condemns() {
    let mut all = (0.0, 0.0_f64);
    for connections in [100, 300, 1000] {
        for (errors, sigma) in [(0.0, 0.5), (0.002, 1.0), (0.02, 1.0), (0.2, 1.5)] {
            for siblings in [1, 3] {
                let service = Service { connections, errors, median_seconds: 2e-3, sigma };
                let share = condemned(service, service, siblings, 500);
                all = (all.0 + share / 24.0, all.1.max(share));
                println!("{connections} connections, {errors} errors, sigma {sigma}, {siblings} siblings: {share}");
            }
        }
    }
    println!("mean {}, most {}", all.0, all.1);
    assert!(all.0 <= 0.002 && all.1 <= 0.01, "{all:?}");
}

#[test]
fn what_is_worse_is_found_by_a_few_hundred_connections() {
    for (connections, least) in [(300, 0.8), (500, 0.95)] {
        let old = Service { connections, errors: 0.001, median_seconds: 2e-3, sigma: 0.7 };
        for (what, new) in
            [("half as fast", Service { median_seconds: 4e-3, ..old }), ("5 % errors", Service { errors: 0.05, ..old })]
        {
            let share = condemned(new, old, 3, 300);
            println!("{what}, {connections} connections: {share}");
            assert!(share >= least, "{what}, {connections} connections: {share}");
        }
    }
}
