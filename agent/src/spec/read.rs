//! Typed values out of a [`Section`]: each reports what is wrong with its own value and returns what is usable.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use toml::de::DeValue;

use super::document::{Field, Section, nearest};
use super::units::{format_duration, parse_bytes, parse_duration};

impl<'d, 'i> Section<'d, 'i> {
    /// A table below this one.
    pub fn section(&self, key: &str, keys: &'static [&'static str]) -> Option<Section<'d, 'i>> {
        self.field(key)?.section(keys)
    }

    /// An array of tables.
    pub fn sections(&self, key: &str, keys: &'static [&'static str]) -> Vec<Section<'d, 'i>> {
        let elements = self.field(key).and_then(|field| field.elements("an array of tables"));
        elements.unwrap_or_default().iter().filter_map(|element| element.section(keys)).collect()
    }

    /// A string that is not empty and has no NUL, which no kernel interface would take.
    pub fn text(&self, key: &str) -> Option<String> {
        self.field(key)?.text("a string").map(str::to_owned)
    }

    /// A string that `T` reads.
    pub fn parsed<T: FromStr<Err: Display>>(&self, key: &str) -> Option<T> {
        let field = self.field(key)?;
        let text = field.text("a string")?;
        text.parse().map_err(|error: T::Err| field.fault(error.to_string())).ok()
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, key: &str, words: &[(&'static str, T)]) -> Option<T> {
        self.field(key)?.choice(words)
    }

    /// True or false.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        let field = self.field(key)?;
        let value = field.value().as_bool();
        if value.is_none() {
            field.wrong_type("true or false");
        }
        value
    }

    /// An integer within bounds.
    pub fn integer<T>(&self, key: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + Display + Copy,
    {
        self.field(key)?.integer(range)
    }

    /// A duration within bounds, as in `1m30s`.
    pub fn duration(&self, key: &str, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.field(key)?.duration(range)
    }

    /// A duration within bounds, or `off`. The outer option is absence.
    pub fn duration_or_off(&self, key: &str, range: RangeInclusive<Duration>) -> Option<Option<Duration>> {
        let field = self.field(key)?;
        if field.value().as_str() == Some("off") { Some(None) } else { field.duration(range).map(Some) }
    }

    /// An integer within bounds, or `off`. The outer option is absence.
    pub fn integer_or_off<T>(&self, key: &str, range: RangeInclusive<T>) -> Option<Option<T>>
    where
        T: TryFrom<i64> + PartialOrd + Display + Copy,
    {
        let field = self.field(key)?;
        if field.value().as_str() == Some("off") { Some(None) } else { field.integer(range).map(Some) }
    }

    /// A size in bytes within bounds, as in `512MiB`.
    pub fn bytes(&self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let field = self.field(key)?;
        let bytes = parse_bytes(field.text("a size as a string, for example \"512MiB\"")?);
        let bytes = bytes.map_err(|error| field.fault(error.to_string())).ok()?;
        if !range.contains(&bytes) {
            field.fault(format!("must be from {} to {} bytes", range.start(), range.end()));
            return None;
        }
        Some(bytes)
    }

    /// An array of strings.
    pub fn texts(&self, key: &str) -> Option<Vec<String>> {
        let texts: Vec<_> = self.elements_text(key)?;
        Some(texts.into_iter().map(|(_, text)| text).collect())
    }

    /// An array of strings that `check` accepts.
    pub fn checked_texts(&self, key: &str, check: impl Fn(&str) -> Result<(), String>) -> Vec<String> {
        let texts = self.elements_text(key).unwrap_or_default().into_iter();
        let good = texts.filter(|(field, text)| check(text).map_err(|message| field.fault(message)).is_ok());
        good.map(|(_, text)| text).collect()
    }

    /// A command line: an array of strings, the first not empty.
    pub fn command(&self, key: &str) -> Option<Vec<String>> {
        let field = self.field(key)?;
        let mut command = Vec::new();
        for element in field.elements("an array of strings, for example [\"server\", \"--verbose\"]")? {
            command.push(element.any_text("a string")?.to_owned());
        }
        if command.is_empty() {
            field.fault("must not be empty: leave the key out for the default");
            return None;
        }
        Some(command)
    }

    /// A table of strings whose keys `check` accepts.
    pub fn map(&self, key: &str, check: impl Fn(&str) -> Result<(), String>) -> BTreeMap<String, String> {
        let Some(section) = self.section(key, &[]) else { return BTreeMap::new() };
        let mut map = BTreeMap::new();
        for (name, field) in section.fields() {
            if let Err(message) = check(name) {
                field.fault(message);
            } else if let Some(value) = field.any_text("a string: put it in quotes") {
                map.insert(name.to_owned(), value.to_owned());
            }
        }
        map
    }

    fn elements_text(&self, key: &str) -> Option<Vec<(Field<'d, 'i>, String)>> {
        let elements = self.field(key)?.elements("an array of strings")?;
        let text = |field: Field<'d, 'i>| {
            let text = field.text("a string")?.to_owned();
            Some((field, text))
        };
        Some(elements.into_iter().filter_map(text).collect())
    }
}

impl<'d> Field<'d, '_> {
    /// A string without NUL.
    pub fn any_text(&self, wanted: &str) -> Option<&'d str> {
        let Some(text) = self.value().as_str() else {
            self.wrong_type(wanted);
            return None;
        };
        if text.contains('\0') {
            self.fault("must not contain a NUL character");
            return None;
        }
        Some(text)
    }

    /// A string without NUL that is not empty.
    pub fn text(&self, wanted: &str) -> Option<&'d str> {
        let text = self.any_text(wanted)?;
        if text.is_empty() {
            self.fault("must not be empty");
            return None;
        }
        Some(text)
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|&(name, _)| name).collect();
        let text = self.any_text(&format!("one of {}", quoted(&names)))?;
        let found = words.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            let hint = nearest(text, &names).map_or(String::new(), |meant| format!(" (did you mean \"{meant}\"?)"));
            self.fault(format!("must be one of {}, not \"{text}\"{hint}", quoted(&names)));
        }
        found.map(|&(_, value)| value)
    }

    /// An integer within bounds.
    pub fn integer<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + Display + Copy,
    {
        let DeValue::Integer(integer) = self.value() else {
            self.wrong_type(&format!("an integer from {} to {}", range.start(), range.end()));
            return None;
        };
        let value =
            i64::from_str_radix(integer.as_str(), integer.radix()).ok().and_then(|value| T::try_from(value).ok());
        let value = value.filter(|value| range.contains(value));
        if value.is_none() {
            self.fault(format!("must be from {} to {}, not {integer}", range.start(), range.end()));
        }
        value
    }

    /// A duration within bounds.
    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.text("a duration as a string, for example \"10s\"")?;
        let duration = parse_duration(text).map_err(|error| self.fault(error.to_string())).ok()?;
        if !range.contains(&duration) {
            let (least, most) = (format_duration(*range.start()), format_duration(*range.end()));
            self.fault(format!("must be from {least} to {most}, not {text}"));
            return None;
        }
        Some(duration)
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}
