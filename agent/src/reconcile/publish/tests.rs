//! Addresses over a change of agents, with a holder and the kernel: what a former one left half done is in nobody's way.

use std::{net::Shutdown, os::unix::net::UnixListener, path::PathBuf, thread::JoinHandle};

use sherd_lb::{holder, sockdiag};
use sherd_testkit::{Need, in_new_netns, needs};
use sherd_topology::{
    discover,
    plan::{MemoryBinding, Slot},
};

use super::*;
use crate::reconcile::keeper::HolderUnit;

const PORT: u16 = 8080;

/// A group of one slot, and a holder on a thread, which ends with the test.
struct Rig {
    spec: GroupSpec,
    host: Host,
    slots: Vec<Slot>,
    directory: tempfile::TempDir,
    listener: UnixListener,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Rig {
    fn start(image: &str) -> Self {
        let text = format!("name = \"web\"\n[container]\nimage = \"{image}\"\n[[ports]]\npublish = \"{PORT}:80\"\n");
        let host = discover::synthetic("package:1 core:2 pu:1").expect("a machine");
        let (cpus, mems) = (host.online().clone(), Default::default());
        let slot = Slot { id: SlotId(0), cpus, mems, memory: MemoryBinding::None, memory_limit_bytes: None };
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(directory.path().join("holder.sock")).expect("a unix socket");
        let served = listener.try_clone().expect("a copy");
        let thread = Some(std::thread::spawn(|| holder::serve(served, holder::Idle::Stay)));
        let spec = GroupSpec::parse("web.toml", &text).expect("a specification");
        Self { spec, host, slots: vec![slot], directory, listener, thread }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("holder.sock")
    }

    /// The next agent: its way to the holder, and what it takes over.
    fn agent(&self) -> (Keeper, Fronts) {
        self.agent_with(0)
    }

    /// The same, to which the former one has handed over so many connections of each slot at each address.
    fn agent_with(&self, handed: u64) -> (Keeper, Fronts) {
        let mut keeper = Keeper::connect(&self.path(), HolderUnit::Systemd).expect("the holder serves");
        keeper.keep_cells(true);
        let kept = keeper.take_prefix("front/web/");
        kept.iter().for_each(|(name, _)| keeper.note_known(name));
        let kept = by_address(kept, &self.spec.name);
        let fronts = Fronts::adopt(&self.spec, &self.host, &self.slots, kept, |_, _| handed, &mut keeper);
        (keeper, fronts)
    }

    /// A program that takes IPv4 only listens.
    fn open_v4(&self, keeper: &mut Keeper, fronts: &mut Fronts) -> Result<SocketAddr, String> {
        let (port, family) = (&self.spec.ports[0], ProgramFamily::V4);
        match fronts.for_family(port, family) {
            Some(address) => Ok(address),
            None => fronts.open_for_family(&self.spec, &self.host, &self.slots, port, family, keeper),
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both).expect("it listens");
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(Ok(())))), "the holder must end without an error");
    }
}

fn alone(test: &'static str, body: impl FnOnce() + Send + 'static) {
    if needs(test, &[Need::Root, Need::Bpf]) {
        in_new_netns(body);
    }
}

fn all(address: &str) -> SocketAddr {
    format!("{address}:{PORT}").parse().expect("an address")
}

/// Who listens, ascending.
fn listening() -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> =
        sockdiag::listeners(PORT).expect("sock_diag").iter().map(|listening| listening.address).collect();
    found.sort();
    found
}

/// An agent that was killed while the holder got `kept` of the front at `of`: the next one has both fronts, one of them
/// when it is asked for.
fn check_half_kept(of: &str, kept: impl Fn(&str) -> bool) {
    let rig = Rig::start("image");
    let (mut keeper, mut fronts) = rig.agent();
    rig.open_v4(&mut keeper, &mut fronts).expect("it is opened beside the other");
    assert_eq!(listening(), [all("0.0.0.0"), all("[::]")]);
    let prefix = prefix(&rig.spec.name, all(of));
    for name in keeper.names() {
        if name.strip_prefix(&prefix).is_some_and(|name| !kept(name)) {
            keeper.remove(&name);
        }
    }
    drop((keeper, fronts));

    let (mut keeper, mut fronts) = rig.agent();
    assert!(fronts.covers(all("[::]")), "{of}");
    let v4 = rig.open_v4(&mut keeper, &mut fronts);
    assert_eq!(v4, Ok(all("0.0.0.0")), "{of}");
    assert_eq!(listening(), [all("0.0.0.0"), all("[::]")], "{of}");
    drop((keeper, fronts));
    // And the next one has them both.
    let (_keeper, fronts) = rig.agent();
    assert_eq!(fronts.addresses().len(), 2, "{of}");
}

