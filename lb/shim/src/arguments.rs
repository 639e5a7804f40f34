//! The command line -> what to do. Pure. No clap: it would be larger than the rest of the shim.

use std::{ffi::CStr, time::Duration};

/// How long the agent may take if nothing is said: a restart of its unit fits in.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// A checked command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Order<'a> {
    /// Where the agent's broker listens.
    pub(crate) socket: &'a CStr,
    /// How long it may take to answer.
    pub(crate) wait: Duration,
    /// The program and its arguments; never empty.
    pub(crate) command: &'a [&'a CStr],
}

/// Why a command line is none. Only a wrong agent or a curious person gets here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("option {0:?} is unknown; {USAGE}")]
    UnknownOption(String),
    #[error("{0} needs a value; {USAGE}")]
    MissingValue(&'static str),
    #[error("--wait {0:?} is no whole number of seconds; {USAGE}")]
    Wait(String),
    #[error("--socket is missing; {USAGE}")]
    NoSocket,
    #[error("the program is missing; {USAGE}")]
    NoProgram,
}

const USAGE: &str = "usage: sherd-shim --socket PATH [--wait SECONDS] [--] PROGRAM [ARG...]";

/// Reads the words after the shim's own name.
pub(crate) fn parse<'a>(words: &'a [&'a CStr]) -> Result<Order<'a>, UsageError> {
    let mut rest = words.get(1..).unwrap_or_default();
    let (mut socket, mut wait) = (None, DEFAULT_WAIT);
    while let Some((word, after)) = rest.split_first().filter(|(word, _)| word.to_bytes().starts_with(b"-")) {
        rest = after;
        match word.to_bytes() {
            b"--" => break,
            b"--socket" => socket = Some(value("--socket", &mut rest)?),
            b"--wait" => wait = seconds(value("--wait", &mut rest)?)?,
            _ => return Err(UsageError::UnknownOption(word.to_string_lossy().into_owned())),
        }
    }
    if rest.is_empty() {
        return Err(UsageError::NoProgram);
    }
    Ok(Order { socket: socket.ok_or(UsageError::NoSocket)?, wait, command: rest })
}

fn value<'a>(option: &'static str, rest: &mut &'a [&'a CStr]) -> Result<&'a CStr, UsageError> {
    let (value, after) = rest.split_first().ok_or(UsageError::MissingValue(option))?;
    *rest = after;
    Ok(value)
}

fn seconds(word: &CStr) -> Result<Duration, UsageError> {
    let seconds = word.to_str().ok().and_then(|word| word.parse::<u32>().ok());
    let seconds = seconds.ok_or_else(|| UsageError::Wait(word.to_string_lossy().into_owned()))?;
    Ok(Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(words: &[&CStr], expected: Result<(&CStr, u64, usize), UsageError>) {
        let all = [&[c"sherd-shim"], words].concat();
        let expected = expected.map(|(socket, wait, from)| Order {
            socket,
            wait: Duration::from_secs(wait),
            command: &words[from..],
        });
        assert_eq!(parse(&all), expected, "{words:?}");
    }

    #[test]
    fn options_end_where_the_program_begins() {
        check(&[c"--socket", c"/s", c"nginx"], Ok((c"/s", 10, 2)));
        check(&[c"--socket", c"/s", c"--wait", c"3", c"nginx", c"-g", c"--wait"], Ok((c"/s", 3, 4)));
        check(&[c"--wait", c"0", c"--socket", c"/s", c"--", c"--odd", c"--"], Ok((c"/s", 0, 5)));
        check(&[c"--socket", c"/s", c"", c"a"], Ok((c"/s", 10, 2)));
        check(&[c"--socket", c"/s", c"\xff"], Ok((c"/s", 10, 2)));
    }

    #[test]
    fn faults_are_named() {
        check(&[], Err(UsageError::NoProgram));
        check(&[c"--socket", c"/s", c"--"], Err(UsageError::NoProgram));
        check(&[c"nginx"], Err(UsageError::NoSocket));
        check(&[c"--", c"nginx"], Err(UsageError::NoSocket));
        check(&[c"--socket"], Err(UsageError::MissingValue("--socket")));
        check(&[c"--socket", c"/s", c"--wait"], Err(UsageError::MissingValue("--wait")));
        check(&[c"--socket", c"/s", c"--wait", c"-1", c"nginx"], Err(UsageError::Wait("-1".into())));
        check(&[c"--socket", c"/s", c"--wait", c"4294967296", c"nginx"], Err(UsageError::Wait("4294967296".into())));
        check(&[c"-s", c"/s", c"nginx"], Err(UsageError::UnknownOption("-s".into())));
        assert_eq!(parse(&[]), Err(UsageError::NoProgram));
    }
}
