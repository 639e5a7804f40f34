//! The agent's side of the holder: one request at a time over one connection.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    HolderVersion,
    wire::{self, BadFrame, Kind, PROTOCOL},
};
use crate::sys::scm;

/// How long the holder may take for anything; it never waits for something itself.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the holder did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// Nobody serves the socket.
    #[error("no holder answers on {path}; start it (systemctl start sherd-holder, or sherd holder)")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the holder does not answer")]
    Io(#[source] io::Error),
    /// It has nothing of that name.
    #[error("the holder has no descriptor {name:?}")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// It holds all that it can.
    #[error("the holder takes no more descriptors ({detail}); raise LimitNOFILE of its unit")]
    Full {
        /// Its own words.
        detail: String,
    },
    /// The name can't be one, or the holder did not understand.
    #[error(
        "the holder did not understand the request for {name:?} ({detail}); names are 1 to 200 visible ASCII characters"
    )]
    Malformed {
        /// The name asked for.
        name: String,
        /// Its own words.
        detail: String,
    },
    /// It speaks another version of the protocol.
    #[error("the holder speaks protocol {theirs}, this program {PROTOCOL}; stop all groups and restart the holder")]
    OtherProtocol {
        /// Its version.
        theirs: u8,
    },
    /// It is something else.
    #[error("what answers on the socket is no holder")]
    NoHolder,
}

/// A connection to the holder.
#[derive(Debug)]
pub struct HolderClient {
    socket: UnixStream,
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl HolderClient {
    /// Connects to the holder that serves `path`.
    ///
    /// # Errors
    /// [`HolderError::Connect`] when nobody does.
    pub fn connect(path: &Path) -> Result<Self, HolderError> {
        let failed = |source| HolderError::Connect { path: path.into(), source };
        let socket = UnixStream::connect(path).map_err(failed)?;
        socket.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
        socket.set_write_timeout(Some(TIMEOUT)).map_err(failed)?;
        Ok(Self { socket, buffer: Vec::new(), fds: Vec::new() })
    }

    /// The holder's versions.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ping(&mut self) -> Result<HolderVersion, HolderError> {
        let (_, program) = self.ask(Kind::Ping, "", None)?;
        Ok(HolderVersion { protocol: PROTOCOL, program })
    }

    /// Gives the holder a copy of the descriptor, in place of what has that name. Once this returns, it has it.
    ///
    /// # Errors
    /// [`HolderError::Full`] at its limit.
    pub fn put(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), HolderError> {
        self.ask(Kind::Put, name, Some(fd)).map(drop)
    }

    /// The same, but the holder closes its copy after `time`, rounded up to whole seconds and at most [`MAX_TIME`](super::MAX_TIME).
    ///
    /// # Errors
    /// [`HolderError::Full`] at its limit; [`HolderError::Malformed`] by a holder of a version that doesn't know this. That one
    /// ends the connection too.
    pub fn put_for(&mut self, name: &str, fd: BorrowedFd<'_>, time: Duration) -> Result<(), HolderError> {
        let seconds = u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        check_name(name)?;
        self.request(Kind::PutFor, name, &wire::put_for(seconds, name), Some(fd)).map(drop)
    }

