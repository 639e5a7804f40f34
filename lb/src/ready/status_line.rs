//! The status of an HTTP/1 answer, from as much of it as has come. Pure.

/// What came can't become an HTTP/1 status line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotHttp;

/// `HTTP/1.0 ` or `HTTP/1.1 `, then three digits, then a space or the end of the line (RFC 9112, section 4).
const PATTERN: [Expected; 13] = [
    Expected::Byte(b'H'),
    Expected::Byte(b'T'),
    Expected::Byte(b'T'),
    Expected::Byte(b'P'),
    Expected::Byte(b'/'),
    Expected::Byte(b'1'),
    Expected::Byte(b'.'),
    Expected::Digit,
    Expected::Byte(b' '),
    Expected::Digit,
    Expected::Digit,
    Expected::Digit,
    Expected::End,
];

#[derive(Clone, Copy)]
enum Expected {
    Byte(u8),
    Digit,
    End,
}

/// The status; `None` while more has to come.
pub(super) fn parse(answer: &[u8]) -> Result<Option<u16>, NotHttp> {
    for (byte, expected) in answer.iter().zip(PATTERN) {
        let fits = match expected {
            Expected::Byte(wanted) => *byte == wanted,
            Expected::Digit => byte.is_ascii_digit(),
            Expected::End => matches!(byte, b' ' | b'\r' | b'\n'),
        };
        if !fits {
            return Err(NotHttp);
        }
    }
    if answer.len() < PATTERN.len() {
        return Ok(None);
    }
    Ok(Some(answer[9..12].iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_status_line_gives_its_status() {
        let check = |answer: &str, expected| assert_eq!(parse(answer.as_bytes()), expected, "{answer:?}");
        check("HTTP/1.1 200 OK\r\n", Ok(Some(200)));
        check("HTTP/1.0 503\r\n", Ok(Some(503)));
        check("HTTP/1.1 204 ", Ok(Some(204)));
        check("HTTP/1.1 200", Ok(None));
        check("", Ok(None));
        check("HTTP/2 200", Err(NotHttp));
        check("HTTP/1.1 2000", Err(NotHttp));
        check("SSH-2.0-OpenSSH_9.2", Err(NotHttp));
        check("-ERR unknown command", Err(NotHttp));
    }

    proptest! {
        #[test]
        fn the_verdict_on_a_part_holds_for_the_whole(status in 100..1000u16, rest in "[ -~]{0,40}", cut in 0..60usize) {
            let answer = format!("HTTP/1.1 {status} {rest}\r\n");
            let part = &answer.as_bytes()[..cut.min(answer.len())];
            prop_assert!(matches!(parse(part), Ok(None)) || parse(part) == Ok(Some(status)));
            prop_assert_eq!(parse(answer.as_bytes()), Ok(Some(status)));
        }

        #[test]
        fn nothing_that_comes_panics(answer in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&answer);
        }
    }
}
