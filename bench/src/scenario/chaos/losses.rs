//! Which fault a lost connection is owed to, and why nobody could save it; pure. Times are since the run's begin.

use std::{net::SocketAddr, time::Duration};

use serde::Serialize;

use super::schedule::Kind;
use crate::{contestant::GroupPath, load::Reached};

/// After a group is whole again, or the other way round: when a client hears of something and when the harness does differ.
const SLACK: Duration = Duration::from_secs(1);
/// Between a shard's death and the moment at which it was seen; and how long a handshake can meet a closing listener.
const DEATH_SEEN_WITHIN: Duration = Duration::from_millis(10);
/// Specifications of the harness's own leave `unready_timeout` at its 10 s.
const UNREADY_WAIT: Duration = Duration::from_millis(9_500);

/// A fault as it came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Incident {
    pub(super) kind: Kind,
    pub(super) slot: Option<u32>,
    /// Just before it was brought about.
    pub(super) began: Duration,
    /// When the shard, or the agent, was gone; where one went.
    pub(super) died: Option<Duration>,
    /// When the group was whole again; None: not before the run's end.
    pub(super) over: Option<Duration>,
}

/// A connection that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Loss {
    pub(super) kind: LossKind,
    /// When its SYN was sent.
    pub(super) began: Duration,
    /// When its last request was sent.
    pub(super) asked: Option<Duration>,
    /// When it failed.
    pub(super) ended: Duration,
    pub(super) client: Option<SocketAddr>,
    pub(super) slot: Whose,
    pub(super) reached: Reached,
    /// What the system said.
    pub(super) error: String,
    /// It failed only because its client didn't wait any longer.
    pub(super) unanswered: bool,
}

/// What sort of connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LossKind {
    /// With one request.
    Visit,
    /// With many.
    Kept,
}

/// Which slot had a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Whose {
    /// The slot had answered on it.
    Told(u32),
    /// The steering table names it for the client's address: it had it if it was in service.
    ByTable(u32),
    /// Nobody knows.
    Unknown,
}

/// Why a connection was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Explanation {
    /// The fault's number, if one is to blame.
    pub(super) fault: Option<usize>,
    pub(super) cause: Cause,
}

/// Why neither kernel nor agent could save it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Cause {
    /// The shard that had accepted it ended.
    ShardEnded,
    /// It was being relayed to the shard that ended, and bytes had passed.
    RelayedShardEnded,
    /// Its handshake ended while the listener closed.
    ListenerClosed,
    /// It was relayed by the agent that was killed.
    AgentEnded,
    /// The shard that had it stood still for longer than its client waited.
    ShardStoodStill,
    /// No shard was ready for as long as the group lets connections wait.
    NobodyReady,
    /// No fault was in force.
    NoFault,
    /// Faults were in force that should not have cost it.
    Unexplained,
}

impl Cause {
    /// Whether it was to be expected.
    pub(super) fn is_explained(self) -> bool {
        !matches!(self, Self::NoFault | Self::Unexplained)
    }

    /// In a sentence.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::ShardEnded => {
                "its shard had it and ended: the kernel closes a process's sockets, and nobody else has them"
            }
            Self::RelayedShardEnded => {
                "it was relayed to the shard that ended: after its first byte it can't be given to another"
            }
            Self::ListenerClosed => {
                "its handshake ended while the dead shard's listener closed: the kernel resets what is then neither queued nor pending"
            }
            Self::AgentEnded => "it was relayed by the agent that was killed: its sockets ended with that process",
            Self::ShardStoodStill => "its shard had it, stood still, and its client didn't wait any longer",
            Self::NobodyReady => "no shard was ready for as long as the group lets connections wait (unready_timeout)",
            Self::NoFault => "UNEXPLAINED: no fault was in force",
            Self::Unexplained => "UNEXPLAINED: the faults in force should not have cost it",
        }
    }
}

