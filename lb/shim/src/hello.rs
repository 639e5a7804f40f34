//! The shim's protocol: one hello of 16 bytes, with the notify descriptor on it, and one byte back. Values only.

/// Bytes of a hello.
pub const LEN: usize = 16;

/// Raised by an incompatible change. A shim is as old as its container, so a new agent meets old ones.
pub const VERSION: u32 = 1;

/// First bytes of each hello, so that a stranger is told apart at once.
const MAGIC: [u8; 8] = *b"sherdshm";

/// The kernel's MAX_ERRNO (include/linux/err.h).
const MAX_ERRNO: u32 = 4095;

/// What a shim says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hello {
    /// listen(2) of the program to come is trapped; the notify descriptor is on this message.
    Trapped,
    /// It is not, and never will be: the program is served on the relay path.
    Untrapped {
        /// What seccomp(2) said. EINVAL: the kernel is older than 5.19. EBUSY: another filter has the listener.
        errno: u32,
    },
}

/// What the broker says to it. A connection closed without one means: connect again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// Execute the program.
    Go = b'g',
    /// Don't.
    Refuse = b'x',
}

/// Why bytes are no hello. Whoever is in the container can send anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHello {
    /// Not our protocol at all.
    #[error("the first bytes are not a shim's")]
    Magic,
    /// Our protocol, another version.
    #[error("version {0}, this agent knows {VERSION}")]
    Version(u32),
    /// A status that is no errno.
    #[error("status {0} is no errno")]
    Status(u32),
    /// A trapped program has one notify descriptor, any other has none.
    #[error("{found} descriptors instead of {expected}")]
    Descriptors {
        /// What its status calls for.
        expected: usize,
        /// What came.
        found: usize,
    },
}

impl Hello {
    /// The bytes to send.
    pub fn encode(self) -> [u8; LEN] {
        let status = match self {
            Hello::Trapped => 0,
            Hello::Untrapped { errno } => errno,
        };
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..].copy_from_slice(&status.to_le_bytes());
        bytes
    }

    /// The hello in `bytes`, which came with `descriptors` descriptors.
    pub fn decode(bytes: &[u8; LEN], descriptors: usize) -> Result<Hello, BadHello> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..8] != MAGIC {
            return Err(BadHello::Magic);
        }
        if word(8) != VERSION {
            return Err(BadHello::Version(word(8)));
        }
        let (hello, expected) = match word(12) {
            0 => (Hello::Trapped, 1),
            errno @ 1..=MAX_ERRNO => (Hello::Untrapped { errno }, 0),
            status => return Err(BadHello::Status(status)),
        };
        if descriptors != expected {
            return Err(BadHello::Descriptors { expected, found: descriptors });
        }
        Ok(hello)
    }
}

impl Answer {
    /// The byte to send.
    pub fn to_byte(self) -> u8 {
        self as u8
    }

    /// The answer that `byte` is.
    pub fn from_byte(byte: u8) -> Option<Answer> {
        [Answer::Go, Answer::Refuse].into_iter().find(|answer| answer.to_byte() == byte)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes: [u8; LEN], descriptors in 0usize..4) {
            prop_assert_eq!(Hello::decode(&bytes, descriptors), Err(BadHello::Magic));
        }

        #[test]
        fn what_is_read_is_what_was_written(version in 0u32..3, status in 0u32..5000, descriptors in 0usize..4) {
            let mut bytes = Hello::Trapped.encode();
            bytes[8..12].copy_from_slice(&version.to_le_bytes());
            bytes[12..].copy_from_slice(&status.to_le_bytes());
            if let Ok(hello) = Hello::decode(&bytes, descriptors) {
                prop_assert_eq!(hello.encode(), bytes);
            }
        }
    }

    #[test]
    fn hellos_on_the_wire() {
        let check = |bytes: &[u8; LEN], descriptors, expected| {
            assert_eq!(Hello::decode(bytes, descriptors), expected, "{bytes:?} with {descriptors}");
        };
        let busy = Hello::Untrapped { errno: 16 };
        check(b"sherdshm\x01\0\0\0\0\0\0\0", 1, Ok(Hello::Trapped));
        check(b"sherdshm\x01\0\0\0\x10\0\0\0", 0, Ok(busy));
        check(b"sherdshm\x01\0\0\0\xff\x0f\0\0", 0, Ok(Hello::Untrapped { errno: 4095 }));
        check(b"sherdshm\x01\0\0\0\0\x10\0\0", 0, Err(BadHello::Status(4096)));
        check(b"sherdshm\x01\0\0\0\0\0\0\x80", 0, Err(BadHello::Status(1 << 31)));
        check(b"sherdshm\x01\0\0\0\0\0\0\0", 0, Err(BadHello::Descriptors { expected: 1, found: 0 }));
        check(b"sherdshm\x01\0\0\0\0\0\0\0", 2, Err(BadHello::Descriptors { expected: 1, found: 2 }));
        check(b"sherdshm\x01\0\0\0\x10\0\0\0", 1, Err(BadHello::Descriptors { expected: 0, found: 1 }));
        check(b"sherdshm\0\0\0\x01\0\0\0\0", 1, Err(BadHello::Version(1 << 24)));
        check(b"GET / HTTP/1.1\r\n", 0, Err(BadHello::Magic));
        assert_eq!(Hello::Trapped.encode(), *b"sherdshm\x01\0\0\0\0\0\0\0");
        assert_eq!(busy.encode(), *b"sherdshm\x01\0\0\0\x10\0\0\0");
    }

    #[test]
    fn answers_on_the_wire() {
        let answers: Vec<_> = (0..=u8::MAX).filter_map(|byte| Some((byte, Answer::from_byte(byte)?))).collect();
        assert_eq!(answers, [(b'g', Answer::Go), (b'x', Answer::Refuse)]);
    }
}
