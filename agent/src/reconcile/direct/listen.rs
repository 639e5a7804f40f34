//! A program of a shard calls listen(2): what becomes of it. The broker's thread asks and waits; the loop decides.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::Duration,
};

use sherd_lb::graft::{Holder, Listener, Report, State, Trapped, Verdict};
use tokio::sync::mpsc;

use super::{Generation, held::original_name};
use crate::{
    fault,
    reconcile::{
        Reconciler,
        hung::holder_of,
        message::Message,
        publish::{ProgramFamily, place_of},
        world,
    },
    runtime::ShardKey,
    spec::{ContainerPort, PortSpec},
};

/// How long the loop may take. The program waits; without an answer it listens where it would have.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Debug)]
pub(in crate::reconcile) struct ListenCall {
    pub(super) address: SocketAddr,
    pub(super) v6only: bool,
    pub(super) cookie: u64,
    pub(super) reply: SyncSender<Verdict>,
}

/// A listener of a shard that another program of it is to get too.
#[derive(Debug, Clone, Copy)]
pub(in crate::reconcile) struct SharedListener {
    /// The published address.
    pub(super) address: SocketAddr,
    /// Its SO_COOKIE.
    pub(super) cookie: u64,
}

/// A listener that is to listen and to enter the slot's steering.
#[derive(Debug)]
pub(in crate::reconcile) struct ListenerJoin {
    /// The published address.
    pub(super) address: SocketAddr,
    pub(super) socket: OwnedFd,
    /// The program's own socket, in whose place it comes.
    pub(super) original: OwnedFd,
    pub(super) backlog: i32,
    pub(super) reply: SyncSender<Result<(), String>>,
}

/// Asks the loop, on the broker's thread.
pub(super) fn ask(
    outbox: &mpsc::UnboundedSender<Message>,
    key: &ShardKey,
    generation: Generation,
    trapped: &Trapped,
) -> Verdict {
    fault::point("listen.called");
    if trapped.is_here() {
        // A container's sockets are in its own namespace, but for what we gave it. A listener may be told so twice;
        // what was accepted from it, and disconnected, must not become one, however busy the loop is.
        return if trapped.state() == State::Listening { Verdict::Ours } else { Verdict::Refuse };
    }
    if matches!(trapped.state(), State::Unbound | State::Connected) {
        return Verdict::Leave;
    }
    let (reply, answer) = sync_channel(1);
    let call = ListenCall { address: trapped.address(), v6only: trapped.is_v6only(), cookie: trapped.cookie(), reply };
    if outbox.send(Message::ListenCalled { key: key.clone(), generation, call }).is_err() {
        return Verdict::Leave;
    }
    verdict_within(DECISION_TIMEOUT, &answer, |reason| {
        let report = Report::NotGrafted { address: trapped.address(), reason };
        // The loop ends: nobody asks for the reason any more.
        let _ = outbox.send(Message::Grafted { key: key.clone(), generation, report });
    })
}

/// Without an answer the program listens where it would have, and is relayed for as long as it runs: so it is said why.
fn verdict_within(bound: Duration, answer: &Receiver<Verdict>, give_up: impl FnOnce(String)) -> Verdict {
    answer.recv_timeout(bound).unwrap_or_else(|error| {
        // Else the agent ends, and the next one decides.
        if error == RecvTimeoutError::Timeout {
            give_up(format!("the agent did not answer within {bound:?}"));
        }
        Verdict::Leave
    })
}

/// What the loop can say of a call.
enum Decision {
    Now(Verdict),
    /// A listener for this published address takes the place of the program's socket, once it is made.
    Graft(SocketAddr),
    /// The shard of this process has a listener there, and not where it was put.
    Look(u32, SharedListener),
}

impl Reconciler {
    pub(in crate::reconcile) fn on_listen(&mut self, key: &ShardKey, generation: Generation, call: ListenCall) {
        let verdict = match self.decide_listen(key, generation, &call) {
            Ok(Decision::Now(verdict)) => verdict,
            Ok(Decision::Graft(address)) => return self.order_listener(key, generation, address, call),
            Ok(Decision::Look(pid, shared)) => return self.look_for_holder(key, generation, pid, shared, call),
            Err(reason) => {
                let report = Report::NotGrafted { address: call.address, reason };
                self.on_graft_report(key, generation, report);
                Verdict::Leave
            }
        };
        // The broker has given up waiting: then the program listens where it would have.
        let _ = call.reply.send(verdict);
    }