/// Finds the fault that `loss` is owed to, the latest that can be.
pub(super) fn explain(loss: &Loss, incidents: &[Incident], path: GroupPath) -> Explanation {
    let in_force = |incident: &Incident| {
        let over = incident.over.map_or(Duration::MAX, |over| over + SLACK);
        let begins = if loss.unanswered { loss.began } else { loss.ended };
        incident.began <= loss.ended && begins <= over
    };
    let mut any = false;
    for (number, incident) in incidents.iter().enumerate().rev().filter(|(_, incident)| in_force(incident)) {
        any = true;
        if !may_be_at(loss, incident, incidents) {
            continue;
        }
        if let Some(cause) = cause(loss, incident, path) {
            return Explanation { fault: Some(number), cause };
        }
    }
    Explanation { fault: None, cause: if any { Cause::Unexplained } else { Cause::NoFault } }
}

/// Whether the connection may have been at the incident's slot.
fn may_be_at(loss: &Loss, incident: &Incident, incidents: &[Incident]) -> bool {
    let Some(slot) = incident.slot else { return true };
    match loss.slot {
        Whose::Told(told) => told == slot,
        Whose::Unknown => true,
        // Out of service, the named slot's connections go to others.
        Whose::ByTable(named) => {
            let was_out = |other: &Incident| {
                let over = other.over.unwrap_or(Duration::MAX);
                other.slot.is_none_or(|other| other == named) && other.began <= loss.began && loss.began <= over
            };
            named == slot || incidents.iter().any(was_out)
        }
    }
}

