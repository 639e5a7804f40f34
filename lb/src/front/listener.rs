//! Listening sockets of a published address, and the proof that they are in one SO_REUSEPORT group that is ours alone.

use std::{
    io,
    net::{Shutdown, SocketAddr},
    os::fd::{BorrowedFd, OwnedFd},
};

use socket2::{Domain, SockRef, Socket, Type};

use super::{SlotError, error::Owners};
use crate::sockdiag::{self, Listening};

/// What went wrong with a socket; the operation's own error says which operation it was.
#[derive(Debug)]
pub(super) enum ListenerError {
    Taken { address: SocketAddr, by: Owners },
    Look { address: SocketAddr, source: io::Error },
    Step { address: SocketAddr, step: &'static str, source: io::Error },
}

/// A socket bound to the address, ready to join its group. It gets no connection yet.
pub(super) fn bind(address: SocketAddr, v6only: bool) -> Result<OwnedFd, ListenerError> {
    bound(address, v6only).map_err(|(step, source)| match source.kind() {
        io::ErrorKind::AddrInUse => match overlapping(address, v6only, &[]) {
            Ok(by) => ListenerError::Taken { address, by: name_owners(by) },
            Err(source) => ListenerError::Look { address, source },
        },
        _ => ListenerError::Step { address, step, source },
    })
}

/// The same for whoever may not look who else is there; an error comes with the step that failed.
pub(crate) fn bound(address: SocketAddr, v6only: bool) -> Result<OwnedFd, (&'static str, io::Error)> {
    let failed = |step| move |source| (step, source);
    // Plain TCP, not MPTCP; cloexec.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).map_err(failed("socket"))?;
    if address.is_ipv6() {
        socket.set_only_v6(v6only).map_err(failed("IPV6_V6ONLY"))?;
    }
    // Without it connections of the last listener that are in TIME_WAIT keep us out.
    socket.set_reuse_address(true).map_err(failed("SO_REUSEADDR"))?;
    socket.set_reuse_port(true).map_err(failed("SO_REUSEPORT"))?;
    socket.set_nonblocking(true).map_err(failed("O_NONBLOCK"))?;
    socket.bind(&address.into()).map_err(failed("bind"))?;
    Ok(socket.into())
}

/// Connections can come from here on.
pub(super) fn listen(socket: BorrowedFd<'_>, address: SocketAddr, backlog: i32) -> Result<(), ListenerError> {
    SockRef::from(&socket).listen(backlog).map_err(|source| ListenerError::Step { address, step: "listen", source })
}

/// No more connections, at once and for every copy of the descriptor. The queue moves where steering says.
pub(super) fn stop(socket: BorrowedFd<'_>) {
    // Fails only on a socket that doesn't listen, which is what is wanted.
    let _ = SockRef::from(&socket).shutdown(Shutdown::Both);
}

/// What the socket is bound to.
pub(super) fn local_address(socket: BorrowedFd<'_>, asked: SocketAddr) -> Result<SocketAddr, ListenerError> {
    let failed = |source| ListenerError::Step { address: asked, step: "getsockname", source };
    let address = SockRef::from(&socket).local_addr().map_err(failed)?;
    address.as_socket().ok_or_else(|| failed(io::ErrorKind::Unsupported.into()))
}

/// Whether no listener but ours (by inode) could get a connection that is for `address`.
pub(super) fn check_alone(address: SocketAddr, v6only: bool, ours: &[u32]) -> Result<(), ListenerError> {
    if address.port() == 0 {
        return Ok(());
    }
    let others = overlapping(address, v6only, ours).map_err(|source| ListenerError::Look { address, source })?;
    if others.is_empty() { Ok(()) } else { Err(ListenerError::Taken { address, by: name_owners(others) }) }
}

/// The same among listeners of the address's family. Of the other one there may be another front of ours.
pub(super) fn check_alone_in_family(address: SocketAddr, ours: &[u32]) -> Result<(), ListenerError> {
    let mut others = overlapping(address, true, ours).map_err(|source| ListenerError::Look { address, source })?;
    others.retain(|other| other.address.is_ipv4() == address.is_ipv4());
    if others.is_empty() { Ok(()) } else { Err(ListenerError::Taken { address, by: name_owners(others) }) }
}

/// Whether `joined`, which listens, is in the anchor's SO_REUSEPORT group.
///
/// The kernel shows no group. It decides by a rule (`inet_reuseport_add_sock`): same port, address, interface, family
/// and v6only, same uid, SO_REUSEPORT on both. We ask it for each of these; with all equal, and no listener but ours
/// there, there is one group.
pub(super) fn check_joined(
    address: SocketAddr,
    anchor: BorrowedFd<'_>,
    joined: BorrowedFd<'_>,
    ours: &[u32],
) -> Result<(), SlotError> {
    let look = |source| SlotError::LookForListeners { address, source };
    let found = sockdiag::listeners(address.port()).map_err(look)?;
    let listening = |fd| -> io::Result<_> {
        let inode = sockdiag::inode(fd)?;
        Ok(found.iter().find(|listening| listening.inode == inode))
    };
    let difference = match (listening(anchor).map_err(look)?, listening(joined).map_err(look)?) {
        (None, _) => Some("the anchor no longer listens".to_owned()),
        (_, None) => Some("it does not listen".to_owned()),
        (Some(a), Some(b)) => difference(a, b),
    };
    let shares =
        SockRef::from(&anchor).reuse_port().map_err(look)? && SockRef::from(&joined).reuse_port().map_err(look)?;
    match difference.or_else(|| (!shares).then(|| "SO_REUSEPORT was taken from one of them".into())) {
        Some(difference) => Err(SlotError::NotJoined { address, difference }),
        None => Ok(check_alone_in_family(address, ours)?),
    }
}

fn difference(anchor: &Listening, joined: &Listening) -> Option<String> {
    let key = |l: &Listening| (l.address, l.v6only, l.uid, l.interface);
    (key(anchor) != key(joined)).then(|| {
        let show = |l: &Listening| format!("{} uid {} interface {} v6only {}", l.address, l.uid, l.interface, l.v6only);
        format!("it is {}, the anchor is {}", show(joined), show(anchor))
    })
}

fn overlapping(address: SocketAddr, v6only: bool, ours: &[u32]) -> io::Result<Vec<Listening>> {
    let mut found = sockdiag::listeners(address.port())?;
    found.retain(|listening| listening.overlaps(address, v6only) && !ours.contains(&listening.inode));
    Ok(found)
}

fn name_owners(listening: Vec<Listening>) -> Owners {
    Owners(
        listening
            .into_iter()
            .map(|l| {
                let owner = sockdiag::owner(l.inode);
                (l, owner)
            })
            .collect(),
    )
}
