//! Relayed connections are counted where steering sees what a slot has to do.

use std::{net::Ipv4Addr, sync::Arc};

use sherd_lb::{
    cells::Cells,
    front::{Front, FrontConfig},
    relay::Limits,
    table::{Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::rig::{PORT, SOON, ask, connect, named, worker};

#[test]
fn a_relayed_connection_is_load_until_it_ends() {
    if !needs("a_relayed_connection_is_load_until_it_ends", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let slot = SlotIndex(3);
        let cells = Some(Cells::create().unwrap());
        let config = FrontConfig { cells, ..FrontConfig::new((Ipv4Addr::LOCALHOST, 0).into()) };
        let mut front = Front::open(&config, &SteeringTable::flat(Policy::Connection, [slot])).unwrap();
        front.add_slot(slot).unwrap();
        front.set_in(slot, true).unwrap();
        let counted = Arc::clone(front.cells().unwrap());
        let worker = worker(3, Limits::default());
        let listener = front.listener(slot).unwrap().try_clone_to_owned().unwrap();
        // Nobody accepts yet: it is on its way.
        let early = connect(front.address());
        assert_eq!((counted.load(slot).load, counted.counts(slot).pending()), (1, 1));
        worker.serve_slot(PORT, listener, Some(counted.account(slot))).recv().unwrap().unwrap();
        let backend = sherd_lb::relay::Backend { netns: None, ports: vec![(PORT, named("it").into())] };
        worker.set_backend(Some(backend)).recv().unwrap().unwrap();
        assert_eq!(ask(&early).unwrap(), "it");
        assert_eq!((counted.counts(slot).open(), counted.counts(slot).pending(), counted.load(slot).load), (1, 0, 1));
        drop(early);
        eventually("it has ended", SOON, || (counted.counts(slot).open() == 0).then_some(()));
        let kept = connect(front.address());
        assert_eq!(ask(&kept).unwrap(), "it");
        // What an agent relayed when it was killed is closed by the next.
        counted.forget_relayed(|_| 0);
        assert_eq!((counted.counts(slot).open(), counted.load(slot).load), (0, 0));
        // One that was handed over stays, also where an agent between has taken it off.
        counted.forget_relayed(|_| 1);
        assert_eq!((counted.counts(slot).open(), counted.load(slot).load), (1, 1));
        counted.forget_relayed(|_| 1);
        assert_eq!((counted.counts(slot).open(), counted.load(slot).load), (1, 1));
    });
}
