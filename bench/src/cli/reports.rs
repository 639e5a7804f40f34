//! What is done with reports that are there: `render`, `figure`; reads files, and starts nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, ensure};
use clap::Args;
use sherd_bench::report::AnyReport;

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
