//! A connection whose bytes go back as they came; owns what could not be written yet.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use super::{Fate, body_byte};

/// A connection that begins with this is echoed; no request does.
pub(super) const ECHO_BYTE: u8 = body_byte(0);
/// Pieces of one connection before others have their turn: a client that sends as fast as it gets back would keep a
/// shard to itself.
const PIECES: usize = 8;

/// See the module. Never more than one piece is kept: what isn't written is not read either.
#[derive(Debug)]
pub(super) struct Echo {
    pending: Vec<u8>,
    written: usize,
}

impl Echo {
    /// One that has received `first`.
    pub(super) fn of(first: Vec<u8>) -> Self {
        Self { pending: first, written: 0 }
    }

    /// Goes on as far as it can without waiting, a bounded way.
    pub(super) fn advance(&mut self, stream: &mut TcpStream, piece: &mut [u8]) -> io::Result<Fate> {
        for _ in 0..PIECES {
            self.written += write_some(stream, &self.pending[self.written..])?;
            if self.written < self.pending.len() {
                return Ok(Fate::Goes);
            }
            self.pending.clear();
            self.written = 0;
            let count = match stream.read(piece) {
                Ok(0) => return Ok(Fate::Ends),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Fate::Goes),
                Err(error) => return Err(error),
            };
            let written = write_some(stream, &piece[..count])?;
            self.pending.extend_from_slice(&piece[written..count]);
        }
        Ok(Fate::Yields)
    }
}

/// How much the kernel took.
fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
