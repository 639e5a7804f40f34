//! A TOML file under inspection: tables and keys with their lines, and every fault found so far; knows no key by name.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{SpecFault, SpecFaults};

/// Longest file that is read.
pub const MAX_TEXT_BYTES: usize = 256 * 1024;
/// Faults that are reported; a file with more of them is something else than a specification.
const MAX_FAULTS: usize = 100;

/// What is known at the top of a kind of file.
pub struct Format {
    /// Keys of the root table.
    pub keys: &'static [&'static str],
    /// The table in which a key belongs that was written at the top.
    pub home_of: fn(&str) -> Option<&'static str>,
}

/// Reads a TOML file through `read`, which sees the root table and reports what it finds; every fault is returned together.
pub fn inspect<T>(
    file: &str,
    text: &str,
    format: &Format,
    read: impl FnOnce(&Section<'_, '_>) -> Option<T>,
) -> Result<T, SpecFaults> {
    let document = Document::new(file, text, format.home_of);
    if text.len() > MAX_TEXT_BYTES {
        document.fault(1, "", format!("the file is longer than {} KiB: give a shorter one", MAX_TEXT_BYTES / 1024));
        return Err(document.into_faults());
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map_or(1, |span| document.line(&span));
        document.syntax(line, error.message());
    }
    let section = Section::new(&document, String::new(), 1, root.get_ref(), format.keys);
    match read(&section) {
        Some(value) if document.is_clean() => Ok(value),
        _ => Err(document.into_faults()),
    }
}

struct Document<'d> {
    file: &'d str,
    home_of: fn(&str) -> Option<&'static str>,
    line_starts: Vec<usize>,
    /// Lines that aren't TOML: what was recovered from them is guesswork and not worth a second fault.
    broken_lines: RefCell<BTreeSet<usize>>,
    faults: RefCell<Vec<SpecFault>>,
}

impl<'d> Document<'d> {
    fn new(file: &'d str, text: &str, home_of: fn(&str) -> Option<&'static str>) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(index, _)| index + 1));
        let line_starts = starts.collect();
        Self { file, home_of, line_starts, broken_lines: RefCell::default(), faults: RefCell::default() }
    }

    fn line(&self, span: &Range<usize>) -> usize {
        self.line_starts.partition_point(|&start| start <= span.start).max(1)
    }

    fn syntax(&self, line: usize, message: &str) {
        if self.broken_lines.borrow_mut().insert(line) {
            self.push(line, "", format!("not TOML: {message}"));
        }
    }

    fn fault(&self, line: usize, key: &str, message: String) {
        if !self.broken_lines.borrow().contains(&line) {
            self.push(line, key, message);
        }
    }

    fn push(&self, line: usize, key: &str, message: String) {
        let fault = SpecFault { file: self.file.to_owned(), line, key: key.to_owned(), message };
        self.faults.borrow_mut().push(fault);
    }

    fn is_clean(&self) -> bool {
        self.faults.borrow().is_empty()
    }

    fn is_toml(&self) -> bool {
        self.broken_lines.borrow().is_empty()
    }

    fn into_faults(self) -> SpecFaults {
        let mut faults = self.faults.into_inner();
        // Stable: faults of one line stay in the order in which they were found.
        faults.sort_by_key(|fault| fault.line);
        if faults.len() > MAX_FAULTS {
            let more = faults.len() - MAX_FAULTS;
            faults.truncate(MAX_FAULTS);
            let line = faults[MAX_FAULTS - 1].line;
            let message = format!("{more} more faults follow: correct these first");
            faults.push(SpecFault { file: self.file.to_owned(), line, key: String::new(), message });
        }
        SpecFaults { faults }
    }
}

/// One table of the file.
pub struct Section<'d, 'i> {
    document: &'d Document<'d>,
    path: String,
    line: usize,
    table: &'d DeTable<'i>,
}

impl<'d, 'i> Section<'d, 'i> {
    fn new(
        document: &'d Document<'d>,
        path: String,
        line: usize,
        table: &'d DeTable<'i>,
        keys: &'static [&'static str],
    ) -> Self {
        let section = Self { document, path, line, table };
        section.report_unknown(keys);
        section
    }

    /// Reports a fault of one of this table's keys, at its line if it is there and at the table's if not.
    pub fn fault(&self, key: &str, message: impl Into<String>) {
        let line = self.table.get_key_value(key).map_or(self.line, |(key, _)| self.document.line(&key.span()));
        self.document.fault(line, &self.key_path(key), message.into());
    }

    /// Reports that a key is missing, unless the file is broken enough that it may be there.
    pub fn missing(&self, key: &str, message: &str) {
        if self.document.is_toml() {
            let article = if self.path.is_empty() { String::new() } else { format!(" in [{}]", self.path) };
            self.document.fault(self.line, &self.key_path(key), format!("missing{article}: {message}"));
        }
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The key's value, whatever it is.
    pub fn field(&self, key: &str) -> Option<Field<'d, 'i>> {
        let value = self.table.get(key)?;
        Some(self.at(self.key_path(key), value))
    }

    /// Every key and value, where keys are the operator's own (environment, labels).
    pub fn fields(&self) -> impl Iterator<Item = (&'d str, Field<'d, 'i>)> {
        self.table.iter().map(|(key, value)| (key.get_ref().as_ref(), self.at(self.key_path(key.get_ref()), value)))
    }

    fn at(&self, path: String, value: &'d Spanned<DeValue<'i>>) -> Field<'d, 'i> {
        Field { document: self.document, path, line: self.document.line(&value.span()), value: value.get_ref() }
    }

    fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn report_unknown(&self, keys: &'static [&'static str]) {
        if keys.is_empty() {
            return;
        }
        for key in self.table.keys().map(|key| key.get_ref().as_ref()) {
            if keys.contains(&key) {
                continue;
            }
            let home = if self.path.is_empty() { (self.document.home_of)(key) } else { None };
            let message = match (home, nearest(key, keys)) {
                (Some(home), _) => format!("unknown key at the top: it belongs in [{home}]"),
                (None, Some(meant)) => format!("unknown key: did you mean `{meant}`?"),
                (None, None) => format!("unknown key: known here are {}", keys.join(", ")),
            };
            self.fault(key, message);
        }
    }
}

