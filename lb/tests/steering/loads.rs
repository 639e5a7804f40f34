//! What slots have to do decides too: the kernel goes by it as the model says, and the fullest slot stays near the mean.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use sherd_lb::{
    cells::{Cells, OpenConnection, SlotCells},
    front::{Front, FrontConfig},
    table::{Choice, Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::{Need, in_new_netns, needs};
use socket2::{Domain, Socket, Type};

use super::traffic::{Listeners, client_address, connect, connections_of_a_check, flow, table};

/// A published address with all of the table's slots in service, what they do, and who waits to be accepted.
struct Loaded {
    front: Front,
    table: SteeringTable,
    listeners: Listeners,
    /// Client and server of every connection, with its account.
    open: Vec<(TcpStream, TcpStream, SlotIndex, OpenConnection)>,
    connected: usize,
}

impl Loaded {
    fn new(table: SteeringTable) -> Self {
        let cells = Some(Cells::create().expect("bpf is permitted"));
        let config = FrontConfig { cells, max_slots: 256, ..FrontConfig::new(([127, 0, 0, 1], 0).into()) };
        let mut front = Front::open(&config, &table).expect("a free port");
        for slot in &table.slots {
            front.add_slot(slot.index).expect("the address is ours");
            front.set_in(slot.index, true).expect("it has a listener");
        }
        let listeners = Listeners::of(&front);
        Self { front, table, listeners, open: Vec::new(), connected: 0 }
    }

    fn cells(&self) -> &std::sync::Arc<SlotCells> {
        self.front.cells().expect("it has some")
    }

    /// Connects once, and holds the kernel to what the model says of this moment.
    fn connect(&mut self) -> SlotIndex {
        let explanation = self.front.explain(&self.table);
        let client = connect(self.connected, self.front.address()).expect("it is published");
        self.connected += 1;
        let flow = flow(&client);
        let (choice, server) = self.listeners.accept(1).remove(&flow.client).expect("it is the only one");
        assert_eq!(choice, explanation.choose(&flow, 0), "{flow:?}");
        let Choice::Slot(slot) = choice else { panic!("{choice:?}") };
        self.open.push((client, server, slot, self.cells().account(slot).open()));
        slot
    }

    /// Connects to all at once: nobody is accepted before the last SYN is sent.
    fn burst(&mut self, count: usize) {
        let address = self.front.address();
        let clients: Vec<Socket> = (0..count)
            .map(|n| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                socket.bind(&client_address(false, n).into()).expect("it is loopback");
                socket.set_nonblocking(true).expect("a flag");
                let begun = socket.connect(&address.into());
                assert!(begun.is_ok() || begun.is_err_and(|error| error.raw_os_error() == Some(libc::EINPROGRESS)));
                socket
            })
            .collect();
        let mut accepted = self.listeners.accept(count);
        for client in clients {
            let own = client.local_addr().expect("bound").as_socket().expect("of TCP");
            let (Choice::Slot(slot), server) = accepted.remove(&own).expect("it is there") else { panic!("no slot") };
            let _ = client.set_linger(Some(Duration::ZERO));
            self.open.push((client.into(), server, slot, self.cells().account(slot).open()));
        }
    }

    fn loads(&self) -> Vec<u64> {
        self.table.slots.iter().map(|slot| self.cells().load(slot.index).load).collect()
    }

    /// What the fullest has above the mean.
    fn excess(&self) -> f64 {
        let loads = self.loads();
        let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
        loads.into_iter().max().expect("there are slots") as f64 - mean
    }
}

fn alone(test: &str, body: impl FnOnce() + Send + 'static) {
    if needs(test, &[Need::Root, Need::Bpf]) {
        in_new_netns(body);
    }
}

#[test]
fn a_slot_over_its_bound_passes_connections_on() {
    alone("a_slot_over_its_bound_passes_connections_on", || {
        let mut loaded = Loaded::new(table(Policy::Connection, &[1, 2, 1, 1, 0, 3]));
        let before: Vec<SlotIndex> = (0..60).map(|_| loaded.connect()).collect();
        assert_eq!(loaded.front.totals().deflected, 0, "without bounds nothing is deflected");
        // One has work that no connection shows, another simply many connections.
        loaded.cells().set_pressure(SlotIndex(1), 1000);
        for slot in 0..6 {
            loaded.cells().set_bound(SlotIndex(slot), 8);
        }
        let count = connections_of_a_check();
        let after: Vec<SlotIndex> = (0..count).map(|_| loaded.connect()).collect();
        let share =
            |slots: &[SlotIndex], of| slots.iter().filter(|slot| **slot == of).count() as f64 / slots.len() as f64;
        assert!(share(&after, SlotIndex(1)) < share(&before, SlotIndex(1)) / 2.0, "{before:?} {after:?}");
        // Its second choice may be itself: it is not out.
        assert!(share(&after, SlotIndex(1)) > 0.0 && !after.contains(&SlotIndex(4)));
        let totals = loaded.front.totals();
        assert!(totals.deflected > 0 && totals.failovers == 0, "{totals:?}");
    });
}

