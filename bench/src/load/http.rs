//! The requests sent and how much of an answer has come; owns no socket.

use self::chunks::Chunks;
use crate::shard::body_byte;

mod chunks;

/// A request's bytes, to a shard.
pub(super) fn request(answer_bytes: usize, closes: bool) -> Vec<u8> {
    get(&format!("/{answer_bytes}"), "shard", closes)
}

/// A request's bytes, to anybody.
pub(super) fn get(path: &str, host: &str, closes: bool) -> Vec<u8> {
    let connection = if closes { "Connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{connection}\r\n").into_bytes()
}

/// What a shard sends back as it is, because it doesn't begin as a request does.
pub(super) fn echoed(bytes: usize) -> Vec<u8> {
    (0..bytes).map(body_byte).collect()
}

/// How much of one answer has come.
#[derive(Debug, Default)]
pub(super) struct Answer {
    head: Vec<u8>,
    body_left: Option<usize>,
    /// Where the body is in chunks: they say themselves when it is whole.
    chunks: Option<Chunks>,
    closes: bool,
    /// Its length, where it has no head to tell it.
    known_bytes: Option<usize>,
    /// Its body ends with the connection, and its status may be any that isn't an error.
    until_close: bool,
}

/// Why bytes are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadAnswer {
    /// A head without end.
    #[error("the answer's head is longer than {MAX_HEAD_BYTES} bytes")]
    HeadTooLong,
    /// Another status.
    #[error("the answer's status is not 2xx")]
    Status,
    /// An error's status, or none.
    #[error("the answer's status is not 200 to 399")]
    Error,
    /// No length.
    #[error("the answer has neither Content-Length nor chunks")]
    Length,
    /// Chunks that are none.
    #[error("the answer's chunks have no sizes")]
    Chunk,
    /// More than was asked for.
    #[error("bytes after the end of the answer")]
    Surplus,
}

/// An answer's head may not be longer.
const MAX_HEAD_BYTES: usize = 2048;

impl Answer {
    /// One without a head.
    pub(super) fn of(bytes: usize) -> Self {
        Self { body_left: Some(bytes), known_bytes: Some(bytes), ..Self::default() }
    }

    /// One of somebody else's server: its body ends with the connection.
    pub(super) fn until_close() -> Self {
        Self { until_close: true, ..Self::default() }
    }

    /// Whether the end of the connection is its end, now.
    pub(super) fn ends_with_close(&self) -> bool {
        self.until_close && self.body_left.is_some()
    }
    /// A field of its head; None while that is not whole.
    pub(super) fn field(&self, name: &str) -> Option<String> {
        self.body_left?;
        let head = String::from_utf8_lossy(&self.head);
        let fields = head.split("\r\n").filter_map(|line| line.split_once(':'));
        let mut named = fields.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim().to_owned())
    }

    /// Bytes of the body that are still to come; None while that isn't known and the next bytes must be looked at.
    pub(super) fn body_left(&self) -> Option<usize> {
        self.body_left
    }

    /// Whether the body is in chunks.
    pub(super) fn is_chunked(&self) -> bool {
        self.chunks.is_some()
    }

    /// Whether the server closes after it.
    pub(super) fn closes(&self) -> bool {
        self.closes
    }

    /// Whether a byte of it has come.
    pub(super) fn has_begun(&self) -> bool {
        !self.head.is_empty() || self.body_left.is_some()
    }

    /// Takes bytes that had to be looked at. Gives how many of them were body.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, BadAnswer> {
        if self.is_chunked() {
            return self.take_chunks(bytes);
        }
        let searched = self.head.len().saturating_sub(3);
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        let Some(end) = self.head[searched..].windows(4).position(|four| four == b"\r\n\r\n") else {
            return if self.head.len() > MAX_HEAD_BYTES { Err(BadAnswer::HeadTooLong) } else { Ok(0) };
        };
        let end = searched + end + 4;
        let head = match self.until_close {
            true => Head { length: Some(any_length(&self.head[..end])?), closes: false },
            false => Head::of(&self.head[..end])?,
        };
        self.closes = head.closes;
        let body = before + bytes.len() - end;
        match head.length {
            Some(length) => {
                self.body_left = Some(length);
                self.skip(body)?;
                Ok(body)
            }
            None => {
                self.chunks = Some(Chunks::default());
                self.take_chunks(&bytes[bytes.len() - body..])
            }
        }
    }

    fn take_chunks(&mut self, bytes: &[u8]) -> Result<usize, BadAnswer> {
        let Some(chunks) = &mut self.chunks else { return Ok(0) };
        let body = chunks.take(bytes)?;
        if chunks.is_whole() {
            self.body_left = Some(0);
        }
        Ok(body)
    }

    /// Takes `bytes` more bytes of the body.
    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), BadAnswer> {
        if !self.until_close {
            self.body_left = Some(self.body_left.unwrap_or(0).checked_sub(bytes).ok_or(BadAnswer::Surplus)?);
        }
        Ok(())
    }

    /// Makes it ready for the next.
    pub(super) fn reset(&mut self) {
        self.head.clear();
        self.body_left = self.known_bytes;
        self.chunks = None;
        self.closes = false;
    }
}

