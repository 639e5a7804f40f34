//! A body in chunks (RFC 9112, 7.1) and how much of it has come; owns no socket and keeps no byte of the body.

use super::{BadAnswer, MAX_HEAD_BYTES};

/// Where in the chunks the next byte is.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    expects: Expects,
    line: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Expects {
    #[default]
    Size,
    Data(usize),
    DataEnd,
    Trailer,
    Nothing,
}

impl Chunks {
    /// Whether the last one has come.
    pub(super) fn is_whole(&self) -> bool {
        self.expects == Expects::Nothing
    }

    /// Takes the next bytes; gives how many of them were body.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Result<usize, BadAnswer> {
        let mut body = 0;
        while !bytes.is_empty() {
            match self.expects {
                Expects::Nothing => return Err(BadAnswer::Surplus),
                Expects::Data(left) => {
                    let count = left.min(bytes.len());
                    bytes = &bytes[count..];
                    body += count;
                    self.expects = if count == left { Expects::DataEnd } else { Expects::Data(left - count) };
                }
                Expects::Size | Expects::DataEnd | Expects::Trailer => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let (of_line, after) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
                    self.line.extend_from_slice(of_line);
                    bytes = after;
                    if self.line.len() > MAX_HEAD_BYTES {
                        return Err(BadAnswer::Chunk);
                    }
                    if end.is_some() {
                        self.expects = self.end_line()?;
                        self.line.clear();
                    }
                }
            }
        }
        Ok(body)
    }

    /// What follows the line that has just ended.
    fn end_line(&self) -> Result<Expects, BadAnswer> {
        let line = std::str::from_utf8(&self.line).map_err(|_| BadAnswer::Chunk)?.trim_end();
        match self.expects {
            Expects::DataEnd if line.is_empty() => Ok(Expects::Size),
            Expects::Trailer if line.is_empty() => Ok(Expects::Nothing),
            Expects::Trailer => Ok(Expects::Trailer),
            Expects::Size => {
                let digits = line.split(';').next().unwrap_or_default().trim_end();
                match usize::from_str_radix(digits, 16) {
                    Ok(0) => Ok(Expects::Trailer),
                    Ok(bytes) => Ok(Expects::Data(bytes)),
                    Err(_) => Err(BadAnswer::Chunk),
                }
            }
            _ => Err(BadAnswer::Chunk),
        }
    }
}
