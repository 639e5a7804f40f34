//! An HTTP/1 answer, from as much of it as has come: its status, its body, and whether that is all. Pure.

use std::borrow::Cow;

use super::status_line::{self, NotHttp};

/// What is known of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// Its head is still to come; the status may be there.
    Head { status: Option<u16> },
    /// Its head is whole.
    Body {
        status: u16,
        /// What has come of it, without the framing of chunks.
        body: Cow<'a, [u8]>,
        /// No more will come.
        whole: bool,
    },
}

/// Where a body ends (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    /// With the connection.
    Close,
}

/// Reads `received`. `without_body`: the request was a HEAD, whose answer has none.
pub(super) fn parse(received: &[u8], without_body: bool) -> Result<Answer<'_>, NotHttp> {
    let mut rest = received;
    loop {
        let Some(status) = status_line::parse(rest)? else { return Ok(Answer::Head { status: None }) };
        let Some((framing, body)) = head(rest)? else { return Ok(Answer::Head { status: Some(status) }) };
        // Interim answers come before the one that counts (RFC 9110, section 15.2); after 101 it is HTTP no longer.
        if (100..=199).contains(&status) && status != 101 {
            rest = body;
            continue;
        }
        let none = without_body || matches!(status, 101 | 204 | 304);
        let framing = if none { Framing::Length(0) } else { framing };
        let (body, whole) = unframed(body, framing)?;
        return Ok(Answer::Body { status, body, whole });
    }
}

/// How the body is framed, and what has come behind the head; `None` while that isn't whole.
fn head(received: &[u8]) -> Result<Option<(Framing, &[u8])>, NotHttp> {
    let mut framing = Framing::Close;
    let (_, mut rest) = split_line(received).unwrap_or((received, &[]));
    while let Some((line, behind)) = split_line(rest) {
        rest = behind;
        if line.is_empty() {
            return Ok(Some((framing, rest)));
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(NotHttp)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") && value.to_ascii_lowercase().ends_with(b"chunked") {
            framing = Framing::Chunked;
        } else if name.eq_ignore_ascii_case(b"content-length") && framing != Framing::Chunked {
            framing = Framing::Length(number(value, 10)?);
        }
    }
    Ok(None)
}

fn unframed(received: &[u8], framing: Framing) -> Result<(Cow<'_, [u8]>, bool), NotHttp> {
    match framing {
        Framing::Close => Ok((received.into(), false)),
        Framing::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            Ok((received[..length.min(received.len())].into(), received.len() >= length))
        }
        Framing::Chunked => chunks(received).map(|(body, whole)| (body.into(), whole)),
    }
}

/// RFC 9112, section 7.1; trailers are left alone.
fn chunks(received: &[u8]) -> Result<(Vec<u8>, bool), NotHttp> {
    let (mut body, mut rest) = (Vec::new(), received);
    while let Some((line, data)) = split_line(rest) {
        let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let size = usize::try_from(number(size, 16)?).unwrap_or(usize::MAX);
        if size == 0 {
            return Ok((body, true));
        }
        let (chunk, behind) = data.split_at(size.min(data.len()));
        body.extend(chunk);
        match behind {
            [b'\r', b'\n', next @ ..] | [b'\n', next @ ..] => rest = next,
            [] | [b'\r'] => break,
            _ => return Err(NotHttp),
        }
    }
    Ok((body, false))
}

/// The first line without its end, and what is behind it; `None` while it isn't whole. A bare LF ends one too
/// (RFC 9112, section 2.2).
fn split_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let line = &text[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &text[end + 1..]))
}

fn number(text: &[u8], radix: u32) -> Result<u64, NotHttp> {
    let text = std::str::from_utf8(text).map_err(|_| NotHttp)?;
    // from_str_radix takes a sign, and HTTP has none.
    let digits = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    u64::from_str_radix(text, radix).ok().filter(|_| digits).ok_or(NotHttp)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(received: &str, expected: &Result<Answer<'_>, NotHttp>) {
        assert_eq!(parse(received.as_bytes(), false), *expected, "{received:?}");
    }

    fn body(status: u16, body: &str, whole: bool) -> Result<Answer<'static>, NotHttp> {
        Ok(Answer::Body { status, body: body.as_bytes().to_vec().into(), whole })
    }

    #[test]
    fn bodies_end_where_their_head_says() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOKmore", &body(200, "OK", true));
        check("HTTP/1.1 200 OK\r\ncontent-length:3\r\n\r\nOK", &body(200, "OK", false));
        check("HTTP/1.0 200 OK\r\n\r\nOK", &body(200, "OK", false));
        check("HTTP/1.0 200 OK\n\nOK", &body(200, "OK", false));
        check("HTTP/1.1 204 No Content\r\n\r\n", &body(204, "", true));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\nContent-Length: 1\r\n\r\n";
        check(&format!("{chunked}1\r\nO\r\n1;x=y\r\nK\r\n0\r\n\r\n"), &body(200, "OK", true));
        check(&format!("{chunked}f\r\nO"), &body(200, "O", false));
        check(&format!("{chunked}1\r\nOK"), &Err(NotHttp));
        check(&format!("{chunked}+1\r\nO"), &Err(NotHttp));
    }

    #[test]
    fn a_head_is_waited_for() {
        check("", &Ok(Answer::Head { status: None }));
        check("HTTP/1.1 200 OK\r\nX: y\r\n", &Ok(Answer::Head { status: Some(200) }));
        check("HTTP/1.1 200 OK\r\nnonsense\r\n", &Err(NotHttp));
        check("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", &Err(NotHttp));
    }

    #[test]
    fn interim_answers_are_passed_over() {
        check("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", &Ok(Answer::Head { status: None }));
        check("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", &body(200, "", true));
        check("HTTP/1.1 101 Switching Protocols\r\n\r\n\x00", &body(101, "", true));
    }

    #[test]
    fn the_answer_to_head_has_no_body() {
        let received = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(parse(received, true), body(200, "", true));
    }

    proptest! {
        #[test]
        fn nothing_that_comes_panics(received in prop::collection::vec(any::<u8>(), 0..200), head in any::<bool>()) {
            let _ = parse(&received, head);
            let behind = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(), &received].concat();
            let _ = parse(&behind, head);
        }

        /// What was judged of a part holds for the whole: the body only grows, and a fault or an end stays.
        #[test]
        fn a_part_is_never_contradicted(text in "[ -~]{0,40}", chunk in 1..9usize, cut in any::<prop::sample::Index>()) {
            let chunks: String = text.as_bytes().chunks(chunk)
                .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk))).collect();
            let whole = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n").into_bytes();
            prop_assert_eq!(parse(&whole, false), body(200, &text, true));
            match parse(&whole[..cut.index(whole.len())], false) {
                Ok(Answer::Head { status }) => prop_assert!(matches!(status, None | Some(200))),
                Ok(Answer::Body { status, body, .. }) => {
                    prop_assert_eq!(status, 200);
                    prop_assert!(text.as_bytes().starts_with(&body));
                }
                Err(fault) => prop_assert!(false, "{:?}", fault),
            }
        }
    }
}