#[test]
fn what_was_half_kept_is_in_nobodys_way() {
    alone("what_was_half_kept_is_in_nobodys_way", || {
        for of in ["0.0.0.0", "[::]"] {
            check_half_kept(of, |name| name == "anchor");
            check_half_kept(of, |name| name != "anchor");
        }
    });
}

/// With nobody who asks for it again, its IPv4 connections are those of the front for both.
#[test]
fn half_of_a_front_for_ipv4_does_not_listen_on() {
    alone("half_of_a_front_for_ipv4_does_not_listen_on", || {
        let rig = Rig::start("image");
        let (mut keeper, mut fronts) = rig.agent();
        rig.open_v4(&mut keeper, &mut fronts).expect("it is opened beside the other");
        keeper.remove(&format!("{}program", prefix(&rig.spec.name, all("0.0.0.0"))));
        drop((keeper, fronts));
        let (_keeper, fronts) = rig.agent();
        assert_eq!((fronts.addresses(), listening()), (vec![all("[::]")], vec![all("[::]")]));
    });
}

/// Whenever an agent is killed that gives the holder a front, that has the anchor only with all that it needs.
#[test]
fn the_anchor_is_kept_last() {
    alone("the_anchor_is_kept_last", || {
        let rig = Rig::start("image");
        let (_keeper, fronts) = rig.agent();
        let names: Vec<String> = fronts.descriptors().into_iter().map(|(name, _)| name).collect();
        assert!(names.len() > 2 && names[names.len() - 1].ends_with("/anchor"), "{names:?}");
    });
}

/// What an agent relayed when it was killed is no load of its slot, at any address.
#[test]
fn what_a_former_agent_relayed_is_no_load() {
    alone("what_a_former_agent_relayed_is_no_load", || {
        let mut rig = Rig::start("image");
        let (mut keeper, mut fronts) = rig.agent();
        rig.open_v4(&mut keeper, &mut fronts).expect("it is opened beside the other");
        let slot = index_of(SlotId(0));
        let counts = |fronts: &Fronts| -> Vec<u64> {
            fronts.bound().map(|front| front.cells().expect("they are counted").counts(slot).open()).collect()
        };
        for front in fronts.bound() {
            let account = front.cells().expect("they are counted").account(slot);
            // As a killed agent leaves it.
            (0..3).for_each(|_| std::mem::forget(account.open()));
        }
        assert_eq!(counts(&fronts), [3, 3]);
        drop((keeper, fronts));
        let (mut keeper, fronts) = rig.agent_with(1);
        assert_eq!(counts(&fronts), [1, 1]);
        // And where the specification has an address no longer.
        keeper.put("leaving/web/[::]:8080/80", fronts.list[0].front.as_ref().expect("it is bound").anchor());
        drop((keeper, fronts));
        rig.spec.ports.clear();
        let (_keeper, fronts) = rig.agent();
        assert!(fronts.list[0].leaving);
        assert_eq!(counts(&fronts), [0]);
    });
}

/// A specification's table may be as long as there was memory for when the address was bound.
#[test]
fn a_longer_table_than_there_is_memory_for_is_refused() {
    alone("a_longer_table_than_there_is_memory_for_is_refused", || {
        let rig = Rig::start("image");
        let (keeper, fronts) = rig.agent();
        let max = fronts.list[0].front.as_ref().expect("it is bound").max_table_len();
        let longer = |len: u32| {
            let mut spec = rig.spec.clone();
            spec.ports[0].table_len = Some(len);
            spec
        };
        let refused = fronts.open_new(&longer(max + 1), &rig.host, &rig.slots, &keeper).map(|opened| opened.len());
        let expected = format!("table_len = {}: [::]:8080 was opened for a table of at most {max} entries", max + 1);
        assert!(
            matches!(&refused, Err(ApplyError::Refused { reason, .. }) if reason.contains(&expected)),
            "{refused:?}"
        );
        assert!(fronts.open_new(&longer(max), &rig.host, &rig.slots, &keeper).is_ok_and(|opened| opened.is_empty()));
    });
}
