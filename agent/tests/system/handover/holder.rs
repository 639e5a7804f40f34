//! Holders that can't keep everything: one with little room, and one of a version before connections could be handed over, as an
//! agent meets it: the present one behind a gate that knows no request of later versions, and answers as that version did.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    thread,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use sherd_testkit::eventually;

use super::SOON;
use crate::world::SHERD;

/// Starts a holder with this limit of descriptors; it ends when it is idle.
pub(super) fn start(socket: &Path, limit: u64) {
    fs::create_dir_all(socket.parent().expect("it is in a directory")).expect("a directory");
    let mut holder = Command::new("prlimit");
    holder.arg(format!("--nofile={limit}:{limit}")).arg(SHERD);
    holder.args(["holder", "--detach", "--exit-when-idle", "--socket"]).arg(socket);
    let status = holder.stdin(Stdio::null()).status().expect("prlimit runs");
    assert!(status.success(), "{status}");
    eventually("the holder serves", SOON, || socket.exists().then_some(()));
}

/// Starts an old holder in the agent's runtime directory.
pub(super) fn start_old(run_dir: &Path) {
    let real = run_dir.join("behind-the-gate.sock");
    start(&real, 4096);
    let gate = UnixListener::bind(run_dir.join("holder.sock")).expect("a unix socket");
    thread::spawn(move || {
        for client in gate.incoming() {
            let (Ok(client), Ok(holder)) = (client, UnixStream::connect(&real)) else { return };
            // It ends with its client.
            thread::spawn(move || serve(&client, &holder));
        }
    });
}

const HEADER: usize = 8;
const LAST_KNOWN_REQUEST: u8 = 7;
const ITEM: u8 = 128;
const MALFORMED: u8 = 132;

fn serve(client: &UnixStream, holder: &UnixStream) -> io::Result<()> {
    loop {
        let (request, fd) = read(client)?;
        if request[3] > LAST_KNOWN_REQUEST {
            let text = b"this holder does not know that request";
            let answer = [b"SH\x01".as_slice(), &[MALFORMED, text.len() as u8, 0, 0, 0], text].concat();
            return write(client, &answer, None);
        }
        write(holder, &request, fd.as_ref())?;
        loop {
            let (answer, fd) = read(holder)?;
            let is_last = answer[3] != ITEM;
            write(client, &answer, fd.as_ref())?;
            if is_last {
                break;
            }
        }
    }
}

/// One frame and the descriptor that came with it.
fn read(from: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let (mut frame, mut descriptor) = (Vec::new(), None);
    loop {
        let len = frame.get(4..6).map_or(HEADER, |len| HEADER + usize::from(len[0]) + (usize::from(len[1]) << 8));
        if frame.len() >= len.max(HEADER) {
            return Ok((frame, descriptor));
        }
        let mut bytes = vec![0; len - frame.len()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        frame.extend(&bytes[..received.bytes]);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                descriptor = fds.next();
            }
        }
    }
}

fn write(to: &UnixStream, frame: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = descriptor.iter().map(|fd| fd.as_fd()).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let sent = sendmsg(to, &[IoSlice::new(frame)], &mut control, SendFlags::NOSIGNAL)?;
    assert_eq!(sent, frame.len(), "a frame is short, and its socket blocks");
    Ok(())
}
