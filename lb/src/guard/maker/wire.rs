//! What the agent and its maker say to each other: packets of one request, one answer. Both ends are of one build, so
//! there is no version.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

use crate::cells::NO_CELL;

/// Bytes of a request: sequence, v6only, family, port, scope, address, cell.
pub(super) const REQUEST: usize = 32;

/// Bytes of an answer, at most: sequence, errno, the step that failed.
pub(super) const MAX_ANSWER: usize = 8 + MAX_STEP;

/// The sequence of what the maker says first.
pub(super) const HELLO: u32 = 0;

const MAX_STEP: usize = 32;

/// Make this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) sequence: u32,
    pub(super) address: SocketAddr,
    pub(super) v6only: bool,
    /// Whose cgroup it is made in: of this cell, or the guard's own.
    pub(super) cell: Option<u32>,
}

impl Request {
    pub(super) fn bytes(&self) -> [u8; REQUEST] {
        let (v6, scope) = match self.address {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        let mut bytes = [0; REQUEST];
        bytes[..4].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[4] = self.v6only.into();
        bytes[5] = self.address.is_ipv6().into();
        bytes[6..8].copy_from_slice(&self.address.port().to_le_bytes());
        bytes[8..12].copy_from_slice(&scope.to_le_bytes());
        bytes[12..28].copy_from_slice(&v6.octets());
        bytes[28..].copy_from_slice(&self.cell.unwrap_or(NO_CELL).to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; REQUEST] = bytes.try_into().ok()?;
        let ip = Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[12..28]).ok()?);
        let port = u16::from_le_bytes([bytes[6], bytes[7]]);
        let address = match bytes[5] {
            0 => SocketAddr::new(IpAddr::V4(ip.to_ipv4_mapped()?), port),
            _ => SocketAddrV6::new(ip, port, 0, word(bytes, 8)?).into(),
        };
        let cell = Some(word(bytes, 28)?).filter(|cell| *cell != NO_CELL);
        Some(Self { sequence: word(bytes, 0)?, address, v6only: bytes[4] != 0, cell })
    }
}

/// It is made, and comes with this packet; or which step failed, and how.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) sequence: u32,
    pub(super) outcome: Result<(), (String, io::Error)>,
}

impl Answer {
    pub(super) fn bytes(sequence: u32, outcome: Result<(), (&str, &io::Error)>) -> Vec<u8> {
        let (step, errno) = match outcome {
            Ok(()) => ("", 0),
            Err((step, error)) => (step, error.raw_os_error().unwrap_or(libc::EIO)),
        };
        let step = &step.as_bytes()[..step.len().min(MAX_STEP)];
        [&sequence.to_le_bytes(), &errno.to_le_bytes(), step].concat()
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (sequence, errno) = (word(bytes, 0)?, word(bytes, 4)?);
        let step = String::from_utf8_lossy(&bytes[8..]).into_owned();
        let outcome = match i32::try_from(errno).ok()? {
            0 => Ok(()),
            errno => Err((step, io::Error::from_raw_os_error(errno))),
        };
        Some(Self { sequence, outcome })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn requests_are_read_as_written(sequence: u32, v6only: bool, ip: IpAddr, port: u16, cell in prop::option::of(0..NO_CELL)) {
            let request = Request { sequence, address: SocketAddr::new(ip, port), v6only, cell };
            prop_assert_eq!(Request::parse(&request.bytes()), Some(request));
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..48)) {
            let _ = Request::parse(&bytes);
            let _ = Answer::parse(&bytes);
        }
    }

    #[test]
    fn answers_are_read_as_written() {
        let made = Answer::parse(&Answer::bytes(7, Ok(()))).expect("an answer");
        assert!(made.sequence == 7 && made.outcome.is_ok());
        let error = io::Error::from_raw_os_error(libc::EADDRINUSE);
        let refused = Answer::parse(&Answer::bytes(8, Err(("bind", &error)))).expect("an answer");
        let (step, error) = refused.outcome.expect_err("it is refused");
        assert_eq!((refused.sequence, &*step, error.raw_os_error()), (8, "bind", Some(libc::EADDRINUSE)));
    }
}
