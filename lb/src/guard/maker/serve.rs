//! The body of the process in the guard's cgroup: makes a listener for each request and keeps none.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use super::{
    super::places,
    wire::{self, Answer, HELLO, Request},
};
use crate::{front, sys::scm};

/// Joins the cgroup, says so, and answers until the other end of `socket` (SOCK_SEQPACKET) closes. The whole process
/// joins and can then neither connect nor get unlisted options on sockets it makes: let it do nothing else.
///
/// # Errors
/// When it can't join, which the other end is told, or the socket fails.
pub fn serve(socket: BorrowedFd<'_>, cgroup: &Path) -> io::Result<()> {
    let joined = join(cgroup);
    let outcome = joined.as_ref().map_or_else(|error| Err((JOIN, error)), |()| Ok(()));
    send(socket, &Answer::bytes(HELLO, outcome), None)?;
    joined?;
    let mut at = None;
    let mut bytes = [0; wire::REQUEST];
    loop {
        let received = match scm::receive(socket, &mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received?,
        };
        if received.bytes == 0 {
            return Ok(());
        }
        let request = Request::parse(&bytes[..received.bytes]).ok_or(io::ErrorKind::InvalidData)?;
        if request.cell != at {
            // What is made belongs to where this process is.
            if let Err(error) = join(&request.cell.map_or_else(|| cgroup.into(), |cell| places::path(cgroup, cell))) {
                send(socket, &Answer::bytes(request.sequence, Err((JOIN, &error))), None)?;
                continue;
            }
            at = request.cell;
        }
        answer(socket, &request)?;
    }
}

/// The step of that name.
const JOIN: &str = "cgroup.procs";

fn join(cgroup: &Path) -> io::Result<()> {
    // 0 is the process that writes, whatever its pid namespace.
    fs::write(cgroup.join(JOIN), "0")
}

fn answer(socket: BorrowedFd<'_>, request: &Request) -> io::Result<()> {
    let refused = |step, error: &io::Error| {
        let answer = Answer::bytes(request.sequence, Err((step, error)));
        send(socket, &answer, None)
    };
    match front::bound(request.address, request.v6only) {
        Ok(listener) => match send(socket, &Answer::bytes(request.sequence, Ok(())), Some(listener.as_fd())) {
            // Too many descriptors are on their way to an agent that doesn't read.
            Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => refused("sendmsg", &error),
            sent => sent,
        },
        Err((step, error)) => refused(step, &error),
    }
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    // A packet goes whole.
    scm::send(socket, bytes, fd).map(drop)
}
