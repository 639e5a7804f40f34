//! Takes a published address over from the descriptors that the holder kept.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use socket2::{SockRef, Type};

use super::{
    AdoptError, Front, FrontConfig, ListenerState, SlotListener, Unready,
    classic::{self, Classic},
    ebpf::{self, Ebpf},
    maps::{self, Inheritance},
    steering::Steering,
};
use crate::{
    cells::Cells,
    sockdiag,
    table::{SlotIndex, SteeringTable},
};

/// Names of descriptors, beside those of the steering maps.
pub(super) const ANCHOR: &str = "anchor";
pub(super) const SLOT_PREFIX: &str = "slot.";

impl Front {
    /// Goes on with what `descriptors` of an earlier process gave: with its table, what is in service, its counters and
    /// all connections that wait. `max_slots` stays what it was. Classic steering needs `set_table` before any change.
    ///
    /// Where another version of sherd steered, or with other cells, this one's program takes the place of that one's, at
    /// once for the next SYN, with `table` and new counters: its descriptors are new ones for the holder.
    ///
    /// # Errors
    /// When a descriptor is missing, dead, or of something else than this address.
    pub fn adopt(fds: Vec<(String, OwnedFd)>, config: &FrontConfig, table: &SteeringTable) -> Result<Self, AdoptError> {
        let mut fds: BTreeMap<_, _> = fds.into_iter().collect();
        let anchor = take(&mut fds, ANCHOR)?;
        let address = check_listener(ANCHOR, anchor.as_fd(), config)?;
        if !is_listening(ANCHOR, anchor.as_fd())? {
            return Err(AdoptError::NotListening { name: ANCHOR.into() });
        }
        let config = FrontConfig { address, ..config.clone() };
        let steering = take_steering(&mut fds, anchor.as_fd(), &config, table)?;
        let slots = take_slots(fds, &config)?;
        let steering = match steering {
            Taken::Ebpf(ebpf) => adopt_ebpf(*ebpf, anchor.as_fd(), &slots, &config)?,
            Taken::Classic(record) => {
                let listening = slots.iter().filter(|(_, listener)| listener.state == ListenerState::Joined);
                Steering::Classic(Classic::adopt(record, &listening.map(|(slot, _)| *slot).collect())?)
            }
        };
        let max_slots = match &steering {
            Steering::Ebpf(ebpf) => ebpf.max_slots() as u16,
            Steering::Classic(_) => config.max_slots,
        };
        let v6only = match address.is_ipv6() {
            true => {
                SockRef::from(&anchor).only_v6().map_err(|source| AdoptError::Io { name: ANCHOR.into(), source })?
            }
            false => true,
        };
        let (backlog, unready) = (config.backlog, config.unready);
        let guests = guests(&steering, address).map_err(|source| AdoptError::Io { name: "sockets".into(), source })?;
        Ok(Self { address, v6only, backlog, max_slots, unready, anchor, slots, guests, steering })
    }
}

impl Front {
    /// What the cells of an address are called among its descriptors.
    pub const STATE: &str = maps::NAMES[0];

    /// Before the first address is taken over or opened: keeps the room that one of a former process has in the cells.
    /// `state` is its descriptor of the name [`Front::STATE`]; another keeps nothing.
    pub fn reserve_cells(cells: &Cells, state: BorrowedFd<'_>) {
        if let Ok(was) = Inheritance::read(state) {
            was.reserve(cells);
        }
    }
}

/// The listeners in shards' hands that steering knows of.
fn guests(steering: &Steering, address: std::net::SocketAddr) -> std::io::Result<Vec<u32>> {
    let Steering::Ebpf(ebpf) = steering else { return Ok(Vec::new()) };
    let mut cookies = Vec::new();
    for slot in (0..ebpf.max_slots() as u16).map(SlotIndex) {
        for place in ebpf.places().direct_places() {
            cookies.extend(ebpf.direct_cookie(slot, *place)?);
        }
    }
    if cookies.is_empty() {
        return Ok(Vec::new());
    }
    let listening = sockdiag::listeners(address.port())?;
    Ok(listening.iter().filter(|found| cookies.contains(&found.cookie)).map(|found| found.inode).collect())
}

enum Taken {
    Ebpf(Box<Ebpf>),
    Classic(OwnedFd),
}

