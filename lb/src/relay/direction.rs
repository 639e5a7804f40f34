//! One direction of a connection: what was read and not yet written, and what readiness says to do next. Pure but for
//! what it asks of [`Ends`]; knows no descriptor, no epoll and no time.
//!
//! epoll reports edges, once per change, so this remembers them: a direction goes on reading until it knows that the
//! source is drained, and a direction that can't write stops reading until its sink reports room. What it holds is
//! bounded by one receive, or by one pipe.

use nix::errno::Errno;

/// The two sockets of a direction, and the pipes between them.
pub(super) trait Ends {
    /// Where spliced bytes are between the sockets. Empty whenever it isn't held.
    type Pipe;

    /// Reads from the source; 0 is its end.
    fn receive(&mut self, into: &mut [u8]) -> Result<usize, Errno>;
    /// Writes to the sink.
    fn send(&mut self, bytes: &[u8]) -> Result<usize, Errno>;
    /// An empty pipe, unless too many are in use.
    fn take_pipe(&mut self) -> Option<Self::Pipe>;
    /// Gives back a pipe, empty again.
    fn return_pipe(&mut self, pipe: Self::Pipe);
    /// Moves from the source into an empty pipe; 0 is the source's end.
    fn fill(&mut self, pipe: &Self::Pipe) -> Result<usize, Errno>;
    /// Moves `len` bytes, or as many as fit, from the pipe to the sink.
    fn empty(&mut self, pipe: &Self::Pipe, len: usize) -> Result<usize, Errno>;
}

/// Which socket failed a direction, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Source(Errno),
    Sink(Errno),
}

/// Where a direction stands after [`Direction::pump`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// The source is drained: waits for it to be readable.
    Drained,
    /// The sink takes no more: waits for it to be writable.
    Blocked,
    /// There is more to do now, but others' turn has come.
    More,
    /// The source has ended and all of it was written.
    Ended,
}

/// What an event said about a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// There is something to read.
    Bytes,
    /// There is something to read, and the peer's FIN is behind it.
    BytesAndEnd,
    /// There may be an urgent mark or an error in the stream: only a receive that says so means drained.
    Uncertain,
}

/// Receives and splices in one turn, so that a fast sender can't keep a worker from its other connections.
const STEPS: u32 = 16;

/// A splice that brings less than this is a lean one.
const SPLICE_FLOOR: usize = 16 << 10;

/// Lean splices in a row that end a bulk transfer: the next bytes are copied again. The last piece of an answer is
/// lean; one such must not have the next large answer begin with copies.
const LEAN_SPLICES: u8 = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Direction<P> {
    /// Allocated only while the sink is behind: an idle connection holds none.
    held: Option<Box<Held<P>>>,
    readable: bool,
    /// The FIN was seen behind what is left to read.
    ending: bool,
    /// A short receive doesn't prove that the source is drained: `tcp_recvmsg` stops at the urgent mark.
    uncertain: bool,
    ended: bool,
    /// Above 0, much came lately: there is enough to make splicing worth its system calls. How many lean splices it
    /// takes to end that.
    bulk: u8,
    /// The sink was told of the end.
    pub(super) closed: bool,
    /// It is among those that have more to do.
    pub(super) queued: bool,
}

/// What is left to do in a direction, for whoever goes on with it. What is still to be read is the source's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Rest {
    /// Read and not yet written.
    pub(super) bytes: Vec<u8>,
    /// The source has ended.
    pub(super) ended: bool,
    /// The sink was told of the end.
    pub(super) closed: bool,
}

#[derive(Debug)]
enum Held<P> {
    Bytes { bytes: Box<[u8]>, sent: usize },
    Pipe { pipe: P, len: usize },
}

impl<P> Direction<P> {
    pub(super) fn new() -> Self {
        Self {
            held: None,
            readable: false,
            ending: false,
            uncertain: false,
            ended: false,
            bulk: 0,
            closed: false,
            queued: false,
        }
    }

    /// Goes on where another has stopped. Its first [`pump`](Self::pump) is due at once, and epoll's first edges have to
    /// come: they say what else there is to do.
    pub(super) fn resume(Rest { bytes, ended, closed }: Rest) -> Self {
        let held = (!bytes.is_empty()).then(|| Box::new(Held::Bytes { bytes: bytes.into(), sent: 0 }));
        Self { held, ended, closed, ..Self::new() }
    }

    /// What is left to do, taken out. `read` takes that many bytes out of a pipe, which is empty then, and gives it back.
    pub(super) fn stop<E>(&mut self, read: impl FnOnce(P, usize) -> Result<Vec<u8>, E>) -> Result<Rest, E> {
        let bytes = match self.held.take().map(|held| *held) {
            None => Vec::new(),
            Some(Held::Bytes { bytes, sent }) => bytes[sent..].to_vec(),
            Some(Held::Pipe { pipe, len }) => read(pipe, len)?,
        };
        Ok(Rest { bytes, ended: self.ended, closed: self.closed })
    }

    /// The sink is behind: its next writable edge has to [`pump`](Self::pump) this.
    pub(super) fn is_blocked(&self) -> bool {
        self.held.is_some()
    }