fn cause(loss: &Loss, incident: &Incident, path: GroupPath) -> Option<Cause> {
    let died = incident.died.unwrap_or(incident.began);
    let was_there = loss.began <= died + DEATH_SEEN_WITHIN;
    // A refusal, or a handshake that never ended, is nobody's fault but the front's.
    let was_established = loss.reached != Reached::Connecting;
    match incident.kind {
        kind if kind.ends_shards()
            && was_there
            && was_established
            && loss.ended + DEATH_SEEN_WITHIN >= incident.began =>
        {
            let at_once = loss.began + DEATH_SEEN_WITHIN >= died && loss.kind == LossKind::Visit;
            Some(match path {
                GroupPath::Relay => Cause::RelayedShardEnded,
                GroupPath::Direct if at_once && loss.began >= died => Cause::ListenerClosed,
                GroupPath::Direct => Cause::ShardEnded,
            })
        }
        Kind::EngineRestart if loss.ended - loss.began >= UNREADY_WAIT => Some(Cause::NobodyReady),
        Kind::Stop | Kind::Pause if loss.unanswered && was_established => Some(Cause::ShardStoodStill),
        Kind::AgentKill if path == GroupPath::Relay && was_there && was_established => Some(Cause::AgentEnded),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Comes at 1,000, somebody is gone at 1,005, all is well at 2,000.
    fn incident(kind: Kind) -> Incident {
        let died = (kind.ends_shards() || kind == Kind::AgentKill).then(|| millis(1005));
        Incident { kind, slot: kind.is_of_a_slot().then_some(1), began: millis(1000), died, over: Some(millis(2000)) }
    }

    fn loss(began: u64, ended: u64, slot: Whose) -> Loss {
        Loss {
            kind: LossKind::Visit,
            began: millis(began),
            asked: Some(millis(began)),
            ended: millis(ended),
            client: None,
            slot,
            reached: Reached::Asked,
            error: "reset".into(),
            unanswered: false,
        }
    }

    fn check(loss: &Loss, kind: Kind, path: GroupPath, expected: Cause) {
        let found = explain(loss, &[incident(kind)], path);
        assert_eq!(found.cause, expected, "{loss:?} {kind:?}");
        assert_eq!(found.fault.is_some(), expected.is_explained());
    }

    #[test]
    fn what_a_killed_shard_had_is_lost_and_nothing_else() {
        let (direct, relay) = (GroupPath::Direct, GroupPath::Relay);
        for slot in [Whose::Told(1), Whose::ByTable(1), Whose::Unknown] {
            check(&loss(990, 1005, slot), Kind::Kill, direct, Cause::ShardEnded);
            check(&loss(990, 1005, slot), Kind::Kill, relay, Cause::RelayedShardEnded);
            check(&loss(1006, 1007, slot), Kind::Kill, direct, Cause::ListenerClosed);
            // The shard has been gone for long.
            check(&loss(1100, 1101, slot), Kind::Kill, direct, Cause::Unexplained);
            check(&loss(1100, 1101, slot), Kind::Kill, relay, Cause::Unexplained);
        }
        check(&loss(990, 1005, Whose::Told(0)), Kind::Kill, direct, Cause::Unexplained);
        check(&loss(990, 1005, Whose::ByTable(0)), Kind::Restart, direct, Cause::Unexplained);
        let refused = Loss { reached: Reached::Connecting, ..loss(1001, 1002, Whose::Unknown) };
        check(&refused, Kind::Kill, direct, Cause::Unexplained);
        check(&loss(10, 20, Whose::Unknown), Kind::Kill, direct, Cause::NoFault);
        check(&loss(3100, 3200, Whose::Unknown), Kind::Kill, direct, Cause::NoFault);
    }

    #[test]
    fn an_agent_takes_what_it_relays() {
        let kept = Loss { kind: LossKind::Kept, ..loss(100, 1006, Whose::Told(0)) };
        check(&kept, Kind::AgentKill, GroupPath::Relay, Cause::AgentEnded);
        check(&kept, Kind::AgentKill, GroupPath::Direct, Cause::Unexplained);
        // It had to wait for the next agent.
        check(&loss(1200, 1300, Whose::Unknown), Kind::AgentKill, GroupPath::Relay, Cause::Unexplained);
    }

    #[test]
    fn standing_still_costs_only_who_does_not_wait() {
        for kind in [Kind::Stop, Kind::Pause] {
            let waited = Loss { unanswered: true, ..loss(900, 20_900, Whose::Told(1)) };
            check(&waited, kind, GroupPath::Direct, Cause::ShardStoodStill);
            check(&loss(900, 1300, Whose::Told(1)), kind, GroupPath::Direct, Cause::Unexplained);
        }
        let waited = Loss { unanswered: true, ..loss(900, 20_900, Whose::Told(1)) };
        check(&waited, Kind::Drift, GroupPath::Direct, Cause::Unexplained);
    }

    #[test]
    fn an_engine_takes_all_shards_with_it() {
        for slot in [Whose::Told(0), Whose::Told(1)] {
            check(&loss(990, 1005, slot), Kind::EngineRestart, GroupPath::Direct, Cause::ShardEnded);
        }
        let long = Incident { over: Some(millis(15_000)), ..incident(Kind::EngineRestart) };
        let waited = explain(&loss(1500, 11_500, Whose::Unknown), &[long], GroupPath::Direct);
        assert_eq!(waited.cause, Cause::NobodyReady);
        let soon = explain(&loss(1500, 2500, Whose::Unknown), &[long], GroupPath::Direct);
        assert_eq!(soon.cause, Cause::Unexplained);
    }

    /// Slot 0 is stopped and out when slot 1, which serves for it, is killed.
    #[test]
    fn who_serves_for_another_loses_the_others_connections() {
        let stopped = Incident { slot: Some(0), began: millis(500), over: Some(millis(4000)), ..incident(Kind::Stop) };
        let incidents = [stopped, incident(Kind::Kill)];
        let found = explain(&loss(990, 1005, Whose::ByTable(0)), &incidents, GroupPath::Direct);
        assert_eq!(found, Explanation { fault: Some(1), cause: Cause::ShardEnded });
        let told = explain(&loss(990, 1005, Whose::Told(0)), &incidents, GroupPath::Direct);
        assert_eq!(told.cause, Cause::Unexplained);
    }
}