#[test]
fn strict_policies_are_not_deflected() {
    alone("strict_policies_are_not_deflected", || {
        for policy in [Policy::Client, Policy::Local] {
            let mut loaded = Loaded::new(SteeringTable::flat(policy, (0..4).map(SlotIndex)));
            (0..4).for_each(|slot| loaded.cells().set_bound(SlotIndex(slot), 1));
            loaded.burst(100);
            assert_eq!(loaded.front.totals().deflected, 0, "{policy}");
        }
    });
}

#[test]
fn balanced_goes_where_the_model_says() {
    alone("balanced_goes_where_the_model_says", || {
        let mut loaded = Loaded::new(table(Policy::Balanced, &[3, 1, 2, 1, 0, 1, 1, 1]));
        for n in 0..connections_of_a_check() {
            loaded.connect();
            // Slots go out, come back, and lose connections meanwhile.
            if n % 10 == 0 {
                loaded.front.set_in(SlotIndex(n as u16 / 10 % 4), n % 20 == 0).expect("it has a listener");
            }
            if n % 3 == 0 {
                loaded.open.swap_remove(n * 7 % loaded.open.len());
            }
        }
        let open = loaded.open.len() as u64;
        assert_eq!(loaded.loads().iter().sum::<u64>(), open, "every one is on some cell");
    });
}

#[test]
fn balanced_keeps_the_fullest_near_the_mean() {
    alone("balanced_keeps_the_fullest_near_the_mean", || {
        for slots in [2, 4, 16, 64] {
            let mut loaded = Loaded::new(SteeringTable::flat(Policy::Balanced, (0..slots).map(SlotIndex)));
            loaded.burst(16 * usize::from(slots));
            assert!(loaded.excess() <= 2.0, "after a burst {slots} slots have {:?}", loaded.loads());
            // Half of them end, by no order, and as many come, thrice.
            for round in 1..=3 {
                for n in 0..8 * usize::from(slots) {
                    loaded.open.swap_remove(n * 7919 * round % loaded.open.len());
                }
                loaded.burst(8 * usize::from(slots));
                assert!(loaded.excess() <= 2.0, "{slots} slots have {:?} in round {round}", loaded.loads());
            }
        }
    });
}

#[test]
fn what_is_never_established_is_taken_off() {
    alone("what_is_never_established_is_taken_off", || {
        let loaded = Loaded::new(SteeringTable::flat(Policy::Balanced, (0..1).map(SlotIndex)));
        let (slot, cells) = (SlotIndex(0), std::sync::Arc::clone(loaded.cells()));
        let clients: Vec<SocketAddr> =
            (0..5).map(|n| connect(n, loaded.front.address()).expect("it listens")).map(|c| flow(&c).client).collect();
        // Reset by their clients before anybody accepted them; their listener takes them out of its queue by and by.
        assert_eq!((clients.len(), cells.counts(slot).pending(), cells.load(slot).load), (5, 5, 5));
        cells.add_lost(slot, 5);
        assert_eq!((cells.counts(slot).pending(), cells.load(slot).load), (0, 0));
        cells.add_lost(slot, -1);
        assert_eq!((cells.counts(slot).pending(), cells.load(slot).load), (1, 1));
    });
}

#[test]
fn addresses_have_cells_of_their_own() {
    alone("addresses_have_cells_of_their_own", || {
        let cells = Cells::create().expect("bpf is permitted");
        let table = SteeringTable::flat(Policy::Connection, (0..1).map(SlotIndex));
        let open = |max_slots| {
            let config = FrontConfig {
                cells: Some(std::sync::Arc::clone(&cells)),
                max_slots,
                ..FrontConfig::new(([127, 0, 0, 1], 0).into())
            };
            Front::open(&config, &table).expect("a free port")
        };
        let mut fronts: Vec<Front> = (0..7).map(|_| open(1024)).collect();
        let numbers: Vec<_> =
            fronts.iter().map(|front| front.cells().expect("there is room").number(SlotIndex(1023))).collect();
        let mut distinct = numbers.clone();
        distinct.dedup();
        assert_eq!(numbers, distinct);
        assert!(open(1024).cells().is_none(), "8,192 cells less the common ones");
        // It steers nevertheless, and who goes makes room.
        assert!(open(64).cells().is_some());
        drop(fronts.remove(3));
        assert_eq!(open(1024).cells().expect("there is room").number(SlotIndex(1023)), numbers[3]);
    });
}
