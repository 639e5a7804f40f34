//! One connection of the load generator and how far its request is; owns its socket, never waits, and counts nothing.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::http::Answer;

/// A connection. One request at a time.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    state: State,
    answer: Answer,
}

#[derive(Debug)]
enum State {
    Idle,
    Sending { sent: usize },
    Answering,
    Ending,
}

/// How far a connection's request was when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reached {
    /// It had no request, or not all of it was out: most often its handshake wasn't over.
    Connecting,
    /// The request was out, and no byte of an answer had come.
    Asked,
    /// A part of the answer had come.
    PartlyAnswered,
    /// The whole answer had come, and the server's end of the connection hadn't.
    Answered,
}

/// How far a connection came without waiting.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Something must happen first.
    Waits,
    /// The answer is whole.
    Answered,
    /// The server has closed after its answer.
    Ended,
}

/// Bytes of the buffers that connections of one thread share.
const BUFFER_BYTES: usize = 1 << 20;

/// What connections of one thread read into.
#[derive(Debug)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    pub(super) fn new() -> Self {
        Self(vec![0; BUFFER_BYTES])
    }
}

impl Client {
    /// Begins to connect.
    pub(super) fn connect(target: SocketAddr) -> io::Result<Self> {
        Self::connect_from(None, target)
    }

    /// The same from an address of the caller's choice.
    pub(super) fn connect_from(source: Option<SocketAddr>, target: SocketAddr) -> io::Result<Self> {
        Ok(Self { stream: begin_to_connect(source, target)?, state: State::Idle, answer: Answer::default() })
    }

    /// The same for answers that have no head and are so long.
    pub(super) fn connect_for_echo(target: SocketAddr, bytes: usize) -> io::Result<Self> {
        Ok(Self { stream: begin_to_connect(None, target)?, state: State::Idle, answer: Answer::of(bytes) })
    }

    /// Takes any answer that isn't an error, up to the connection's end.
    pub(super) fn until_close(mut self) -> Self {
        self.answer = Answer::until_close();
        self
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Sends `request` as far as it goes; the rest goes when [`Client::advance`] is called.
    pub(super) fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.answer.reset();
        self.state = State::Sending { sent: 0 };
        self.write(request)
    }

    /// After an answer: whether the server said that it closes.
    pub(super) fn is_closed_by_server(&self) -> bool {
        self.answer.closes()
    }

    /// Where it comes from; None where it has no port.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        self.stream.local_addr().ok().filter(|address| address.port() != 0)
    }

    /// How far its request is.
    pub(super) fn reached(&self) -> Reached {
        match self.state {
            State::Idle | State::Sending { .. } => Reached::Connecting,
            State::Answering if self.answer.has_begun() => Reached::PartlyAnswered,
            State::Answering => Reached::Asked,
            State::Ending => Reached::Answered,
        }
    }

    /// Whether the request is out.
    pub(super) fn has_sent(&self) -> bool {
        !matches!(self.state, State::Sending { .. })
    }

    /// After an answer: waits for the server's end of the connection.
    pub(super) fn await_end(&mut self) {
        self.state = State::Ending;
    }

    /// Goes on as far as it can; adds what came of a body to `body_bytes`.
    pub(super) fn advance(
        &mut self,
        request: &[u8],
        buffer: &mut Buffer,
        body_bytes: &mut u64,
    ) -> io::Result<Progress> {
        match self.state {
            State::Idle => Ok(Progress::Waits),
            State::Sending { .. } => self.write(request).map(|()| Progress::Waits),
            State::Answering => self.read(buffer, body_bytes),
            State::Ending => match self.stream.read(&mut buffer.0[..1]) {
                Ok(0) => Ok(Progress::Ended),
                Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, super::http::BadAnswer::Surplus)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Progress::Waits),
                Err(error) => Err(error),
            },
        }
    }

    fn write(&mut self, request: &[u8]) -> io::Result<()> {
        while let State::Sending { sent } = &mut self.state {
            match self.stream.write(&request[*sent..]) {
                Ok(count) => *sent += count,
                // While it connects, Linux says EAGAIN (or ENOTCONN before the SYN is out).
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            if *sent == request.len() {
                self.state = State::Answering;
            }
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut Buffer, body_bytes: &mut u64) -> io::Result<Progress> {
        loop {
            let received = match self.answer.body_left() {
                None if self.answer.is_chunked() => self.stream.read(&mut buffer.0),
                None => self.stream.read(&mut buffer.0[..4096]),
                // tcp(7): with MSG_TRUNC the bytes are discarded in the kernel. Copying them would cost this side as
                // much as the relay under test.
                Some(left) => {
                    let most = left.min(BUFFER_BYTES);
                    recv(self.stream.as_raw_fd(), &mut buffer.0[..most], MsgFlags::MSG_TRUNC).map_err(io::Error::from)
                }
            };
            let count = match received {
                Ok(0) if self.answer.ends_with_close() => return Ok(Progress::Ended),
                Ok(0) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the answer was whole"));
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Waits),
                Err(error) => return Err(error),
            };
            let body = match self.answer.body_left() {
                None => self.answer.take(&buffer.0[..count]),
                Some(_) => self.answer.skip(count).map(|()| count),
            };
            *body_bytes += body.map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))? as u64;
            if self.answer.body_left() == Some(0) {
                self.state = State::Idle;
                return Ok(Progress::Answered);
            }
        }
    }
}

/// A socket that never waits, and is being connected.
pub(super) fn begin_to_connect(source: Option<SocketAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        socket.bind(&source.into())?;
    }
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket.into()),
    }
}
