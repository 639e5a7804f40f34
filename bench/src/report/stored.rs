//! Reports that lie in files: reads them back, whatever wrote them, and says what is wrong with one that is none; changes nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::error::Category;

use super::{Document, Findings, Origin, Report, WriteError, page::comparison::main_figure, plot::timeline};
use crate::{analysis::Verdict, measure::HostFacts};

mod unnumbered;

/// The form of the files that this program writes. Those of a higher number are a newer program's.
pub const FORMAT: u32 = 1;

pub(super) const COMPARISON: &str = "comparison";
pub(super) const TRIAL: &str = "trial";

/// No run of ours leaves more, and what is read is held in memory.
const MOST_BYTES: u64 = 256 << 20;

/// A report of any scenario.
#[derive(Debug, Clone)]
pub enum AnyReport {
    /// Contestants side by side.
    Comparison(Box<Report>),
    /// One behaviour, tried.
    Trial(Box<Findings>),
}

/// What was found in files and directories.
#[derive(Debug, Default)]
pub struct Found {
    /// Reports, with their files.
    pub reports: Vec<(PathBuf, AnyReport)>,
    /// What is wrong with JSON files in directories that are none.
    pub others: Vec<ReadError>,
}

/// A file holds no report that can be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It can't be read at all.
    #[error("{} cannot be read", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is larger than any report.
    #[error("{} is no report of sherd-bench: it has {bytes} bytes, more than any", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It ends early, or was damaged.
    #[error("{} is torn: it is not JSON from begin to end; run the benchmark again", path.display())]
    Torn {
        /// Which.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// Something else's JSON.
    #[error("{} is no report of sherd-bench: it names no scenario", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// Of a program that came after this one.
    #[error("{} is a report of format {format}, and this sherd-bench reads up to {FORMAT}: take the one that wrote it", path.display())]
    Newer {
        /// Which.
        path: PathBuf,
        /// What it says.
        format: u32,
    },
    /// Of ours, but of a kind that is only to be looked at.
    #[error("{} is of the kind {kind:?}, which is for reading and can't be taken apart", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
        /// What it says.
        kind: String,
    },
    /// It lacks what its format has.
    #[error("{} is not what a report of format {FORMAT} is: it was changed by hand, or by a program between two versions", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// What says what a file is.
#[derive(Deserialize)]
struct Label {
    format: Option<u32>,
    kind: Option<String>,
    scenario: Option<String>,
}

impl AnyReport {
    /// Reads the report at `path`.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let file = |source| ReadError::File { path: path.into(), source };
        let bytes = fs::metadata(path).map_err(file)?.len();
        if bytes > MOST_BYTES {
            return Err(ReadError::TooLarge { path: path.into(), bytes });
        }
        Self::parse(path, &fs::read(path).map_err(file)?)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, ReadError> {
        let label: Label = serde_json::from_slice(text).map_err(|source| match source.classify() {
            Category::Data => ReadError::Foreign { path: path.into() },
            _ => ReadError::Torn { path: path.into(), source },
        })?;
        if label.scenario.is_none() {
            return Err(ReadError::Foreign { path: path.into() });
        }
        match (label.format, label.kind.as_deref()) {
            (None, _) => unnumbered::read(text).map_err(|source| ReadError::Content { path: path.into(), source }),
            (Some(format), _) if format > FORMAT => Err(ReadError::Newer { path: path.into(), format }),
            (Some(_), Some(COMPARISON)) => Ok(Self::Comparison(content(path, text)?)),
            (Some(_), Some(TRIAL)) => Ok(Self::Trial(content(path, text)?)),
            (Some(_), kind) => Err(ReadError::Kind { path: path.into(), kind: kind.unwrap_or_default().into() }),
        }
    }

    /// The reports at `paths`: each path a file, or a directory whose `.json` files are
    /// meant, in the order of their names. A path that is a file has to be a report.
    pub fn read_all(paths: &[PathBuf]) -> Result<Found, ReadError> {
        let mut found = Found::default();
        for path in paths {
            if !path.is_dir() {
                found.reports.push((path.clone(), Self::read(path)?));
                continue;
            }
            for file in json_files(path).map_err(|source| ReadError::File { path: path.clone(), source })? {
                match Self::read(&file) {
                    Ok(report) => found.reports.push((file, report)),
                    Err(error) => found.others.push(error),
                }
            }
        }
        Ok(found)
    }

    /// Writes what people read of it, as [`Document::write`] does: `NAME.txt`, `NAME.md` and `NAME.html`.
    pub fn write_shown(&self, directory: &Path, name: &str) -> Result<(), WriteError> {
        match self {
            Self::Comparison(report) => report.write_shown(directory, name),
            Self::Trial(findings) => findings.write_shown(directory, name),
        }
    }

