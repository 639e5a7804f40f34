//! A shard's output in two files of bounded size: the shim writes lines, anyone reads them. `output` is the newer,
//! `output.1` the older one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::record;
use crate::runtime::{LogLine, LogOutput};

/// A file that is longer becomes the older one. The run directory is memory, as a rule: at most 2 MiB per shard.
const FILE_MAX: u64 = 1024 * 1024;
/// Longest line; what is longer comes in pieces.
const LINE_MAX: usize = 16 * 1024;

/// Appends lines; `T o text`, with T in milliseconds since 1970 and `o` or `e` for the output.
pub(super) struct Writer {
    path: PathBuf,
    file: File,
    len: u64,
    max: u64,
    pending: [Vec<u8>; 2],
}

impl Writer {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        Self::with_max(directory, FILE_MAX)
    }

    fn with_max(directory: &Path, max: u64) -> io::Result<Self> {
        let path = directory.join(record::OUTPUT);
        let file = append(&path)?;
        let len = file.metadata()?.len();
        Ok(Self { path, file, len, max, pending: [Vec::new(), Vec::new()] })
    }

    /// Takes what was read from the shard; complete lines go to the file.
    pub(super) fn add(&mut self, output: LogOutput, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' || self.pending[index(output)].len() == LINE_MAX {
                self.end_line(output);
            }
            if *byte != b'\n' {
                self.pending[index(output)].push(*byte);
            }
        }
    }

    /// Writes what has no line end.
    pub(super) fn finish(&mut self) {
        for output in [LogOutput::Stdout, LogOutput::Stderr] {
            if !self.pending[index(output)].is_empty() {
                self.end_line(output);
            }
        }
    }

    /// A line that can't be written (no space) is lost: the shard must not wait for its log.
    fn end_line(&mut self, output: LogOutput) {
        let text = std::mem::take(&mut self.pending[index(output)]);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let letter = match output {
            LogOutput::Stdout => 'o',
            LogOutput::Stderr => 'e',
        };
        let mut line = format!("{now} {letter} ").into_bytes();
        line.extend_from_slice(&text);
        line.push(b'\n');
        if self.len + line.len() as u64 > self.max && self.rotate().is_err() {
            return;
        }
        if self.file.write_all(&line).is_ok() {
            self.len += line.len() as u64;
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.path, older(&self.path))?;
        self.file = append(&self.path)?;
        self.len = 0;
        Ok(())
    }
}

/// Reads lines from the oldest on, and goes on where it was when there are more.
pub(super) struct Reader {
    path: PathBuf,
    current: Option<BufReader<File>>,
    partial: Vec<u8>,
}

impl Reader {
    /// Begins at the last `tail` lines, or at the oldest that is kept.
    pub(super) fn open(directory: &Path, tail: Option<usize>) -> io::Result<Self> {
        let path = directory.join(record::OUTPUT);
        let mut reader = Self { current: None, partial: Vec::new(), path };
        reader.current = open(&older(&reader.path))?.or(open(&reader.path)?);
        if let Some(tail) = tail {
            let start = reader.current.as_ref().map(|file| file.get_ref().try_clone()).transpose()?;
            let mut all = 0_usize;
            while reader.next()?.is_some() {
                all += 1;
            }
            reader.current = start.map(BufReader::new);
            if let Some(file) = &mut reader.current {
                file.seek(SeekFrom::Start(0))?;
            }
            for _ in 0..all.saturating_sub(tail) {
                reader.next()?;
            }
        }
        Ok(reader)
    }

    /// The next line, if there is one by now.
    pub(super) fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if self.current.is_none() {
                self.current = open(&self.path)?;
            }
            let Some(file) = &mut self.current else { return Ok(None) };
            file.read_until(b'\n', &mut self.partial)?;
            if self.partial.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.partial);
                return Ok(Some(parse(&line)));
            }
            if !self.is_rotated()? {
                return Ok(None);
            }
            self.current = None;
            self.partial.clear();
        }
    }

    /// Whether what is read is no longer the newest, so that nothing will be added to it.
    fn is_rotated(&self) -> io::Result<bool> {
        let Some(file) = &self.current else { return Ok(false) };
        match fs::metadata(&self.path) {
            Ok(newest) => Ok(newest.ino() != file.get_ref().metadata()?.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn parse(line: &[u8]) -> LogLine {
    let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line)).into_owned();
    let mut parts = line.splitn(3, ' ');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(_), Some("e"), Some(text)) => LogLine { output: LogOutput::Stderr, text: text.to_owned() },
        (Some(_), Some("o"), Some(text)) => LogLine { output: LogOutput::Stdout, text: text.to_owned() },
        _ => LogLine { output: LogOutput::Stdout, text: line },
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("1")
}

fn open(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn index(output: LogOutput) -> usize {
    match output {
        LogOutput::Stdout => 0,
        LogOutput::Stderr => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(reader: &mut Reader) -> Vec<String> {
        std::iter::from_fn(|| reader.next().unwrap()).map(|line| line.text).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(directory.path()).unwrap();
        let mut reader = Reader::open(directory.path(), None).unwrap();
        writer.add(LogOutput::Stdout, b"one\ntw");
        writer.add(LogOutput::Stderr, b"error: a b\n");
        assert_eq!(texts(&mut reader), ["one", "error: a b"]);
        writer.add(LogOutput::Stdout, b"o\n\nlast");
        assert_eq!(texts(&mut reader), ["two", ""]);
        writer.finish();
        assert_eq!(texts(&mut reader), ["last"]);
        assert_eq!(texts(&mut Reader::open(directory.path(), Some(2)).unwrap()), ["", "last"]);
        assert_eq!(texts(&mut Reader::open(directory.path(), Some(0)).unwrap()), Vec::<String>::new());
        let first = Reader::open(directory.path(), None).unwrap().next().unwrap();
        assert_eq!(first, Some(LogLine { output: LogOutput::Stdout, text: "one".into() }));
    }

    #[test]
    fn files_are_bounded_and_a_reader_that_keeps_up_misses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::with_max(directory.path(), 1000).unwrap();
        let mut reader = Reader::open(directory.path(), None).unwrap();
        let mut seen = Vec::new();
        for number in 0..500 {
            writer.add(LogOutput::Stdout, format!("line {number}\n").as_bytes());
            seen.extend(texts(&mut reader));
        }
        let expected: Vec<_> = (0..500).map(|number| format!("line {number}")).collect();
        assert_eq!(seen, expected);
        let sizes: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
        assert!(sizes.len() == 2 && sizes.iter().all(|size| *size <= 1000), "{sizes:?}");
        let kept = texts(&mut Reader::open(directory.path(), None).unwrap());
        assert_eq!(kept, expected[500 - kept.len()..]);
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(directory.path()).unwrap();
        writer.add(LogOutput::Stdout, &[b'x'; LINE_MAX + 1]);
        writer.finish();
        let lengths: Vec<_> =
            texts(&mut Reader::open(directory.path(), None).unwrap()).iter().map(String::len).collect();
        assert_eq!(lengths, [LINE_MAX, 1]);
    }
}
