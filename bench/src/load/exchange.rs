//! One request and its answer on a connection that is kept, within a time; waits, and owns no connection.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::{Reached, http::Answer};

const READ_BYTES: usize = 16 << 10;
/// A time-out of zero would be none at all.
const SHORTEST: Duration = Duration::from_millis(1);

/// Sends `request` and waits for its answer; `reached` says how far it came, also when it failed.
pub(super) fn exchange(
    stream: &mut TcpStream,
    request: &[u8],
    patience: Duration,
    reached: &mut Reached,
) -> io::Result<Answer> {
    let asked = Instant::now();
    *reached = Reached::Asked;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(request)?;
    let mut answer = Answer::default();
    let mut buffer = [0; READ_BYTES];
    while answer.body_left() != Some(0) {
        let left = (asked + patience).saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(SHORTEST)))?;
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the answer was whole")),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let words = format!("unanswered for {} s", patience.as_secs_f64());
                return Err(io::Error::new(io::ErrorKind::TimedOut, words));
            }
            Err(error) => return Err(error),
        };
        *reached = Reached::PartlyAnswered;
        let taken = match answer.body_left() {
            None => answer.take(&buffer[..count]).map(|_| ()),
            Some(_) => answer.skip(count),
        };
        taken.map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))?;
    }
    *reached = Reached::Answered;
    Ok(answer)
}
