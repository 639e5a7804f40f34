//! One request whose answer is checked byte by byte: shows that a contestant works before it is measured; waits, and
//! measures nothing.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use super::http::{self, Answer};
use crate::shard::body_byte;

const DEADLINE: Duration = Duration::from_secs(5);

/// An answer did not come or was wrong.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The connection failed.
    #[error("{address} cannot be asked for {answer_bytes} bytes")]
    Connection {
        /// Who was asked.
        address: SocketAddr,
        /// For how much.
        answer_bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A byte is not what the shard sent.
    #[error("{address} gave a wrong byte at offset {offset} of an answer of {answer_bytes} bytes")]
    Corrupt {
        /// Who was asked.
        address: SocketAddr,
        /// For how much.
        answer_bytes: usize,
        /// Where it is wrong.
        offset: usize,
    },
}

/// Asks `address` for `answer_bytes` bytes, checks them, and gives the connection back, kept alive.
pub fn fetch(address: SocketAddr, answer_bytes: usize) -> Result<TcpStream, FetchError> {
    fetch_from(None, address, answer_bytes)
}

/// The same from an address of this host's, or from the one that the kernel chooses.
pub(super) fn fetch_from(
    source: Option<IpAddr>,
    address: SocketAddr,
    answer_bytes: usize,
) -> Result<TcpStream, FetchError> {
    let fail = |source| FetchError::Connection { address, answer_bytes, source };
    let mut stream = connect(source, address).map_err(fail)?;
    ask_checked(&mut stream, address, answer_bytes, false)?;
    Ok(stream)
}

fn connect(source: Option<IpAddr>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    socket.connect_timeout(&address.into(), DEADLINE)?;
    Ok(socket.into())
}

/// One request on a connection to `address`, its answer checked.
pub(super) fn ask_checked(
    stream: &mut TcpStream,
    address: SocketAddr,
    answer_bytes: usize,
    closes: bool,
) -> Result<(), FetchError> {
    let fail = |source| FetchError::Connection { address, answer_bytes, source };
    let body = ask(stream, answer_bytes, closes).map_err(fail)?;
    match body.iter().enumerate().find(|(offset, byte)| **byte != body_byte(*offset)) {
        Some((offset, _)) => Err(FetchError::Corrupt { address, answer_bytes, offset }),
        None => Ok(()),
    }
}

fn ask(stream: &mut TcpStream, answer_bytes: usize, closes: bool) -> io::Result<Vec<u8>> {
    let bad = |bad| io::Error::new(io::ErrorKind::InvalidData, bad);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(&http::request(answer_bytes, closes))?;
    let mut answer = Answer::default();
    let mut body = Vec::new();
    let mut buffer = [0; 16 << 10];
    while answer.body_left() != Some(0) {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let of_body = match answer.body_left() {
            None => answer.take(&buffer[..count]).map_err(bad)?,
            Some(_) => answer.skip(count).map(|()| count).map_err(bad)?,
        };
        body.extend_from_slice(&buffer[count - of_body..count]);
    }
    if body.len() != answer_bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the answer has {} bytes", body.len())));
    }
    Ok(body)
}