fn take_steering(
    fds: &mut BTreeMap<String, OwnedFd>,
    anchor: BorrowedFd<'_>,
    config: &FrontConfig,
    table: &SteeringTable,
) -> Result<Taken, AdoptError> {
    if let Some(record) = fds.remove(classic::RECORD) {
        return Ok(Taken::Classic(record));
    }
    let program = take(fds, ebpf::PROGRAM)?;
    let state = take(fds, maps::NAMES[0])?;
    let was = Inheritance::read(state.as_fd())?;
    if was.is_ours(config.cells.as_deref()) {
        let others = maps::NAMES[1..].iter().map(|name| take(fds, name));
        let maps = [Ok(state)].into_iter().chain(others).collect::<Result<_, _>>()?;
        let ebpf = Ebpf::adopt(program, maps, config.cells.as_ref())?;
        // Another version may have put its program there, and died before it could keep it.
        ebpf.attach(anchor).map_err(|source| AdoptError::Io { name: ebpf::PROGRAM.into(), source })?;
        return Ok(Taken::Ebpf(Box::new(ebpf)));
    }
    let sockets = take(fds, "sockets")?;
    let fault = |detail: String| AdoptError::Succeed { version: was.version, detail };
    let ebpf = Ebpf::succeed(&was, sockets.as_fd(), table, config.cells.as_ref());
    let ebpf = ebpf.map_err(|error| fault(error.to_string()))?;
    ebpf.set_refuse(config.unready == Unready::Refuse);
    // From the next SYN on: one program or the other, and both know who is in service.
    ebpf.attach(anchor).map_err(|error| fault(error.to_string()))?;
    // What that version had besides is of no more use.
    fds.retain(|name, _| name.starts_with(SLOT_PREFIX));
    Ok(Taken::Ebpf(Box::new(ebpf)))
}

fn take(fds: &mut BTreeMap<String, OwnedFd>, name: &'static str) -> Result<OwnedFd, AdoptError> {
    fds.remove(name).ok_or(AdoptError::Missing { name })
}

/// The rest must be slots' listeners.
fn take_slots(
    fds: BTreeMap<String, OwnedFd>,
    config: &FrontConfig,
) -> Result<BTreeMap<SlotIndex, SlotListener>, AdoptError> {
    let slot = |(name, fd): (String, OwnedFd)| {
        let index = name.strip_prefix(SLOT_PREFIX).and_then(|index| index.parse().ok()).map(SlotIndex);
        let Some(index) = index else { return Err(AdoptError::UnknownName { name }) };
        check_listener(&name, fd.as_fd(), config)?;
        let listening = is_listening(&name, fd.as_fd())?;
        let state = if listening { ListenerState::Joined } else { ListenerState::Prepared };
        Ok((index, SlotListener { fd, state }))
    };
    fds.into_iter().map(slot).collect()
}

/// The program's array must hold these very sockets; a slot without one is out of service.
fn adopt_ebpf(
    ebpf: Ebpf,
    anchor: BorrowedFd<'_>,
    slots: &BTreeMap<SlotIndex, SlotListener>,
    config: &FrontConfig,
) -> Result<Steering, AdoptError> {
    let io = |name: String| move |source| AdoptError::Io { name, source };
    if ebpf.holds(None, anchor).map_err(io(ANCHOR.into()))? != Some(true) {
        return Err(AdoptError::OtherMake { name: "sockets", detail: "the anchor is not in its place".into() });
    }
    for (slot, listener) in slots.iter().filter(|(_, listener)| listener.state == ListenerState::Joined) {
        if u32::from(slot.0) >= ebpf.max_slots() {
            return Err(AdoptError::OtherSocket { slot: *slot });
        }
        let name = || format!("{SLOT_PREFIX}{slot}");
        match ebpf.holds(Some(*slot), listener.fd.as_fd()).map_err(io(name()))? {
            Some(true) => {}
            Some(false) => return Err(AdoptError::OtherSocket { slot: *slot }),
            // The earlier process ended between listen and this.
            None => ebpf.enter(Some(*slot), listener.fd.as_fd()).map_err(io(name()))?,
        }
    }
    let listening = |slot| slots.get(&slot).is_some_and(|listener| listener.state == ListenerState::Joined);
    ebpf.in_service().iter().filter(|slot| !listening(*slot)).for_each(|slot| ebpf.set_in(slot, false));
    ebpf.set_refuse(config.unready == Unready::Refuse);
    Ok(Steering::Ebpf(ebpf))
}

fn check_listener(name: &str, fd: BorrowedFd<'_>, config: &FrontConfig) -> Result<std::net::SocketAddr, AdoptError> {
    let socket = SockRef::from(&fd);
    let found = match (socket.r#type(), socket.local_addr()) {
        (Ok(Type::STREAM), Ok(address)) => address.as_socket(),
        _ => None,
    };
    let Some(found) = found else { return Err(AdoptError::NotListening { name: name.into() }) };
    let wanted = config.address;
    let any_port = wanted.port() == 0 && wanted.ip() == found.ip();
    if found == wanted || any_port {
        Ok(found)
    } else {
        Err(AdoptError::OtherAddress { name: name.into(), found, wanted })
    }
}

fn is_listening(name: &str, fd: BorrowedFd<'_>) -> Result<bool, AdoptError> {
    SockRef::from(&fd).is_listener().map_err(|source| AdoptError::Io { name: name.into(), source })
}