    fn decide_listen(&mut self, key: &ShardKey, generation: Generation, call: &ListenCall) -> Result<Decision, String> {
        let leave = Ok(Decision::Now(Verdict::Leave));
        let Some(group) = self.groups.get_mut(&key.group) else { return leave };
        let container = ContainerPort(call.address.port());
        let Some(port) = group.spec.ports.iter().find(|port| port.container == container).cloned() else {
            return leave;
        };
        let direct = group.slots.get(&key.slot).and_then(|slot| slot.directs.get(&generation));
        let Some(direct) = direct else { return leave };
        let has_graft = direct.grafts.iter().any(|graft| graft.container == container);
        let family = ProgramFamily::of(call.address, call.v6only);
        if call.address.ip().is_loopback() && !port.loopback {
            return Err("it listens on loopback only".to_owned());
        }
        let address = self.front_for(key, &port, family)?;
        let Some(front) = self.groups.get(&key.group).and_then(|group| group.fronts.front_at(address)) else {
            return Err(format!("{address} is not published"));
        };
        let index = super::super::steering_table::index_of(key.slot);
        let present = front.direct_cookie(index, place_of(front, generation));
        if present == Some(call.cookie) {
            return Ok(Decision::Now(Verdict::Ours));
        }
        // Another listener would take this one's place in the slot, while its process goes on waiting for connections.
        let Some(cookie) = present.filter(|_| has_graft) else { return Ok(Decision::Graft(address)) };
        let slot = self.slot_mut(&key.group, key.slot).ok_or("no such slot")?;
        let (known, pid) = (slot.known_holder(cookie), slot.pid_of(generation));
        if let Some(listener) = known.and_then(|known| self.share(key, generation, container, known)) {
            return Ok(Decision::Now(Verdict::Share(listener)));
        }
        Ok(pid.map_or(Decision::Graft(address), |pid| Decision::Look(pid, SharedListener { address, cookie })))
    }

    /// The shard's listener, from this process of it, which is the way to it from now on.
    fn share(
        &mut self,
        key: &ShardKey,
        generation: Generation,
        container: ContainerPort,
        holder: Holder,
    ) -> Option<OwnedFd> {
        let slot = self.slot_mut(&key.group, key.slot)?;
        let graft = slot.directs.get_mut(&generation)?.grafts.iter_mut().find(|graft| graft.container == container)?;
        graft.holder = Some(holder);
        holder.listener()
    }

    /// Looks at the processes of the shard, off the loop: a hostile one makes that last a second. Its broker has one call at a
    /// time, so there is one look for each shard.
    fn look_for_holder(
        &self,
        key: &ShardKey,
        generation: Generation,
        pid: u32,
        shared: SharedListener,
        call: ListenCall,
    ) {
        let (outbox, key) = (self.outbox.clone(), key.clone());
        world::blocking(move || {
            let found = holder_of(pid, shared.address, shared.cookie);
            // The loop has ended: the program listens where it would have.
            let _ = outbox.send(Message::HolderFound { key, generation, shared, found, call });
        });
    }

    pub(in crate::reconcile) fn on_holder_found(
        &mut self,
        key: &ShardKey,
        generation: Generation,
        shared: SharedListener,
        found: Option<Holder>,
        call: ListenCall,
    ) {
        let front = self.groups.get(&key.group).and_then(|group| group.fronts.front_at(shared.address));
        let index = super::super::steering_table::index_of(key.slot);
        let present = front.and_then(|front| front.direct_cookie(index, place_of(front, generation)));
        let found = found.filter(|found| present == Some(shared.cookie) && found.is_of(shared.cookie));
        let container = ContainerPort(call.address.port());
        match found.and_then(|found| self.share(key, generation, container, found)) {
            // The broker has given up waiting: then the program listens where it would have.
            Some(listener) => drop(call.reply.send(Verdict::Share(listener))),
            None => self.order_listener(key, generation, shared.address, call),
        }
    }

