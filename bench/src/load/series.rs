//! A known number of requests one after the other, for counting what each costs: nothing overlaps, and at each moment the
//! caller can wait until the other side has nothing left to do, so that a count divides evenly; measures nothing.

use std::{
    io::{self, Read},
    net::{SocketAddr, TcpStream},
};

use super::fetch::{FetchError, ask_checked};

/// How far one repetition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The connection is made, and nothing is sent.
    Connected,
    /// The answer is whole.
    Answered,
    /// The server has closed the connection.
    Closed,
}

/// `count` requests on one connection.
pub fn repeat_requests(
    address: SocketAddr,
    answer_bytes: usize,
    count: u64,
    rest: &mut dyn FnMut(Moment) -> io::Result<()>,
) -> Result<(), FetchError> {
    let fail = |source| FetchError::Connection { address, answer_bytes, source };
    let mut stream = TcpStream::connect(address).map_err(fail)?;
    rest(Moment::Connected).map_err(fail)?;
    for _ in 0..count {
        ask_checked(&mut stream, address, answer_bytes, false)?;
        rest(Moment::Answered).map_err(fail)?;
    }
    Ok(())
}

/// `count` connections with one request each, which the server closes.
pub fn repeat_connections(
    address: SocketAddr,
    answer_bytes: usize,
    count: u64,
    rest: &mut dyn FnMut(Moment) -> io::Result<()>,
) -> Result<(), FetchError> {
    let fail = |source| FetchError::Connection { address, answer_bytes, source };
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).map_err(fail)?;
        rest(Moment::Connected).map_err(fail)?;
        ask_checked(&mut stream, address, answer_bytes, true)?;
        stream.read_to_end(&mut Vec::new()).map_err(fail)?;
        rest(Moment::Closed).map_err(fail)?;
    }
    Ok(())
}
