//! The holder's protocol: frames of a header of 8 bytes and a short body, and what names may look like.

/// Bytes of a name, at most.
pub(super) const MAX_NAME: usize = 200;

/// Bytes of a body, at most: a name, or an error's text.
pub(super) const MAX_BODY: usize = 512;

/// First bytes of each frame, so that a stranger is told apart at once.
const TAG: [u8; 2] = *b"SH";

/// Raised by an incompatible change. A holder outlives agents, so a new agent meets old ones.
pub(super) const PROTOCOL: u8 = 1;

pub(super) const HEADER: usize = 8;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Requests. The body is a name, or a prefix.
    Ping = 1,
    Put = 2,
    List = 3,
    Get = 4,
    GetPrefix = 5,
    Remove = 6,
    RemovePrefix = 7,
    /// As Put, but for a while: the body is seconds (32 bits, little-endian) and the name. A holder of a version without it
    /// answers Malformed and cuts the client off.
    PutFor = 8,
    /// Answers: any number of items (the body is a name, with its descriptor if that was asked for), then one of the rest.
    Item = 128,
    /// The body is the program's version for Ping, else empty.
    Done = 129,
    /// The body is for a person.
    NotFound = 130,
    Full = 131,
    Malformed = 132,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::Ping,
        Kind::Put,
        Kind::List,
        Kind::Get,
        Kind::GetPrefix,
        Kind::Remove,
        Kind::RemovePrefix,
        Kind::PutFor,
        Kind::Item,
        Kind::Done,
        Kind::NotFound,
        Kind::Full,
        Kind::Malformed,
    ];
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadFrame {
    /// Not our protocol at all.
    Tag,
    /// Our protocol, another version.
    Protocol(u8),
    /// A kind that this version does not have, or a body that is too long.
    Header,
}

/// A frame's bytes. The body is cut at [`MAX_BODY`].
pub(super) fn frame(kind: Kind, body: &[u8]) -> Vec<u8> {
    let body = &body[..body.len().min(MAX_BODY)];
    let [low, high] = (body.len() as u16).to_le_bytes();
    let mut bytes = vec![TAG[0], TAG[1], PROTOCOL, kind as u8, low, high, 0, 0];
    bytes.extend(body);
    bytes
}

/// Bytes still to come of the frame that begins with `bytes`, as far as can be told: of its header first.
pub(super) fn missing(bytes: &[u8]) -> usize {
    let len = match bytes {
        [_, _, _, _, low, high, _, _, ..] => HEADER + usize::from(u16::from_le_bytes([*low, *high])),
        _ => HEADER,
    };
    len.saturating_sub(bytes.len())
}

/// The first frame of `bytes`; None while more bytes are needed.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Kind, &[u8])>, BadFrame> {
    if !bytes.iter().zip(TAG).all(|(byte, tag)| *byte == tag) {
        return Err(BadFrame::Tag);
    }
    match bytes {
        [_, _, protocol, ..] if *protocol != PROTOCOL => Err(BadFrame::Protocol(*protocol)),
        [_, _, _, kind, low, high, _, _, rest @ ..] => {
            let len = usize::from(u16::from_le_bytes([*low, *high]));
            let kind = Kind::ALL.into_iter().find(|known| *known as u8 == *kind).ok_or(BadFrame::Header)?;
            if len > MAX_BODY {
                return Err(BadFrame::Header);
            }
            Ok(rest.get(..len).map(|body| (kind, body)))
        }
        _ => Ok(None),
    }
}

/// The name, if it may be one: 1 to [`MAX_NAME`] visible ASCII characters.
pub(super) fn name(bytes: &[u8]) -> Option<&str> {
    let fine = (1..=MAX_NAME).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    if fine { std::str::from_utf8(bytes).ok() } else { None }
}

/// The body of [`Kind::PutFor`].
pub(super) fn put_for(seconds: u32, name: &str) -> Vec<u8> {
    [&seconds.to_le_bytes()[..], name.as_bytes()].concat()
}

/// The seconds and the name of a [`Kind::PutFor`].
pub(super) fn seconds_and_name(body: &[u8]) -> Option<(u32, &str)> {
    let (seconds, rest) = body.split_first_chunk()?;
    Some((u32::from_le_bytes(*seconds), name(rest)?))
}

/// A prefix of names; empty is the prefix of all.
pub(super) fn prefix(bytes: &[u8]) -> Option<&str> {
    if bytes.is_empty() { Some("") } else { name(bytes) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_are_read_as_written(kind in 0usize..13, body in prop::collection::vec(any::<u8>(), 0..=MAX_BODY), more in 0usize..20) {
            let kind = Kind::ALL[kind];
            let mut bytes = frame(kind, &body);
            let len = bytes.len();
            for cut in 0..len {
                prop_assert_eq!(parse(&bytes[..cut]), Ok(None));
                let wanted = if cut < HEADER { HEADER } else { len };
                prop_assert_eq!(missing(&bytes[..cut]), wanted - cut);
            }
            bytes.extend(vec![0; more]);
            prop_assert_eq!(missing(&bytes), 0);
            prop_assert_eq!(parse(&bytes), Ok(Some((kind, &body[..]))));
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
            let _ = (name(&bytes), seconds_and_name(&bytes));
        }
    }

    #[test]
    fn strangers_are_told_apart() {
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Err(BadFrame::Tag));
        assert_eq!(parse(b"SH\x02"), Err(BadFrame::Protocol(2)));
        assert_eq!(parse(b"SH\x01\x63\0\0\0\0"), Err(BadFrame::Header));
        assert_eq!(parse(b"SH\x01\x01\xff\xff\0\0"), Err(BadFrame::Header));
        assert_eq!((name(b""), name(b"a b"), name(&[b'a'; 201]), name(b"web/80")), (None, None, None, Some("web/80")));
    }
}
