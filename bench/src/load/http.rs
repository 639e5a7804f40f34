//! The requests sent and how much of an answer has come; owns no socket.

/// A request's bytes.
pub(super) fn request(answer_bytes: usize, closes: bool) -> Vec<u8> {
    let connection = if closes { "Connection: close\r\n" } else { "" };
    format!("GET /{answer_bytes} HTTP/1.1\r\nHost: shard\r\n{connection}\r\n").into_bytes()
}

/// How much of one answer has come.
#[derive(Debug, Default)]
pub(super) struct Answer {
    head: Vec<u8>,
    body_left: Option<usize>,
}

/// Why bytes are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadAnswer {
    /// A head without end.
    #[error("the answer's head is longer than {MAX_HEAD_BYTES} bytes")]
    HeadTooLong,
    /// Another status.
    #[error("the answer's status is not 200")]
    Status,
    /// No length.
    #[error("the answer has no Content-Length")]
    Length,
    /// More than was asked for.
    #[error("bytes after the end of the answer")]
    Surplus,
}

/// An answer's head may not be longer.
const MAX_HEAD_BYTES: usize = 2048;

impl Answer {
    /// Bytes of the body that are still to come; None while the head is not whole.
    pub(super) fn body_left(&self) -> Option<usize> {
        self.body_left
    }

    /// Takes bytes that came while the head was not whole. Gives how many of them were body.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, BadAnswer> {
        let searched = self.head.len().saturating_sub(3);
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        let Some(end) = self.head[searched..].windows(4).position(|four| four == b"\r\n\r\n") else {
            return if self.head.len() > MAX_HEAD_BYTES { Err(BadAnswer::HeadTooLong) } else { Ok(0) };
        };
        let end = searched + end + 4;
        let length = content_length(&self.head[..end])?;
        let body = before + bytes.len() - end;
        self.body_left = Some(length);
        self.skip(body)?;
        Ok(body)
    }

    /// Takes `bytes` more bytes of the body.
    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), BadAnswer> {
        let left = self.body_left.unwrap_or(0).checked_sub(bytes).ok_or(BadAnswer::Surplus)?;
        self.body_left = Some(left);
        Ok(())
    }

    /// Makes it ready for the next.
    pub(super) fn reset(&mut self) {
        self.head.clear();
        self.body_left = None;
    }
}

fn content_length(head: &[u8]) -> Result<usize, BadAnswer> {
    let head = std::str::from_utf8(head).map_err(|_| BadAnswer::Status)?;
    let mut lines = head.split("\r\n");
    if lines.next().and_then(|line| line.split(' ').nth(1)) != Some("200") {
        return Err(BadAnswer::Status);
    }
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or(BadAnswer::Length)
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
    }
}
