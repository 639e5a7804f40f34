//! Slots and images that are relayed although they could be direct: how that is found out, remembered and said.

use std::collections::BTreeSet;

use sherd_topology::plan::{GroupName, SlotId};

use super::trial::{Failed, Suspicion};
use crate::{
    reconcile::{Reconciler, chain, group::SlotRun},
    runtime::{ImageId, ObservedShard, ShardId},
    spec::{GroupSpec, PathChoice},
    store::{Refusal, RelayedImages},
};

impl Reconciler {
    /// Images whose shards go without the shim. Who asks for `direct` has it tried again.
    pub(in crate::reconcile) fn images_on_relay(&self, spec: &GroupSpec) -> BTreeSet<ImageId> {
        match spec.path {
            PathChoice::Auto => self.relayed_images.ids(),
            PathChoice::Direct | PathChoice::Relay => BTreeSet::new(),
        }
    }

    /// A shard has become ready: where its image was under suspicion, that is settled now.
    pub(in crate::reconcile) fn end_trial(&mut self, group: &GroupName, id: SlotId, shard: &ShardId) {
        let Some(slot) = self.slot_mut(group, id) else { return };
        let image = slot.observed(shard).and_then(|shard| shard.image.clone());
        let grafted = slot.is_grafted(shard);
        let Some(proven) = slot.trial.note_ready(image.as_ref(), grafted) else { return };
        tracing::warn!(
            %group, slot = %id, image = %proven.image,
            "this image works on relay only: its shards start there from now on, `--path direct` tries again: {}",
            proven.reason
        );
        if let Err(error) = self.relayed_images.remember(proven.image, Refusal::now(&proven.reason)) {
            tracing::error!("that is forgotten with this agent: {}", chain(&error));
        }
    }

    /// A slot is in service. If its shard accepts itself although its image is remembered for not doing so, because the
    /// operator asked for that, the image is forgotten.
    pub(in crate::reconcile) fn note_path_of_image(&mut self, name: &GroupName, id: SlotId) {
        let Some(group) = self.groups.get(name) else { return };
        if group.spec.path != PathChoice::Direct || !group.fronts.is_direct(id) {
            return;
        }
        let live = group.slots.get(&id).and_then(|slot| slot.observed(&slot.live.as_ref()?.id));
        let Some(image) = live.and_then(|shard| shard.image.clone()) else { return };
        match self.relayed_images.forget(&image) {
            Ok(true) => tracing::info!(group = %name, %image, "this image accepts by itself: it is relayed no more"),
            Ok(false) => {}
            Err(error) => tracing::error!("an image is still remembered for relay: {}", chain(&error)),
        }
    }
}

impl SlotRun {
    /// One of the slot's shards, as its runtime told it.
    fn observed(&self, shard: &ShardId) -> Option<&ObservedShard> {
        self.shards.iter().find(|found| found.id == *shard)
    }

    /// Whether the shard was given a listener.
    fn is_grafted(&self, shard: &ShardId) -> bool {
        let direct = self.observed(shard).and_then(|shard| self.directs.get(&shard.generation));
        direct.is_some_and(|direct| !direct.grafts.is_empty())
    }

    /// A shard failed that was never ready. What `direct` asks for is not relayed, whatever becomes of it.
    pub(in crate::reconcile) fn note_never_ready(
        &mut self,
        spec: &GroupSpec,
        shard: &ShardId,
        failed: Failed,
        cause: &str,
    ) {
        if spec.path != PathChoice::Auto {
            return;
        }
        match (self.is_grafted(shard), self.observed(shard).and_then(|shard| shard.image.clone())) {
            (true, Some(image)) => {
                self.trial.note_grafted_failure(failed, Suspicion { image, reason: cause.to_owned() });
            }
            // Without the image's id nothing could be remembered, and every shard would be tried twice.
            (true, None) => {}
            (false, _) => self.trial.note_relayed_failure(),
        }
    }

    /// Why its connections don't reach its shard directly.
    pub(in crate::reconcile) fn relayed_because(&self, images: &RelayedImages) -> String {
        let serving = self.live.as_ref().map_or(self.generation, |live| live.generation);
        if let Some(reason) = self.directs.get(&serving).and_then(|direct| direct.reason.clone()) {
            return reason;
        }
        let live = self.live.as_ref().and_then(|live| self.observed(&live.id));
        let image = live.and_then(|shard| shard.image.as_ref());
        if let Some(refusal) = image.and_then(|image| images.get(image)) {
            return format!(
                "this image did not work on a listener of ours {refusal}; `path = \"direct\"` tries again, and \
                 forgets that where it works"
            );
        }
        if let Some(suspicion) = self.trial.suspicion() {
            return format!("its last shard did not work on a listener of ours: {}", suspicion.reason);
        }
        "no listen(2) of its program was seen: it uses io_uring, or came up when this agent did not wait for it: before the \
         agent was there, or after its start had taken too long"
            .to_owned()
    }
}