/// No end but the connection's.
fn any_length(head: &[u8]) -> Result<usize, BadAnswer> {
    let head = String::from_utf8_lossy(head);
    let status: Option<u16> = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    match status {
        Some(200..=399) if head.starts_with("HTTP/1.") => Ok(usize::MAX),
        _ => Err(BadAnswer::Error),
    }
}

/// What an answer's head says of its body.
struct Head {
    /// None: it is in chunks.
    length: Option<usize>,
    closes: bool,
}

impl Head {
    fn of(bytes: &[u8]) -> Result<Self, BadAnswer> {
        let text = std::str::from_utf8(bytes).map_err(|_| BadAnswer::Status)?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        if status.len() != 3 || !status.starts_with('2') {
            return Err(BadAnswer::Status);
        }
        let (mut length, mut chunked, mut closes) = (None, false, false);
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().ok();
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.to_ascii_lowercase().ends_with("chunked");
            } else if name.eq_ignore_ascii_case("connection") {
                closes = value.eq_ignore_ascii_case("close");
            }
        }
        // RFC 9112, 6.3: these have none, and chunks override a length.
        let length = if matches!(status, "204" | "205") { Some(0) } else { length };
        if length.is_none() && !chunked {
            return Err(BadAnswer::Length);
        }
        Ok(Self { length: length.filter(|_| !chunked), closes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(pieces: &[&[u8]]) -> Result<Option<usize>, BadAnswer> {
        let mut answer = Answer::default();
        for piece in pieces {
            match answer.body_left() {
                None => {
                    answer.take(piece)?;
                }
                Some(_) => answer.skip(piece.len())?,
            }
        }
        Ok(answer.body_left())
    }

    #[test]
    fn answers() {
        let check = |pieces: &[&[u8]], expected| assert_eq!(feed(pieces), expected, "{pieces:?}");
        check(&[b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"], Ok(Some(0)));
        check(&[b"HTTP/1.1 200 OK\r\ncontent-length:3\r\n\r", b"\na"], Ok(Some(2)));
        check(&[b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"], Ok(None));
        check(&[b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"], Err(BadAnswer::Status));
        check(&[b"HTTP/1.1 200 OK\r\n\r\n"], Err(BadAnswer::Length));
        check(&[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab"], Err(BadAnswer::Surplus));
        check(&[&[b'x'; 3000]], Err(BadAnswer::HeadTooLong));
        check(&[b"HTTP/1.1 204 No Content\r\n\r\n"], Ok(Some(0)));
    }

    #[test]
    fn answers_in_chunks() {
        const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let check =
            |body: &[u8], expected| assert_eq!(feed(&[HEAD, body]), expected, "{:?}", body.escape_ascii().to_string());
        check(b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n", Ok(Some(0)));
        check(b"0\r\nTrailer: x\r\n\r\n", Ok(Some(0)));
        check(b"3\r\nabc\r\n", Ok(None));
        check(b"3\r\nabcd\r\n", Err(BadAnswer::Chunk));
        check(b"x\r\n", Err(BadAnswer::Chunk));
        check(b"0\r\n\r\n0", Err(BadAnswer::Surplus));
        check(&[b'1'; 3000], Err(BadAnswer::Chunk));
    }

    #[test]
    fn a_server_that_closes_says_so() {
        let mut answer = Answer::default();
        for (head, expected) in [("Connection: Close", true), ("Connection: keep-alive", false), ("X: y", false)] {
            answer.reset();
            answer
                .take(format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{head}\r\n\r\n").as_bytes())
                .expect("an answer");
            assert_eq!(answer.closes(), expected, "{head}");
        }
    }

    #[test]
    fn answers_that_end_with_their_connection() {
        let check = |text: &str, expected: Result<bool, BadAnswer>| {
            let mut answer = Answer::until_close();
            assert_eq!(answer.take(text.as_bytes()).map(|_| answer.ends_with_close()), expected, "{text}");
        };
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello", Ok(true));
        check("HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n", Ok(true));
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", Ok(false));
        check("HTTP/1.1 503 Busy\r\n\r\n", Err(BadAnswer::Error));
        check("SSH-2.0 200 x\r\n\r\n", Err(BadAnswer::Error));
    }

    proptest! {
        #[test]
        fn where_an_answer_is_cut_does_not_matter(body in 0_usize..200, cuts in prop::collection::vec(0_usize..260, 0..6)) {
            let mut whole = format!("HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: {body}\r\n\r\n").into_bytes();
            whole.extend(std::iter::repeat_n(b'b', body));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(whole.len())).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|ends| &whole[ends[0]..ends[1]]).collect();
            prop_assert_eq!(feed(&pieces), Ok(Some(0)));
        }

        #[test]
        fn where_chunks_are_cut_does_not_matter(sizes in prop::collection::vec(1_usize..40, 0..5), cuts in prop::collection::vec(0_usize..300, 0..6)) {
            let mut whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for size in sizes {
                whole.extend(format!("{size:x}\r\n{}\r\n", "b".repeat(size)).into_bytes());
            }
            whole.extend(b"0\r\n\r\n");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(whole.len())).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|ends| &whole[ends[0]..ends[1]]).collect();
            prop_assert_eq!(feed(&pieces), Ok(Some(0)));
        }
    }
}
