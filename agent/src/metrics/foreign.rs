//! Whose CPU time: what a slot's PUs did for others than its shard, from readings of the kernel's counters. Pure.
//!
//! `others` is the tasks' time on the slot's PUs, less what its shard and its relay worker used: other processes, kernel
//! threads, and where groups share PUs their shards. Where the kernel counts interrupts or stolen time as the interrupted
//! task's (no CONFIG_IRQ_TIME_ACCOUNTING, no CONFIG_PARAVIRT_TIME_ACCOUNTING), a shard's own time has some of them in it,
//! and `others` is too low by that; it is never too high for that reason.

use std::collections::BTreeMap;

use sherd_topology::{
    model::{CpuId, CpuSet},
    plan::{GroupName, SlotId},
};

use super::cpu_ticks::CpuTicks;

/// A deficit of `others` that is carried on, for each PU: ticks are samples, so that a shard may seem to have used more
/// than there was, and less the next time. More than this is no rounding, and must not hide what others use later.
const CARRIED_SECONDS_PER_CPU: f64 = 0.5;

/// CPU time of a slot's PUs that was not its shard's, in seconds since it was first looked at. No part ever falls.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ForeignTime {
    /// Hardware interrupts.
    pub irq: f64,
    /// Deferred interrupt work, as receiving packets: also the shard's own.
    pub softirq: f64,
    /// Taken by the hypervisor while something wanted to run.
    pub steal: f64,
    /// The slot's relay worker, which works for the shard.
    pub relay: f64,
    /// All other tasks.
    pub others: f64,
}

/// One slot among all.
pub(super) type SlotKey = (GroupName, SlotId);

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reading {
    pub(super) cpus: BTreeMap<CpuId, CpuTicks>,
    pub(super) slots: BTreeMap<SlotKey, SlotReading>,
}

/// A slot at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct SlotReading {
    pub(super) cpus: CpuSet,
    pub(super) shard: Option<Consumer>,
    pub(super) relay: Option<Consumer>,
}

/// Somebody who uses CPU time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Consumer {
    /// Process or thread, and which of those that had this number.
    pub(super) identity: (u32, u64),
    /// Since it began.
    pub(super) cpu_seconds: f64,
}

/// Adds up readings.
#[derive(Debug)]
pub(super) struct Ledger {
    ticks_per_second: f64,
    cpus: BTreeMap<CpuId, CpuTicks>,
    accounts: BTreeMap<SlotKey, Account>,
}

#[derive(Debug, Default)]
struct Account {
    last: SlotReading,
    total: ForeignTime,
    /// What `others` has to gain before it moves on; 0 or more.
    deficit: f64,
}

impl Ledger {
    pub(super) fn new(ticks_per_second: f64) -> Self {
        Self { ticks_per_second, cpus: BTreeMap::new(), accounts: BTreeMap::new() }
    }

    /// Adds what happened since the last reading. A slot that is new, or has moved to other PUs, begins here; one that is
    /// in the reading no more is forgotten.
    pub(super) fn advance(&mut self, reading: Reading) {
        let Reading { cpus, slots } = reading;
        let mut former = std::mem::take(&mut self.accounts);
        for (key, slot) in slots {
            let account = match former.remove(&key) {
                Some(account) if account.last.cpus == slot.cpus => {
                    account.advanced(slot, &self.cpus, &cpus, self.ticks_per_second)
                }
                Some(account) => Account { last: slot, total: account.total, deficit: 0.0 },
                None => Account { last: slot, ..Account::default() },
            };
            self.accounts.insert(key, account);
        }
        self.cpus = cpus;
    }

    pub(super) fn totals(&self) -> BTreeMap<SlotKey, ForeignTime> {
        self.accounts.iter().map(|(key, account)| (key.clone(), account.total)).collect()
    }
}

impl Account {
    fn advanced(
        mut self,
        now: SlotReading,
        before: &BTreeMap<CpuId, CpuTicks>,
        after: &BTreeMap<CpuId, CpuTicks>,
        ticks_per_second: f64,
    ) -> Self {
        let passed = passed(&now.cpus, before, after);
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second;
        self.total.irq += seconds(passed.irq);
        self.total.softirq += seconds(passed.softirq);
        self.total.steal += seconds(passed.steal);
        let relay = used(self.last.relay, now.relay);
        self.total.relay += relay.unwrap_or(0.0);
        // What a shard used between the last look and its end is not known, and must not be taken for others'.
        if let (Some(shard), Some(relay)) = (used(self.last.shard, now.shard), relay) {
            self.add_others(seconds(passed.tasks) - shard - relay, now.cpus.len());
        }
        self.last = now;
        self
    }

    fn add_others(&mut self, seconds: f64, cpus: usize) {
        let settled = seconds - self.deficit;
        self.total.others += settled.max(0.0);
        self.deficit = (-settled).clamp(0.0, CARRIED_SECONDS_PER_CPU * cpus as f64);
    }
}

impl ForeignTime {
    /// Each part with its name in metrics.
    pub fn kinds(&self) -> [(&'static str, f64); 5] {
        let Self { irq, softirq, steal, relay, others } = *self;
        [("irq", irq), ("softirq", softirq), ("steal", steal), ("relay", relay), ("others", others)]
    }
}

/// Ticks of these CPUs. One that is not in both readings was offline at one of them; a counter that jumped back, as some
/// do when their CPU comes back, counts from the next reading on.
fn passed(cpus: &CpuSet, before: &BTreeMap<CpuId, CpuTicks>, after: &BTreeMap<CpuId, CpuTicks>) -> CpuTicks {
    let both = cpus.iter().filter_map(|cpu| Some((before.get(&cpu)?, after.get(&cpu)?)));
    both.fold(CpuTicks::default(), |sum, (before, after)| CpuTicks {
        tasks: sum.tasks.saturating_add(after.tasks.saturating_sub(before.tasks)),
        irq: sum.irq.saturating_add(after.irq.saturating_sub(before.irq)),
        softirq: sum.softirq.saturating_add(after.softirq.saturating_sub(before.softirq)),
        steal: sum.steal.saturating_add(after.steal.saturating_sub(before.steal)),
    })
}

/// What a consumer used between two looks; none if that can't be known, because one ended meanwhile.
fn used(before: Option<Consumer>, after: Option<Consumer>) -> Option<f64> {
    match (before, after) {
        (None, None) => Some(0.0),
        (None, Some(began)) => Some(began.cpu_seconds),
        (Some(before), Some(after)) if before.identity == after.identity => {
            Some((after.cpu_seconds - before.cpu_seconds).max(0.0))
        }
        (Some(_), _) => None,
    }
}

#[cfg(test)]
mod tests;
