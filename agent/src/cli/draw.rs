//! Where a picture of the machine comes from and where it goes: the options that `topology` and `plan` share.

use std::io::IsTerminal;
use std::path::PathBuf;

use serde::Serialize;
use sherd_topology::discover;
use sherd_topology::draw::{self, TextStyle};
use sherd_topology::model::Host;
use sherd_topology::plan::Plan;

use super::{Failure, print};

/// Another machine than this one.
#[derive(Debug, clap::Args)]
pub(super) struct Source {
    /// The machine in this file, from `lstopo FILE.xml`.
    #[arg(long, value_name = "FILE", conflicts_with = "synthetic")]
    pub(super) xml: Option<PathBuf>,
    /// A made-up machine, in hwloc's words: `package:2 [numa] l3:2 core:4 pu:2`.
    #[arg(long, value_name = "DESCRIPTION")]
    pub(super) synthetic: Option<String>,
}

impl Source {
    /// Whether it is this machine.
    pub(super) fn is_this_host(&self) -> bool {
        self.xml.is_none() && self.synthetic.is_none()
    }

    pub(super) fn host(&self) -> Result<Host, Failure> {
        let host = match (&self.xml, &self.synthetic) {
            (Some(path), _) => discover::from_xml(path),
            (None, Some(description)) => discover::synthetic(description),
            (None, None) => discover::this_host(),
        };
        host.map_err(|error| Failure::Other {
            message: error.to_string(),
            source: std::error::Error::source(&error).map(|cause| cause.to_string().into()),
        })
    }
}

/// What the picture is made as.
#[derive(Debug, clap::Args)]
pub(super) struct Form {
    /// Print JSON.
    #[arg(long, conflicts_with = "svg")]
    pub(super) json: bool,
    /// Write an SVG picture; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
}

impl Form {
    /// Draws the machine and the plan on it.
    pub(super) fn draw(&self, host: &Host, plan: &Plan, json: &impl Serialize) -> Result<(), Failure> {
        if self.json {
            let json = serde_json::to_string_pretty(json).map_err(|error| Failure::new(error.to_string()))?;
            return print(&format!("{json}\n"));
        }
        match &self.svg {
            Some(path) if path.as_os_str() == "-" => print(&draw::svg(host, plan)),
            Some(path) => std::fs::write(path, draw::svg(host, plan)).map_err(|source| Failure::File {
                path: path.display().to_string(),
                action: "written",
                source,
            }),
            None => print(&draw::text(host, plan, style())),
        }
    }
}

/// Colours for people only, and not for those who don't want them (no-color.org).
fn style() -> TextStyle {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let columns = terminal_size::terminal_size().map(|(columns, _)| usize::from(columns.0));
    TextStyle {
        width: columns.unwrap_or(TextStyle::default().width),
        color: std::io::stdout().is_terminal() && !no_color,
    }
}
