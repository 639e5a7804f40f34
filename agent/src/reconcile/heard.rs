//! What runtimes say happened, as the loop hears it: one batch waits at most, however many events there were, so that
//! thousands at once cost it one listing. What holds is what the listing says; this only names what others did.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::{
    Reconciler,
    drift::{Act, HeardAct},
    message::Message,
};
use crate::{
    clock,
    runtime::{Runtime, RuntimeEvent, ShardId, ShardKey},
};

/// First wait before a lost stream of events is opened again.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// The longest: an engine that comes back is to be asked soon, and a connection that nobody takes costs nothing.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Shards that a batch names at most; of more it only says that something changed.
const MAX_NAMED: usize = 1024;

/// What happened since the last batch.
#[derive(Debug)]
pub(super) struct Heard {
    runtime: &'static str,
    /// Something that a listing tells.
    changed: bool,
    /// Shards whose own check came to another result.
    checked: BTreeSet<ShardKey>,
    /// What somebody had the engine do, to which shard: the last of each.
    acts: BTreeMap<ShardId, Act>,
}

impl Heard {
    fn nothing(runtime: &'static str) -> Self {
        Self { runtime, changed: false, checked: BTreeSet::new(), acts: BTreeMap::new() }
    }

    fn is_empty(&self) -> bool {
        !self.changed && self.checked.is_empty()
    }

    fn note(&mut self, event: RuntimeEvent) {
        match event.key {
            // Of a check of the engine's own, which changes nothing that a listing tells.
            Some(key) if event.kind.starts_with("health_status") => {
                if self.checked.len() < MAX_NAMED {
                    self.checked.insert(key);
                }
                return;
            }
            _ => self.changed = true,
        }
        let act = match (event.kind.as_str(), event.signal) {
            ("kill", Some(signal)) => Act::Signal(signal),
            ("stop", _) => Act::Stop,
            _ => return,
        };
        if let Some(id) = event.id
            && (self.acts.len() < MAX_NAMED || self.acts.contains_key(&id))
        {
            self.acts.insert(id, act);
        }
    }
}

impl Reconciler {
    /// Listens to what happens in each runtime, for as long as the loop lives.
    pub(super) fn listen(&self, batches: &mpsc::Sender<Heard>) {
        for runtime in &self.runtimes.0 {
            tokio::spawn(listen(Arc::clone(runtime), self.outbox.clone(), batches.clone()));
        }
    }

    pub(super) fn on_heard(&mut self, heard: Heard) {
        let Heard { runtime, changed, checked, acts } = heard;
        for key in checked {
            if let Some(live) = self.slot_mut(&key.group, key.slot).and_then(|slot| slot.live.as_ref()) {
                live.nudge.notify_one();
            }
        }
        let at = clock::now();
        for slot in self.groups.values_mut().flat_map(|group| group.slots.values_mut()) {
            let shard = slot.live.as_ref().map(|live| live.id.clone());
            if let Some((id, act)) = shard.and_then(|id| acts.get(&id).map(|act| (id, *act))) {
                slot.heard = Some((id, HeardAct { act, at }));
            }
        }
        if changed {
            self.observe(runtime);
        }
    }
}

/// Tells the loop what the runtime says, and to look again whenever it may have missed something.
async fn listen(runtime: Arc<dyn Runtime>, outbox: mpsc::UnboundedSender<Message>, batches: mpsc::Sender<Heard>) {
    let kind = runtime.kind();
    let mut retry = RETRY_FIRST;
    loop {
        let mut events = runtime.events();
        if let Ok(version) = runtime.version().await {
            let _ = outbox.send(Message::Version { runtime: kind, version });
        }
        // Whatever happened while nobody listened.
        let mut heard = Heard { changed: true, ..Heard::nothing(kind) };
        loop {
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        retry = RETRY_FIRST;
                        tracing::debug!(runtime = kind, key = ?event.key, kind = event.kind, "event");
                        heard.note(event);
                    }
                    _ => break,
                },
                // The loop takes one batch at a time; meanwhile the next one grows, within its bounds.
                place = batches.reserve(), if !heard.is_empty() => match place {
                    Ok(place) => place.send(std::mem::replace(&mut heard, Heard::nothing(kind))),
                    Err(_) => return,
                },
            }
        }
        // The stream has ended: the engine went away, perhaps after it said why.
        if batches.send(Heard { changed: true, ..heard }).await.is_err() {
            return;
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(RETRY_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, id: usize, signal: Option<i32>) -> RuntimeEvent {
        RuntimeEvent { key: None, id: Some(ShardId(id.to_string())), kind: kind.to_owned(), signal }
    }

    #[test]
    fn thousands_of_events_are_one_batch_of_bounded_size() {
        let mut heard = Heard::nothing("docker");
        assert!(heard.is_empty());
        for id in 0..5_000 {
            heard.note(event("kill", id, Some(15)));
            heard.note(event("die", id, None));
            let key = ShardKey { group: "web".parse().unwrap(), slot: sherd_topology::plan::SlotId(id as u32) };
            heard.note(RuntimeEvent { key: Some(key), ..event("health_status: healthy", id, None) });
        }
        assert!(heard.changed);
        assert_eq!((heard.acts.len(), heard.checked.len()), (MAX_NAMED, MAX_NAMED));
        // Of those that are named the last is kept.
        heard.note(event("kill", 0, Some(9)));
        assert_eq!(heard.acts.get(&ShardId("0".to_owned())), Some(&Act::Signal(9)));
    }

    #[test]
    fn a_check_of_the_engines_own_changes_nothing_that_is_listed() {
        let mut heard = Heard::nothing("docker");
        let key = ShardKey { group: "web".parse().unwrap(), slot: sherd_topology::plan::SlotId(0) };
        heard.note(RuntimeEvent { key: Some(key), ..event("health_status: unhealthy", 1, None) });
        assert!(!heard.changed && !heard.is_empty());
    }
}
