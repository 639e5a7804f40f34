//! Durations and sizes as an operator writes them, `1m30s` and `512MiB`; both are printed so that they are read back equal.

use std::time::Duration;

use thiserror::Error;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a duration: write a number with a unit (ms, s, m, h), for example `10s` or `1m30s`")]
pub struct DurationError {
    text: String,
}

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a size: write a whole number with a unit (B, KiB, MiB, GiB, TiB), for example `512MiB`")]
pub struct BytesError {
    text: String,
}

/// Largest first, so that printing takes the largest units that fit.
const DURATION_UNITS: [(&str, u128); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

const BYTE_UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads one or more whole numbers with units, added together.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError { text: text.to_owned() };
    let mut nanos: u128 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() {
        let (number, unit, after) = leading(rest).ok_or_else(error)?;
        let (_, scale) = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
        nanos = u128::from(number).checked_mul(*scale).and_then(|part| nanos.checked_add(part)).ok_or_else(error)?;
        rest = after.trim_start();
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).map_err(|_| error())?;
    Ok(Duration::new(seconds, (nanos % 1_000_000_000) as u32))
}

/// Prints a duration exactly.
pub fn format_duration(duration: Duration) -> String {
    let mut nanos = duration.as_nanos();
    let mut text = String::new();
    for (name, scale) in DURATION_UNITS {
        if nanos >= scale {
            text.push_str(&format!("{}{name}", nanos / scale));
            nanos %= scale;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Reads a whole number with a binary unit; Docker's `k`, `m`, `g`, `t` mean the same units.
pub fn parse_bytes(text: &str) -> Result<u64, BytesError> {
    let error = || BytesError { text: text.to_owned() };
    let (number, unit, rest) = leading(text.trim()).ok_or_else(error)?;
    let docker = |name: &str| unit.len() == 1 && name.len() == 3 && name[..1].eq_ignore_ascii_case(unit);
    let scale = BYTE_UNITS.iter().find(|(name, _)| *name == unit || docker(name)).map(|&(_, scale)| scale);
    match scale.and_then(|scale| number.checked_mul(scale)) {
        Some(bytes) if rest.is_empty() => Ok(bytes),
        _ => Err(error()),
    }
}

/// Prints a size exactly, in the largest unit it is whole in.
pub fn format_bytes(bytes: u64) -> String {
    let (name, scale) =
        BYTE_UNITS.iter().find(|(_, scale)| bytes > 0 && bytes.is_multiple_of(*scale)).unwrap_or(&BYTE_UNITS[4]);
    format!("{}{name}", bytes / scale)
}

/// Splits `30s…` into its number, its unit and the rest.
fn leading(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text[..digits].parse().ok()?;
    let unit = text[digits..].trim_start();
    let end = unit.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit.len());
    Some((number, &unit[..end], &unit[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        let check = |text: &str, expected: Option<Duration>| assert_eq!(parse_duration(text).ok(), expected, "{text}");
        check("10s", Some(Duration::from_secs(10)));
        check("1m30s", Some(Duration::from_secs(90)));
        check("1m 30s", Some(Duration::from_secs(90)));
        check("250ms", Some(Duration::from_millis(250)));
        check("0s", Some(Duration::ZERO));
        for wrong in ["", "10", "s", "10 sec", "-1s", "1.5s", "10s!", "99999999999999999999h", "18446744073709551615h"]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn sizes() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(parse_bytes(text).ok(), expected, "{text}");
        check("512MiB", Some(512 << 20));
        check("512m", Some(512 << 20));
        check("2G", Some(2 << 30));
        check("7B", Some(7));
        check("1 GiB", Some(1 << 30));
        for wrong in ["", "512", "512MB", "MiB", "1.5GiB", "1GiB2", "-1B", "18446744073709551615KiB"] {
            check(wrong, None);
        }
    }

    proptest! {
        #[test]
        fn printed_is_read_back(seconds in 0..u64::MAX / 3600, nanos in 0..1_000_000_000u32, bytes: u64) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }
    }
}
