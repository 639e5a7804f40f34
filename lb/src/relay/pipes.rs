//! The pipes that bytes are spliced through: made when first needed, kept for reuse, bounded in number.

use std::{
    io::{self, Read},
    os::fd::OwnedFd,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};

/// Both ends of one pipe.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
}

/// What a pipe is asked to hold. The kernel gives less where `pipe-user-pages-soft` is reached; that is fine.
pub(super) const PIPE_BYTES: usize = 512 << 10;

/// Pipes held by directions whose sink is behind, and spare ones together: what is beyond copies. A stuck reader can
/// hold [`PIPE_BYTES`] of socket pages, so this bounds a worker's to 32 MiB.
const MAX_PIPES: usize = 64;

/// Spare pipes kept open. One is in use at a time unless sinks are behind.
const MAX_SPARE: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    spare: Vec<Pipe>,
    lent: usize,
}

impl Pipes {
    /// An empty pipe. `None` when all are in use or none can be made.
    pub(super) fn take(&mut self) -> Option<Pipe> {
        let pipe = match self.spare.pop() {
            Some(pipe) => pipe,
            None if self.lent < MAX_PIPES => Pipe::new()?,
            None => return None,
        };
        self.lent += 1;
        Some(pipe)
    }

    /// Takes back an empty pipe.
    pub(super) fn put(&mut self, pipe: Pipe) {
        self.lent -= 1;
        if self.spare.len() < MAX_SPARE {
            self.spare.push(pipe);
        }
    }

    /// Takes back a pipe and the `len` bytes that are in it.
    ///
    /// # Errors
    /// As read(2); the pipe is closed then, with what is in it.
    pub(super) fn empty(&mut self, pipe: Pipe, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let (mut reader, write) = (io::PipeReader::from(pipe.read), pipe.write);
        if let Err(error) = reader.read_exact(&mut bytes) {
            self.lent -= 1;
            return Err(error);
        }
        self.put(Pipe { read: reader.into(), write });
        Ok(bytes)
    }

    /// Closes a pipe with what is in it.
    pub(super) fn discard(&mut self, pipe: Pipe) {
        self.lent -= 1;
        drop(pipe);
    }
}

impl Pipe {
    fn new() -> Option<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        // Refused to a user over his share of pipe pages: then it is a small pipe.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES as i32));
        Some(Self { read, write })
    }
}