    /// Has a listener made, off the loop; the broker waits for it.
    fn order_listener(&mut self, key: &ShardKey, generation: Generation, published: SocketAddr, call: ListenCall) {
        let group = self.groups.get(&key.group);
        let Some(front) = group.and_then(|group| group.fronts.front_at(published)) else {
            let report =
                Report::NotGrafted { address: call.address, reason: format!("{published} is no longer published") };
            self.on_graft_report(key, generation, report);
            return drop(call.reply.send(Verdict::Leave));
        };
        let (bind, v6only) = (front.address(), front.is_v6only());
        let cell = front.cells().and_then(|cells| cells.number(super::super::steering_table::index_of(key.slot)));
        let (outbox, key) = (self.outbox.clone(), key.clone());
        let take = move |made: Result<OwnedFd, String>| {
            let ListenCall { address, reply, .. } = call;
            let made = made.and_then(|socket| graft(&outbox, &key, generation, published, socket));
            let verdict = made.unwrap_or_else(|reason| {
                let report = Report::NotGrafted { address, reason };
                // The loop ends: nobody asks for the reason any more.
                let _ = outbox.send(Message::Grafted { key, generation, report });
                Verdict::Leave
            });
            let _ = reply.send(verdict);
        };
        self.means.listener((bind, v6only), cell, Box::new(take));
    }

    /// The front that the program's socket fits; one for IPv4 is opened where the program takes nothing else.
    fn front_for(&mut self, key: &ShardKey, port: &PortSpec, family: ProgramFamily) -> Result<SocketAddr, String> {
        let (host, keeper) = (&self.host, &mut self.keeper);
        let group = self.groups.get_mut(&key.group).ok_or("no such group")?;
        let (slots, spec) = (group.planned().to_vec(), std::sync::Arc::clone(&group.spec));
        if let Some(address) = group.fronts.for_family(port, family) {
            return Ok(address);
        }
        let opened = group.fronts.open_for_family(&spec, host, &slots, port, family, keeper)?;
        group.equip_new_fronts(keeper);
        Ok(opened)
    }

    pub(in crate::reconcile) fn on_listener_joins(
        &mut self,
        key: &ShardKey,
        generation: Generation,
        join: &ListenerJoin,
    ) {
        // The next agent can't get it from the program any more once the listener is in its place.
        self.keeper.put(&original_name(key, generation), join.original.as_fd());
        let group = self.groups.get_mut(&key.group);
        let joined = match group.and_then(|group| group.fronts.front_at_mut(join.address)) {
            Some(front) => {
                let index = super::super::steering_table::index_of(key.slot);
                let place = place_of(front, generation);
                let joined = front.join_direct(index, place, join.socket.as_fd(), join.backlog);
                fault::point("graft.joined");
                joined.map_err(|error| crate::reconcile::chain(&error))
            }
            None => Err(format!("{} is no longer published", join.address)),
        };
        // The broker has given up waiting; the listener ends with its last descriptor.
        let _ = join.reply.send(joined);
    }
}

/// The listener joins its group when the broker has set the program's options on it.
fn graft(
    outbox: &mpsc::UnboundedSender<Message>,
    key: &ShardKey,
    generation: Generation,
    address: SocketAddr,
    socket: OwnedFd,
) -> Result<Verdict, String> {
    let copy = socket.try_clone().map_err(|error| error.to_string())?;
    let (outbox, key) = (outbox.clone(), key.clone());
    let listen = move |backlog, original: BorrowedFd<'_>| {
        let (reply, answer) = sync_channel(1);
        let original = original.try_clone_to_owned().map_err(|error| error.to_string())?;
        let join = ListenerJoin { address, socket: copy, original, backlog, reply };
        outbox.send(Message::ListenerJoins { key, generation, join }).map_err(|_| "the agent ends".to_owned())?;
        answer.recv_timeout(DECISION_TIMEOUT).unwrap_or_else(|_| Err("the agent does not answer".to_owned()))
    };
    Ok(Verdict::Graft(Listener { socket, listen: Box::new(listen) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_an_answer_says_so() {
        let check = |sender: Option<SyncSender<Verdict>>, answer: &Receiver<Verdict>, expected: Option<&str>| {
            let mut said = None;
            let verdict = verdict_within(Duration::from_millis(20), answer, |reason| said = Some(reason));
            assert!(matches!(verdict, Verdict::Leave), "{verdict:?}");
            assert_eq!(said.as_deref(), expected);
            drop(sender);
        };
        let (reply, answer) = sync_channel(1);
        check(Some(reply.clone()), &answer, Some("the agent did not answer within 20ms"));
        reply.send(Verdict::Leave).expect("it waits");
        check(Some(reply), &answer, None);
        check(None, &answer, None);
    }
}