/// One value of the file.
pub struct Field<'d, 'i> {
    document: &'d Document<'d>,
    path: String,
    line: usize,
    value: &'d DeValue<'i>,
}

impl<'d, 'i> Field<'d, 'i> {
    /// The value as the parser left it.
    pub fn value(&self) -> &'d DeValue<'i> {
        self.value
    }

    /// Reports a fault of this value.
    pub fn fault(&self, message: impl Into<String>) {
        self.document.fault(self.line, &self.path, message.into());
    }

    /// Reports that the value is of another type.
    pub fn wrong_type(&self, wanted: &str) {
        self.fault(format!("must be {wanted}, not {}", type_name(self.value)));
    }

    /// The value as a table with these keys (any, if there are none).
    pub fn section(&self, keys: &'static [&'static str]) -> Option<Section<'d, 'i>> {
        let Some(table) = self.value.as_table() else {
            self.wrong_type("a table");
            return None;
        };
        Some(Section::new(self.document, self.path.clone(), self.line, table, keys))
    }

    /// The value's elements.
    pub fn elements(&self, wanted: &str) -> Option<Vec<Field<'d, 'i>>> {
        let Some(array) = self.value.as_array() else {
            self.wrong_type(wanted);
            return None;
        };
        let element = |(index, value): (usize, &'d Spanned<DeValue<'i>>)| Field {
            document: self.document,
            path: format!("{}[{index}]", self.path),
            line: self.document.line(&value.span()),
            value: value.get_ref(),
        };
        Some(array.iter().enumerate().map(element).collect())
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The known word that a mistyped one most likely means.
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_lowercase().replace('-', "_");
    let reach = (word.chars().count() / 3).clamp(1, 3);
    known
        .iter()
        .map(|&known| (distance(&word, known), known))
        .filter(|&(d, _)| d <= reach)
        .min()
        .map(|(_, known)| known)
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    let mut last = None;
    for (i, ca) in a.chars().enumerate() {
        let mut row = vec![i + 1];
        for (j, &cb) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(ca != cb)).min(above[j + 1] + 1).min(row[j] + 1);
            if j > 0 && last == Some(cb) && b[j - 1] == ca {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
        last = Some(ca);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_forgives_slips_and_nothing_more() {
        let known = ["image", "read_only", "cap_add", "cap_drop", "user"];
        let check = |word, expected| assert_eq!(nearest(word, &known), expected, "{word}");
        check("imgae", Some("image"));
        check("Image", Some("image"));
        check("read-only", Some("read_only"));
        check("cap_ad", Some("cap_add"));
        check("usr", Some("user"));
        check("replicas", None);
        check("", None);
    }

    const FORMAT: Format = Format { keys: &["b"], home_of: |key| (key == "deep").then_some("depths") };

    #[test]
    fn a_key_at_the_top_is_sent_home() {
        let faults = inspect("f", "deep = 1", &FORMAT, |_| Some(())).unwrap_err().faults;
        assert_eq!(faults[0].to_string(), "f:1: deep: unknown key at the top: it belongs in [depths]");
    }

    #[test]
    fn every_broken_line_is_reported_and_faults_are_bounded() {
        let faults = inspect("f", "a = \nb = 1\nc = = 2\n", &FORMAT, |_| Some(())).unwrap_err().faults;
        let lines: Vec<usize> = faults.iter().map(|fault| fault.line).collect();
        assert!(lines.contains(&1) && lines.contains(&3), "{faults:?}");

        let text: String = (0..1000).map(|i| format!("wrong{i} = 1\n")).collect();
        let faults = inspect("f", &text, &FORMAT, |_| Some(())).unwrap_err().faults;
        assert_eq!(faults.len(), MAX_FAULTS + 1);
        assert!(faults[MAX_FAULTS].message.starts_with("900 more"), "{:?}", faults[MAX_FAULTS]);
    }
}
