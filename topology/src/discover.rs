//! Where a `Host` comes from: this machine, an hwloc XML file, a synthetic description. The only user of hwlocality,
//! and the only place of this crate that reads files.

mod linux;
mod objects;

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
};

use hwlocality::{
    Topology,
    topology::builder::{BuildFlags, TopologyBuilder, TypeFilter},
};

use crate::model::{Host, HostFault, HostParts};

/// XML files above this are refused unread: the largest machines make files of a few MiB.
const MAX_XML_BYTES: u64 = 64 << 20;

/// Why a machine could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// hwloc could not read this machine.
    #[error("hwloc can't read this machine's topology: check that /sys and /proc are mounted and readable")]
    ThisHost {
        /// hwloc's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A file that can't be read.
    #[error("can't read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that no machine needs.
    #[error("{} has {bytes} bytes, more than any topology needs ({MAX_XML_BYTES}): is it from `lstopo FILE.xml`?", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A file that is not a topology.
    #[error("{} is not hwloc XML: make one with `lstopo FILE.xml` on the machine it is to describe", .path.display())]
    NotXml {
        /// The file.
        path: PathBuf,
        /// hwloc's error.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// A description that is not hwloc's synthetic format.
    #[error(
        "\"{description}\" is not a synthetic topology: write levels down to pu, like \"package:2 [numa] l3:2 core:4 pu:2\""
    )]
    NotSynthetic {
        /// The description.
        description: String,
        /// hwloc's error.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// Parts that don't make a machine.
    #[error("the topology of {what} can't be used")]
    Unsound {
        /// Where it came from.
        what: String,
        /// What is wrong with it.
        source: HostFault,
    },
}

/// This machine, as this process may use it.
///
/// `allowed` is what the cgroup's cpuset and the affinity of the process (its main thread, so that a pinned worker may
/// ask too) leave.
///
/// # Errors
/// When hwloc can't read the machine.
pub fn this_host() -> Result<Host, DiscoverError> {
    let failed = |source: BoxedError| DiscoverError::ThisHost { source };
    let topology = configured(Topology::builder())
        // hwloc's x86 back end would bind the calling thread to one CPU after the other.
        .and_then(|(builder, flags)| Ok(builder.with_flags(flags | BuildFlags::DONT_CHANGE_BINDING)?))
        .and_then(|builder| Ok(builder.build()?))
        .map_err(failed)?;
    let mut parts = objects::parts(&topology);
    // HWLOC_XMLFILE and HWLOC_SYNTHETIC replace the machine: then the kernel's lists are another machine's.
    if topology.is_this_system() {
        linux::restrict(&mut parts, Path::new("/"))?;
    }
    host(parts, || "this machine".to_owned())
}

/// The machine that a file of `lstopo FILE.xml` describes. What may be used is what the file says; isolated CPUs are
/// not in such a file.
///
/// hwloc trusts such files: one that was damaged with skill can crash the process. Read only files of your own.
///
/// # Errors
/// A file that can't be read or is no such description.
pub fn from_xml(path: impl AsRef<Path>) -> Result<Host, DiscoverError> {
    let path = path.as_ref();
    let read = |source| DiscoverError::Read { path: path.to_owned(), source };
    let not_xml = |source| DiscoverError::NotXml { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(read)?.len();
    if bytes > MAX_XML_BYTES {
        return Err(DiscoverError::TooLarge { path: path.to_owned(), bytes });
    }
    let xml = fs::read_to_string(path).map_err(read)?;
    // hwloc takes an empty buffer for "no buffer" and describes this machine.
    if !xml.contains("<topology") {
        return Err(not_xml(None));
    }
    let topology = configured(Topology::builder())
        .and_then(|(builder, flags)| Ok(builder.from_xml(&xml)?.with_flags(flags)?))
        .and_then(|builder| Ok(builder.build()?))
        .map_err(|source| not_xml(Some(source)))?;
    host(objects::parts(&topology), || path.display().to_string())
}

/// The machine that hwloc's synthetic description means, `package:2 [numa] l3:2 core:4 pu:2`.
///
/// # Errors
/// A text that is no such description.
pub fn synthetic(description: &str) -> Result<Host, DiscoverError> {
    let not_synthetic = |source| DiscoverError::NotSynthetic { description: description.to_owned(), source };
    if description.trim().is_empty() {
        return Err(not_synthetic(None));
    }
    let topology = configured(Topology::builder())
        .and_then(|(builder, flags)| Ok(builder.from_synthetic(description)?.with_flags(flags)?))
        .and_then(|builder| Ok(builder.build()?))
        .map_err(|source| not_synthetic(Some(source)))?;
    host(objects::parts(&topology), || format!("\"{description}\""))
}

type BoxedError = Box<dyn Error + Send + Sync>;

/// What all sources have in common: also disallowed CPUs, instruction caches, and devices that matter.
fn configured(builder: TopologyBuilder) -> Result<(TopologyBuilder, BuildFlags), BoxedError> {
    let builder = builder
        .with_cpu_icache_type_filter(TypeFilter::KeepAll)
        .map_err(|error| format!("{error}"))?
        .with_io_type_filter(TypeFilter::KeepImportant)
        .map_err(|error| format!("{error}"))?;
    Ok((builder, BuildFlags::INCLUDE_DISALLOWED))
}

fn host(parts: HostParts, what: impl Fn() -> String) -> Result<Host, DiscoverError> {
    Host::new(parts).map_err(|source| DiscoverError::Unsound { what: what(), source })
}