    /// The picture that tells most, as an SVG file; none of a trial without time lines.
    pub fn figure(&self) -> Option<String> {
        match self {
            Self::Comparison(report) => {
                let caption = format!("{}. Points are samples, lines their medians.", self.provenance());
                Some(main_figure(report).standalone(&caption))
            }
            Self::Trial(findings) => {
                let line = findings.timelines.first()?;
                Some(timeline(line).standalone(&format!("{}.", self.provenance())))
            }
        }
    }

    /// Of which run, in a line that fits below a picture.
    fn provenance(&self) -> String {
        let (host, commit) = (self.host(), self.origin().commit.as_deref().unwrap_or("unknown"));
        let day = self.started().split('T').next().unwrap_or_default();
        let cpus = host.cpus.len();
        format!("sherd-bench {} on {cpus} × {}, {}, commit {commit}, {day}", self.scenario(), host.cpu, host.kernel)
    }

    /// The scenario's name.
    pub fn scenario(&self) -> &str {
        match self {
            Self::Comparison(report) => &report.scenario,
            Self::Trial(findings) => &findings.scenario,
        }
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        match self {
            Self::Comparison(report) => &report.header.origin,
            Self::Trial(findings) => &findings.origin,
        }
    }

    /// When it was begun, UTC: `2026-11-22T12:34:56Z`, so that later is greater.
    pub fn started(&self) -> &str {
        match self {
            Self::Comparison(report) => &report.header.started,
            Self::Trial(findings) => &findings.started,
        }
    }

    /// Where it was made.
    pub fn host(&self) -> &HostFacts {
        match self {
            Self::Comparison(report) => &report.header.host,
            Self::Trial(findings) => &findings.host,
        }
    }

    /// Whether its targets hold.
    pub fn verdicts(&self) -> &[Verdict] {
        match self {
            Self::Comparison(report) => &report.analysis.verdicts,
            Self::Trial(findings) => &findings.verdicts,
        }
    }
}

fn json_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn content<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<Box<T>, ReadError> {
    serde_json::from_slice(text).map(Box::new).map_err(|source| ReadError::Content { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Document, testing};

    fn parse(text: &str) -> Result<AnyReport, ReadError> {
        AnyReport::parse(Path::new("results/it.json"), text.as_bytes())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let (report, findings) = (testing::report(), testing::findings());
        let path = report.write(directory.path(), "one").expect("writable");
        let AnyReport::Comparison(read) = AnyReport::read(&path).expect("ours") else { panic!("a comparison") };
        assert_eq!(format!("{:?}", read.header), format!("{:?}", report.header));
        assert_eq!((read.text(), read.samples.len()), (report.text(), report.samples.len()));
        let path = findings.write(directory.path(), "two").expect("writable");
        let AnyReport::Trial(read) = AnyReport::read(&path).expect("ours") else { panic!("a trial") };
        assert_eq!((read.text(), read.timelines), (findings.text(), findings.timelines));
    }

    #[test]
    fn what_is_no_report_is_refused_by_name() {
        let whole = serde_json::to_string(&testing::findings()).expect("values").replacen('{', r#"{"format":1,"#, 1);
        let of = |kind: &str| whole.replacen('{', &format!(r#"{{"kind":"{kind}","#), 1);
        let check = |text: &str, is: fn(&ReadError) -> bool| {
            let error = parse(text).expect_err("it is refused");
            assert!(is(&error), "{text:.60}: {error:?}");
            assert!(error.to_string().starts_with("results/it.json "), "{error}");
        };
        assert!(parse(&of(TRIAL)).is_ok());
        check(&of(TRIAL)[..300], |error| matches!(error, ReadError::Torn { .. }));
        check("", |error| matches!(error, ReadError::Torn { .. }));
        check("[1, 2]", |error| matches!(error, ReadError::Foreign { .. }));
        check(r#"{"format": 1}"#, |error| matches!(error, ReadError::Foreign { .. }));
        check(&of(TRIAL).replacen(":1,", ":2,", 1), |error| matches!(error, ReadError::Newer { format: 2, .. }));
        check(&of("other"), |error| matches!(error, ReadError::Kind { .. }));
        check(&of(COMPARISON), |error| matches!(error, ReadError::Content { .. }));
        check(r#"{"scenario": "relay"}"#, |error| matches!(error, ReadError::Content { .. }));
        let nowhere = AnyReport::read(Path::new("/nowhere/it.json"));
        assert!(matches!(nowhere, Err(ReadError::File { .. })));
    }
}
