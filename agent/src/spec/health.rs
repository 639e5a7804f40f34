//! How a group's shards are judged, as checked values: what is asked of each, what their connections tell, and how many
//! may be out of service for that at once. Asks nobody.

use std::{fmt, str::FromStr, time::Duration};

use regex::bytes::{Regex, RegexBuilder};

use super::ContainerPort;

/// Memory that a compiled pattern may take.
const PATTERN_MAX_BYTES: usize = 1 << 20;

/// When a shard counts as ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// What is asked of it.
    pub check: Check,
    /// Which container port is asked; absent: TCP asks every published port, HTTP the first.
    pub port: Option<ContainerPort>,
    /// Time from one check to the next, give or take a tenth.
    pub interval: Duration,
    /// How long an answer may take, all of it.
    pub timeout: Duration,
    /// Successes in a row until it is ready; at least 1.
    pub rise: u32,
    /// Failures in a row until it is unready; at least 1.
    pub fall: u32,
    /// How long a new shard's failures don't count, and neither does the time. Its first success ends it.
    pub start_period: Duration,
    /// How long a new shard has from then on until its first success; then it is restarted.
    pub start_timeout: Duration,
}

impl Readiness {
    /// What holds for `check` when a specification says nothing else.
    pub fn of(check: Check) -> Self {
        // A process in the container each time costs more than a connection.
        let (interval, timeout) = match check {
            Check::Command(_) => (Duration::from_secs(10), Duration::from_secs(5)),
            Check::Tcp | Check::Http(_) | Check::Image => (Duration::from_secs(1), Duration::from_secs(1)),
        };
        // The engine has counted already.
        let fall = if check == Check::Image { 1 } else { 3 };
        Self {
            check,
            port: None,
            interval,
            timeout,
            rise: 1,
            fall,
            start_period: Duration::ZERO,
            start_timeout: Duration::from_secs(60),
        }
    }

    /// How long a new shard has until its first success.
    pub fn patience(&self) -> Duration {
        self.start_period + self.start_timeout
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::of(Check::Tcp)
    }
}

/// What a readiness check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// The port accepts a connection.
    Tcp,
    /// A request is answered as expected.
    Http(HttpCheck),
    /// This program and its arguments, run where the shard runs, end with exit code 0. Never empty.
    Command(Vec<String>),
    /// The engine says that the container is healthy, by its image's HEALTHCHECK. Never for a process.
    Image,
}

impl Check {
    /// Its name in a specification.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http(_) => "http",
            Self::Command(_) => "command",
            Self::Image => "image",
        }
    }
}

/// A request, and what a ready shard answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// One of [`METHODS`].
    pub method: &'static str,
    /// Request target, starting with `/`.
    pub path: String,
    /// Host header; the shard's address when absent.
    pub host: Option<String>,
    /// Good statuses as ranges, both ends included; never empty.
    pub status: Vec<(u16, u16)>,
    /// What the answer's body has to have; absent: it doesn't matter.
    pub body: Option<BodyMatch>,
}

/// Methods of a check's request: those that need no body.
pub const METHODS: [&str; 4] = ["GET", "HEAD", "OPTIONS", "POST"];
/// Statuses that are good when a specification doesn't say.
pub(super) const DEFAULT_STATUS: (u16, u16) = (200, 399);

/// What an answer's body has to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyMatch {
    /// This text.
    Contains(String),
    /// Something that this matches.
    Matches(Pattern),
}

impl BodyMatch {
    /// Whether `body` has it.
    pub fn is_in(&self, body: &[u8]) -> bool {
        match self {
            Self::Contains(text) => body.windows(text.len()).any(|part| part == text.as_bytes()),
            Self::Matches(pattern) => pattern.0.is_match(body),
        }
    }
}

/// A regular expression that compiles, of the syntax of the `regex` crate. Matching takes time in proportion to the text.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let compiled = RegexBuilder::new(text).size_limit(PATTERN_MAX_BYTES).build();
        // Its own message draws a picture of several lines; the last one says what is wrong.
        let reason = |error: regex::Error| error.to_string().lines().last().unwrap_or_default().to_owned();
        compiled.map(Self).map_err(|error| format!("is no regular expression: {}", reason(error)))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

/// What follows for the group from how its shards are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthPolicy {
    /// Which failures of connections take a shard out of service.
    pub observe: Observe,
    /// Failures in a row that do; at least 1.
    pub eject_after: u32,
    /// Failures per hundred connections of ten seconds that do, from [`eject_min`](Self::eject_min) connections on.
    pub eject_rate: u32,
    /// Connections of ten seconds below which the rate says nothing; at least 1.
    pub eject_min: u32,
    /// How long the first time lasts; each further one doubles it.
    pub eject_time: Duration,
    /// The longest.
    pub eject_time_max: Duration,
    /// Shards per hundred that may be out of service for their health at once; at least one stays in.
    pub max_ejected_percent: u32,
    /// How long a shard that comes into service takes to get its whole share; zero: none.
    pub slow_start: Duration,
    /// How long a shard may stay paused by somebody until the agent lets it go on; absent: for ever.
    pub unpause_after: Option<Duration>,
}

impl Default for HealthPolicy {
    fn default() -> Self {
        Self {
            observe: Observe::Off,
            eject_after: 5,
            eject_rate: 50,
            eject_min: 20,
            eject_time: Duration::from_secs(10),
            eject_time_max: Duration::from_secs(300),
            max_ejected_percent: 50,
            slow_start: Duration::ZERO,
            unpause_after: Some(Duration::from_secs(60)),
        }
    }
}

/// Which failures of clients' connections count against a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observe {
    /// None: checks alone decide.
    Off,
    /// Those that it doesn't take.
    Connect,
    /// Those too that it takes and ends before a byte of an answer.
    Answer,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_what_it_has() {
        let check =
            |wanted: BodyMatch, body: &str, expected| assert_eq!(wanted.is_in(body.as_bytes()), expected, "{body}");
        let text = || BodyMatch::Contains("ok".to_owned());
        let pattern = || BodyMatch::Matches("(?i)^status: *up$".parse().unwrap());
        check(text(), "it is ok", true);
        check(text(), "o", false);
        check(text(), "", false);
        check(pattern(), "Status:  UP", true);
        check(pattern(), "Status:  UP and away", false);
    }

    #[test]
    fn patterns_that_are_none_or_too_large_are_refused() {
        let reason = |text: &str| text.parse::<Pattern>().expect_err(text);
        assert!(reason("(").contains("unclosed group"), "{}", reason("("));
        assert!(reason("\\w{1000}{1000}").contains("size limit"), "{}", reason("\\w{1000}{1000}"));
    }
}
