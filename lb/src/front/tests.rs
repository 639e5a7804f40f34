//! Addresses that an older version has opened: their arrays of sockets are smaller, and stay so for good.

use std::{
    io::ErrorKind,
    net::{TcpListener, TcpStream},
};

use sherd_testkit::{Need, in_new_netns, needs};

use super::{
    ebpf::Ebpf,
    maps::{NAMES, Shape},
    places::Places,
    *,
};
use crate::{
    sys::shared_map::SharedMap,
    table::{Policy, Seed},
};

const SLOT: SlotIndex = SlotIndex(0);
const MAX_SLOTS: u16 = 4;

fn table() -> SteeringTable {
    SteeringTable::flat(Policy::Connection, [SLOT])
}

/// An address whose array has so many entries, with one slot in service.
fn opened_by_older(entries: u32) -> Front {
    let config = FrontConfig { max_slots: MAX_SLOTS, ..FrontConfig::new(([127, 0, 0, 1], 0).into()) };
    let mut front = Front::open(&config, &table()).expect("a free port");
    // A socket fits one array only.
    let after_all_slots = SlotIndex(MAX_SLOTS);
    front.steering.ebpf().expect("bpf is permitted").leave(after_all_slots).expect("there the anchor is");
    let shape = Shape::new(MAX_SLOTS, table().table_len).expect("sysfs");
    let shape = Shape { places: Places::of(u32::from(MAX_SLOTS), entries).expect("it has room"), ..shape };
    let older = Ebpf::load_shape(shape, &table(), Seed([1, 2]), None).expect("bpf is permitted");
    older.attach(front.anchor.as_fd()).expect("it is a reuseport group");
    older.enter(None, front.anchor.as_fd()).expect("it is in no other array");
    front.steering = Steering::Ebpf(older);
    front.add_slot(SLOT).expect("the address is ours");
    front.set_in(SLOT, true).expect("it has a listener");
    front
}

fn copies(front: &Front) -> Vec<(String, OwnedFd)> {
    let copy = |(name, fd): (String, BorrowedFd<'_>)| (name, fd.try_clone_to_owned().expect("a copy"));
    front.descriptors().into_iter().map(copy).collect()
}

/// As an agent of that version would have written it.
fn set_version(front: &Front, version: u32) {
    const AT: usize = 4;
    let (_, state) = front.steering.descriptors()[0];
    SharedMap::new(state, AT + size_of::<u32>()).expect("it can be mapped").store_u32(AT, version);
}

fn shards_listener(front: &Front) -> TcpListener {
    TcpListener::from(listener::bind(front.address, true).expect("our own address"))
}

fn check_has(front: &mut Front, places: &[Place]) {
    assert_eq!(front.places(), places);
    for place in Place::ALL {
        let is_there = places.contains(&place);
        let listener = shards_listener(front);
        let joined = front.join_direct(SLOT, place, listener.as_fd(), 16);
        assert_eq!(joined.is_ok(), is_there, "{joined:?}");
        assert_eq!(front.force(SLOT, place).map_err(|error| error.kind()).is_ok(), is_there);
        if is_there {
            let set = front.set_path(SLOT, Path::Direct(place));
            assert!(set.is_ok() && front.direct_cookie(SLOT, place).is_some(), "{set:?}");
            let client = TcpStream::connect(front.address).expect("it listens");
            let (_, accepted) = listener.accept().expect("it came here");
            assert_eq!(accepted, client.local_addr().expect("connected"));
            continue;
        }
        assert!(matches!(joined, Err(SlotError::NoPlace { slot: SLOT, .. })), "{joined:?}");
        // It doesn't listen, so no connection waits where nobody is steered.
        assert_eq!(listener.accept().expect_err("not listening").kind(), ErrorKind::InvalidInput);
        for refused in [front.set_path(SLOT, Path::Direct(place)), front.move_queue(SLOT, place, listener.as_fd(), 16)]
        {
            assert!(matches!(refused, Err(SlotError::NoPlace { slot: SLOT, .. })), "{refused:?}");
        }
        assert_eq!(front.direct_cookie(SLOT, place), None);
        front.leave_direct(SLOT, place).expect("nothing is there");
    }
}

/// Taken over by this version, and by this version again, the array has what it had.
fn check_taken_over(entries: u32, places: &'static [Place]) {
    in_new_netns(move || {
        let mut front = opened_by_older(entries);
        check_has(&mut front, places);
        for version in [3, 4] {
            let fds = copies(&front);
            set_version(&front, version);
            let config = FrontConfig::new(front.address);
            drop(front);
            front = Front::adopt(fds, &config, &table()).expect("any array with a place for each slot will do");
            assert!(front.is_in(SLOT) && front.max_slots() == MAX_SLOTS);
            check_has(&mut front, places);
        }
    });
}

#[test]
fn an_older_array_has_one_place_for_good() {
    if needs("an_older_array_has_one_place_for_good", &[Need::Root, Need::Bpf]) {
        check_taken_over(5, &[]);
        check_taken_over(9, &[Place::A]);
        check_taken_over(13, &Place::ALL);
        check_taken_over(17, &Place::ALL);
    }
}

#[test]
fn an_array_without_room_for_the_slots_is_not_taken_over() {
    if !needs("an_array_without_room_for_the_slots_is_not_taken_over", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let front = opened_by_older(9);
        let one = FrontConfig { max_slots: 1, ..FrontConfig::new(([127, 0, 0, 1], 0).into()) };
        let one = Front::open(&one, &SteeringTable::empty(Policy::Connection)).expect("a free port");
        let is_array = |(name, _): &(String, OwnedFd)| name == NAMES[3];
        for version in [4, 3] {
            set_version(&front, version);
            let small = copies(&one).into_iter().find(is_array);
            let fds = copies(&front).into_iter().filter(|fd| !is_array(fd)).chain(small).collect();
            let adopted = Front::adopt(fds, &FrontConfig::new(front.address), &table());
            let expected = match version {
                4 => matches!(adopted, Err(AdoptError::OtherMake { name: "sockets", .. })),
                _ => matches!(adopted, Err(AdoptError::Succeed { version: 3, .. })),
            };
            assert!(expected, "version {version}: {adopted:?}");
        }
    });
}