    /// All names, ascending.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn list(&mut self) -> Result<Vec<String>, HolderError> {
        let (items, _) = self.ask(Kind::List, "", None)?;
        Ok(items.into_iter().map(|(name, _)| name).collect())
    }

    /// A copy of the descriptor.
    ///
    /// # Errors
    /// [`HolderError::NotFound`] when there is none of that name.
    pub fn get(&mut self, name: &str) -> Result<OwnedFd, HolderError> {
        let (items, _) = self.ask(Kind::Get, name, None)?;
        let fd = items.into_iter().find_map(|(_, fd)| fd);
        fd.ok_or_else(|| HolderError::NotFound { name: name.into() })
    }

    /// Copies of all descriptors whose names begin so, with their whole names, ascending.
    ///
    /// # Errors
    /// When it does not answer, or our descriptor table is full.
    pub fn get_prefix(&mut self, prefix: &str) -> Result<Vec<(String, OwnedFd)>, HolderError> {
        let (items, _) = self.ask(Kind::GetPrefix, prefix, None)?;
        let with_fd = |(name, fd): (String, Option<OwnedFd>)| Some((name, fd?));
        let count = items.len();
        let found: Vec<_> = items.into_iter().filter_map(with_fd).collect();
        if found.len() < count { Err(HolderError::Io(io::Error::from_raw_os_error(libc::EMFILE))) } else { Ok(found) }
    }

    /// The holder closes its copy.
    ///
    /// # Errors
    /// [`HolderError::NotFound`] when there is none of that name.
    pub fn remove(&mut self, name: &str) -> Result<(), HolderError> {
        self.ask(Kind::Remove, name, None).map(drop)
    }

    /// The holder closes its copies of all descriptors whose names begin so; also none.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn remove_prefix(&mut self, prefix: &str) -> Result<(), HolderError> {
        self.ask(Kind::RemovePrefix, prefix, None).map(drop)
    }

    fn ask(&mut self, kind: Kind, name: &str, fd: Option<BorrowedFd<'_>>) -> Result<Answer, HolderError> {
        check_name(name)?;
        self.request(kind, name, name.as_bytes(), fd)
    }

    /// Sends a request and collects items until its end, whose text it returns too.
    fn request(
        &mut self,
        kind: Kind,
        name: &str,
        body: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Answer, HolderError> {
        let frame = wire::frame(kind, body);
        let sent = scm::send(self.socket.as_fd(), &frame, fd).map_err(HolderError::Io)?;
        io::Write::write_all(&mut self.socket, &frame[sent..]).map_err(HolderError::Io)?;
        let mut items = Vec::new();
        loop {
            let (kind, body) = self.frame()?;
            let text = String::from_utf8_lossy(&body).into_owned();
            match kind {
                // A descriptor comes with the first byte of its frame, and frames are in order.
                Kind::Item => items.push((text, self.fds.pop())),
                Kind::Done => return Ok((items, text)),
                Kind::NotFound => return Err(HolderError::NotFound { name: name.into() }),
                Kind::Full => return Err(HolderError::Full { detail: text }),
                Kind::Malformed => return Err(HolderError::Malformed { name: name.into(), detail: text }),
                _ => return Err(HolderError::NoHolder),
            }
        }
    }

    /// The next frame. Reads no further than its end, so that a descriptor belongs to the frame just read.
    fn frame(&mut self) -> Result<(Kind, Vec<u8>), HolderError> {
        self.buffer.clear();
        self.fds.clear();
        loop {
            let parsed = wire::parse(&self.buffer).map_err(|bad| match bad {
                BadFrame::Protocol(theirs) => HolderError::OtherProtocol { theirs },
                BadFrame::Tag | BadFrame::Header => HolderError::NoHolder,
            })?;
            if let Some((kind, body)) = parsed {
                return Ok((kind, body.to_vec()));
            }
            let mut bytes = vec![0; wire::missing(&self.buffer)];
            let received = scm::receive(self.socket.as_fd(), &mut bytes).map_err(HolderError::Io)?;
            if received.bytes == 0 {
                return Err(HolderError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            self.buffer.extend(&bytes[..received.bytes]);
            self.fds.extend(received.fds);
        }
    }
}

/// Names with the descriptors that came with them, and the text of the last frame.
type Answer = (Vec<(String, Option<OwnedFd>)>, String);

/// Before anything is sent: a body that is cut would be another name.
fn check_name(name: &str) -> Result<(), HolderError> {
    if name.len() <= wire::MAX_NAME {
        return Ok(());
    }
    Err(HolderError::Malformed { name: name.into(), detail: "the name is too long".into() })
}
