//! Descriptors over a unix socket: SCM_RIGHTS, with every received descriptor owned from its first moment.

use std::{
    io::{self, IoSlice},
    mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// What one recvmsg gave.
pub(crate) struct Received {
    /// 0: the peer has closed.
    pub(crate) bytes: usize,
    pub(crate) fds: Vec<OwnedFd>,
    /// The kernel dropped descriptors: more than one came, or our table is full.
    pub(crate) truncated: bool,
}

/// Descriptors of one message, at most (`SCM_MAX_FD`, include/net/scm.h).
pub(crate) const MAX_FDS: usize = 253;

/// Room for the control messages of one receive, in words: aligned as cmsghdr.
const FEW: usize = 8;
const MANY: usize = (MAX_FDS * size_of::<RawFd>()).div_ceil(size_of::<u64>()) + 4;

/// Sends bytes, with a descriptor on the first of them; returns how many bytes went.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    send_many(socket, bytes, fd.as_slice())
}

/// The same with up to [`MAX_FDS`] descriptors.
pub(crate) fn send_many(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let bytes = [IoSlice::new(bytes)];
    uninterrupted(|| Ok(sendmsg::<()>(socket.as_raw_fd(), &bytes, control, MsgFlags::MSG_NOSIGNAL, None)?))
}

/// Receives up to `bytes.len()` bytes and the descriptors that came with them: a few, what is beyond is dropped.
pub(crate) fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Received> {
    receive_into(socket, bytes, &mut [0; FEW], 0)
}

/// The same with room for [`MAX_FDS`] descriptors, and without waiting.
pub(crate) fn receive_many(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Received> {
    receive_into(socket, bytes, &mut [0; MANY], libc::MSG_DONTWAIT)
}

/// The bytes of the next message, which stays where it is, as do its descriptors.
pub(crate) fn peek(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    receive_into(socket, bytes, &mut [], libc::MSG_DONTWAIT | libc::MSG_PEEK).map(|received| received.bytes)
}

/// Takes the next message away, and its descriptors with it. `false`: there is none.
pub(crate) fn discard(socket: BorrowedFd<'_>) -> io::Result<bool> {
    receive_into(socket, &mut [0], &mut [], libc::MSG_DONTWAIT).map(|received| received.bytes > 0)
}

/// On a socket with a time-out a signal's handler ends the wait, whatever its SA_RESTART says (signal(7)).
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// By hand: nix gives nothing of a truncated message, and the descriptors that did arrive would stay open for ever.
///
/// Where `control` has no room, the kernel makes no descriptor at all (`scm_recv`, `scm_detach_fds`).
fn receive_into(socket: BorrowedFd<'_>, bytes: &mut [u8], control: &mut [u64], flags: i32) -> io::Result<Received> {
    let mut data = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zeros is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    if !control.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(control) as _;
    }
    let bytes = uninterrupted(|| {
        // SAFETY: `message` points to `bytes` and `control`, with their lengths, which outlive the call.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC | flags) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    })?;
    let truncated = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok(Received { bytes, fds: take_fds(&message), truncated })
}

/// The descriptors that the kernel made for the last recvmsg into `message`.
fn take_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel filled the control buffer of `message`, which the caller keeps, with well-formed headers; the
    // macros stay within its length. The descriptors were made by that very call: nothing else owns them.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(control) = header.as_ref() {
            if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                #[allow(clippy::unnecessary_cast)] // musl's cmsg_len is a u32
                let len_bytes = control.cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let raw = (0..len_bytes / size_of::<RawFd>()).map(|i| data.add(i).read_unaligned());
                fds.extend(raw.map(|fd| OwnedFd::from_raw_fd(fd)));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    fds
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::{fd::AsFd, unix::net::UnixStream},
        sync::mpsc::channel,
        time::Duration,
    };

    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

    use super::*;

    extern "C" fn nothing(_: i32) {}

    #[test]
    fn a_signal_ends_no_wait() {
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler does nothing, and no other test uses the signal.
        unsafe { sigaction(Signal::SIGUSR2, &action) }.expect("a handler");
        let (reader, mut writer) = UnixStream::pair().expect("a pair");
        reader.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        let (tell, told) = channel();
        let waiting = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid()).expect("it is waited for");
            receive(reader.as_fd(), &mut [0; 8]).map(|received| received.bytes)
        });
        let tid = told.recv().expect("a thread");
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(5));
            // SAFETY: a thread of this process; at worst there is none of that number.
            let sent = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid.as_raw(), libc::SIGUSR2) };
            assert_eq!(sent, 0, "it has ended");
        }
        writer.write_all(b"four").expect("it reads");
        assert_eq!(waiting.join().expect("it doesn't panic").expect("nothing is wrong"), 4);
    }
}