/// Listeners in shards' hands count where they did when they were made, whichever version steers.
#[test]
fn another_version_counts_in_the_same_cells() {
    if !needs("another_version_counts_in_the_same_cells", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let cells = Cells::create().expect("bpf is permitted");
        let config = |cells: &Arc<Cells>| FrontConfig {
            max_slots: MAX_SLOTS,
            cells: Some(Arc::clone(cells)),
            ..FrontConfig::new(([127, 0, 0, 1], 0).into())
        };
        // It isn't the array's first one.
        let first = cells.take(MAX_SLOTS.into()).expect("it can be mapped").expect("there is room");
        let front = Front::open(&config(&cells), &table()).expect("a free port");
        let number = front.cells().expect("there is room").number(SLOT);
        // Forgotten, as by an agent that is killed.
        std::mem::forget(front.cells().expect("there is room").account(SLOT).open());
        set_version(&front, 3);
        let fds = copies(&front);
        drop((front, first));

        let cells =
            Cells::adopt(cells.descriptor().try_clone_to_owned().expect("a copy")).expect("it is an array of ours");
        let (_, state) = fds.iter().find(|(name, _)| name == Front::STATE).expect("it is there");
        Front::reserve_cells(&cells, state.as_fd());
        let others: Vec<_> = (0..3).map(|_| cells.take(MAX_SLOTS.into()).expect("it can be mapped")).collect();
        assert!(others.iter().flatten().all(|other| other.number(SLOT) != number), "{others:?}");
        let front = Front::adopt(fds, &config(&cells), &table()).expect("another version's");
        let counted = front.cells().expect("it had room");
        assert_eq!((counted.number(SLOT), counted.counts(SLOT).open()), (number, 1));
        drop((front, others));

        // Of another array nothing can be kept.
        let front = Front::open(&config(&cells), &table()).expect("a free port");
        std::mem::forget(front.cells().expect("there is room").account(SLOT).open());
        let fds = copies(&front);
        drop(front);
        let others = Cells::create().expect("bpf is permitted");
        let front = Front::adopt(fds, &config(&others), &table()).expect("another array's");
        assert_eq!(front.cells().expect("there is room").counts(SLOT).open(), 0);
    });
}