    /// The source reported an edge.
    pub(super) fn arrived(&mut self, arrival: Arrival) {
        if self.ended {
            return;
        }
        self.readable = true;
        match arrival {
            Arrival::Bytes => {}
            Arrival::BytesAndEnd => self.ending = true,
            Arrival::Uncertain => self.uncertain = true,
        }
    }

    /// Does all that can be done now, within [`STEPS`]. `scratch` is where copied bytes pass through.
    pub(super) fn pump<E: Ends<Pipe = P>>(&mut self, ends: &mut E, scratch: &mut [u8]) -> Result<Flow, Fault> {
        if self.held.is_some() && !self.flush(ends)? {
            return Ok(Flow::Blocked);
        }
        let mut steps = STEPS;
        while self.readable {
            if steps == 0 {
                return Ok(Flow::More);
            }
            steps -= 1;
            let written = if self.bulk > 0 { self.splice(ends)? } else { self.copy(ends, scratch)? };
            if !written {
                return Ok(Flow::Blocked);
            }
        }
        Ok(if self.ended { Flow::Ended } else { Flow::Drained })
    }

    /// What is held, given up with the connection.
    pub(super) fn discard(&mut self) -> Option<P> {
        match *self.held.take()? {
            Held::Bytes { .. } => None,
            Held::Pipe { pipe, .. } => Some(pipe),
        }
    }

    fn end(&mut self) {
        self.readable = false;
        self.ended = true;
    }

    fn drained(&mut self) {
        self.readable = false;
        self.uncertain = false;
    }

    /// One receive and one send. `false`: the sink is behind.
    fn copy<E: Ends<Pipe = P>>(&mut self, ends: &mut E, scratch: &mut [u8]) -> Result<bool, Fault> {
        let len = match ends.receive(scratch) {
            Ok(0) => {
                self.end();
                return Ok(true);
            }
            Ok(len) => len,
            Err(Errno::EAGAIN) => {
                self.drained();
                return Ok(true);
            }
            Err(Errno::EINTR) => return Ok(true),
            Err(errno) => return Err(Fault::Source(errno)),
        };
        if len == scratch.len() {
            self.bulk = LEAN_SPLICES;
        } else if !self.uncertain {
            // A short receive means drained (epoll(7)), and behind a FIN that was seen before it nothing can come:
            // neither needs another receive to say so.
            if self.ending {
                self.end();
            } else {
                self.drained();
            }
        }
        self.write(ends, &scratch[..len])
    }

    fn write<E: Ends<Pipe = P>>(&mut self, ends: &mut E, bytes: &[u8]) -> Result<bool, Fault> {
        let sent = match ends.send(bytes) {
            Ok(sent) if sent == bytes.len() => return Ok(true),
            Ok(sent) => sent,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Err(Fault::Sink(errno)),
        };
        self.held = Some(Box::new(Held::Bytes { bytes: bytes[sent..].into(), sent: 0 }));
        // Once more, so that only EAGAIN ever blocks: the writable edge then is certain to come.
        self.flush(ends)
    }

    /// One splice in and what it takes to get it out. `false`: the sink is behind.
    fn splice<E: Ends<Pipe = P>>(&mut self, ends: &mut E) -> Result<bool, Fault> {
        let Some(pipe) = ends.take_pipe() else {
            self.bulk = 0;
            return Ok(true);
        };
        match ends.fill(&pipe) {
            Ok(0) => self.end(),
            Ok(len) => {
                self.bulk = if len >= SPLICE_FLOOR { LEAN_SPLICES } else { self.bulk - 1 };
                self.held = Some(Box::new(Held::Pipe { pipe, len }));
                return self.flush(ends);
            }
            Err(Errno::EAGAIN) => self.drained(),
            Err(Errno::EINTR) => {}
            Err(errno) => {
                ends.return_pipe(pipe);
                return Err(Fault::Source(errno));
            }
        }
        ends.return_pipe(pipe);
        Ok(true)
    }

    /// Writes what is held until it is gone (`true`) or the sink takes no more.
    fn flush<E: Ends<Pipe = P>>(&mut self, ends: &mut E) -> Result<bool, Fault> {
        while let Some(held) = self.held.as_deref_mut() {
            let moved = match held {
                Held::Bytes { bytes, sent } => ends.send(&bytes[*sent..]),
                Held::Pipe { pipe, len } => ends.empty(pipe, *len),
            };
            match moved {
                Ok(moved) => {
                    if held.advance(moved) == 0
                        && let Some(pipe) = self.discard()
                    {
                        ends.return_pipe(pipe);
                    }
                }
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Fault::Sink(errno)),
            }
        }
        Ok(true)
    }
}

impl<P> Held<P> {
    /// How many bytes are left after `moved` more have gone.
    fn advance(&mut self, moved: usize) -> usize {
        match self {
            Held::Bytes { bytes, sent } => {
                *sent += moved;
                bytes.len() - *sent
            }
            Held::Pipe { len, .. } => {
                *len -= moved;
                *len
            }
        }
    }
}

#[cfg(test)]
mod tests;
