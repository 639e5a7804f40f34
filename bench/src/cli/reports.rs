//! What is done with reports that are there: `render`, `figure`, `compare`, `targets`; reads files, and starts nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    slice,
};

use anyhow::{Context, ensure};
use clap::Args;
use sherd_bench::{
    compare::{self, Changes, Word},
    report::AnyReport,
    targets,
};

/// What `compare` ends with when it can't compare; 1 is a regression.
const CANNOT_COMPARE: u8 = 2;

/// Writes the table, the Markdown and the HTML page of reports anew, beside their JSON.
///
/// Every run writes all of them; this is for reports of earlier versions, and after a change of the pages. Measures nothing.
#[derive(Args)]
pub(crate) struct Render {
    /// Reports, or directories of them.
    #[arg(value_name = "REPORT", required = true)]
    reports: Vec<PathBuf>,
}

/// Draws the main figure of a report as SVG: every sample, by contestant and measure; of a trial, its first time line.
#[derive(Args)]
pub(crate) struct Figure {
    /// The report's JSON.
    report: PathBuf,
    /// Where it goes [default: standard output].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Says what got worse between two sets of reports, beyond noise.
///
/// Takes the newest report of each scenario on either side. Ends with 1 if anything of sherd's regressed, with 2 if the reports can't
/// be compared, else with 0. Needs samples of both: fewer than four on a side, too much noise or a control that isn't 1 leave a
/// figure undecided, which is no regression.
#[derive(Args)]
pub(crate) struct Compare {
    /// Reports of before: a file, or a directory of them.
    old: PathBuf,
    /// Reports of now.
    new: PathBuf,
    /// Compare in spite of another host or other settings.
    #[arg(long)]
    force: bool,
    /// Writes the table as `compare.txt`, `compare.md` and `compare.html` as well.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Lists every target of the project with what the newest reports say: held, not held, undecided and why, or not measured.
#[derive(Args)]
pub(crate) struct Targets {
    /// Reports, or directories of them.
    #[arg(value_name = "DIR", required = true)]
    reports: Vec<PathBuf>,
    /// Writes `targets.txt`, `targets.md` and an index page, `index.html`, that leads to the reports' pages.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Compare {
    pub(crate) fn run(&self) -> ExitCode {
        match self.compare() {
            Ok(true) => ExitCode::FAILURE,
            Ok(false) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("sherd-bench: {error:#}");
                ExitCode::from(CANNOT_COMPARE)
            }
        }
    }

    /// Whether anything regressed.
    fn compare(&self) -> anyhow::Result<bool> {
        let (old, new) = (read(slice::from_ref(&self.old))?, read(slice::from_ref(&self.new))?);
        let (old, new) = (targets::newest(&old), targets::newest(&new));
        let (mut all, mut notes) = (Vec::new(), Vec::new());
        for (path, now) in &new {
            match old.iter().find(|(_, then)| then.scenario() == now.scenario()) {
                Some((_, then)) => all.push(Changes::between(then, now)?),
                None => notes.push(format!("{}: only {}", now.scenario(), path.display())),
            }
        }
        let gone = old.iter().filter(|(_, then)| !new.iter().any(|(_, now)| now.scenario() == then.scenario()));
        notes.extend(gone.map(|(path, then)| format!("{}: only {}", then.scenario(), path.display())));
        ensure!(!all.is_empty(), "{} and {} have no scenario in common", self.old.display(), self.new.display());
        let differences: Vec<String> = all
            .iter()
            .flat_map(|changes| {
                changes.differences.iter().map(|difference| format!("{}: {difference}", changes.scenario))
            })
            .collect();
        ensure!(
            self.force || differences.is_empty(),
            "these runs differ in more than sherd, --force compares them all the same:\n  {}",
            differences.join("\n  ")
        );
        let page = compare::page(&all, &notes);
        print!("{}", page.text());
        if let Some(directory) = &self.output {
            page.write(directory, "compare", "compare")?;
        }
        Ok(all.iter().any(|changes| changes.count(Word::Regressed) > 0))
    }
}

impl Targets {
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let paths = self.reports.iter().map(std::path::absolute).collect::<Result<Vec<_>, _>>()?;
        let reports = read(&paths)?;
        let newest = targets::newest(&reports);
        print!("{}", targets::page(&newest, None).text());
        if let Some(directory) = &self.output {
            let directory = std::path::absolute(directory)?;
            targets::page(&newest, Some(&directory)).write(&directory, "targets", "index")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Render {
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let reports = read(&self.reports)?;
        ensure!(!reports.is_empty(), "there is no report in {}", show(&self.reports));
        for (path, report) in &reports {
            let name = path.file_stem().and_then(|name| name.to_str()).context("a report's name is not UTF-8")?;
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            report.write_shown(directory, name)?;
            println!("{}", path.with_extension("html").display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Figure {
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let report = AnyReport::read(&self.report)?;
        let figure = report.figure().with_context(|| format!("{} has nothing to draw", self.report.display()))?;
        match &self.output {
            Some(path) => {
                fs::write(path, figure).with_context(|| format!("{} cannot be written", path.display()))?;
            }
            None => print!("{figure}"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Those that are reports; of the others in directories it is said why they are none.
fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<(PathBuf, AnyReport)>> {
    let found = AnyReport::read_all(paths)?;
    for error in found.others {
        eprintln!("left out: {:#}", anyhow::Error::new(error));
    }
    Ok(found.reports)
}

fn show(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
