//! Files of the agent's own: a head with version and checksum on the first line, what they say below it. A file that is
//! torn, foreign, of another version or changed by hand is not obeyed but set aside.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{StoreError, disk, io_error, write_atomically};

/// Longest file that is read.
const MAX_BYTES: u64 = 4 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    version: u32,
    /// Of everything below the first line.
    sha256: String,
}

/// Why a file is not obeyed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsealed {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it has more than {MAX_BYTES} bytes")]
    Long,
    #[error("it is not what an agent writes: {0}")]
    Foreign(#[from] serde_json::Error),
    #[error("it is of version {found}, and this agent knows {known}")]
    Version { found: u32, known: u32 },
    #[error("its checksum doesn't fit: it is torn, or was changed by hand")]
    Torn,
}

/// What the JSON file holds; `None` where there is none.
pub(super) fn read<T: DeserializeOwned>(path: &Path, version: u32) -> Result<Option<T>, Unsealed> {
    let body = read_body(path, version, "")?;
    Ok(body.map(|body| serde_json::from_slice(&body)).transpose()?)
}

/// What is below the head, which is behind `mark`; `None` where there is no file.
pub(super) fn read_body(path: &Path, version: u32, mark: &str) -> Result<Option<Vec<u8>>, Unsealed> {
    let bytes = match disk::read(path, MAX_BYTES) {
        Ok(bytes) => bytes.ok_or(Unsealed::Long)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (head, body) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let head = head.strip_prefix(mark.as_bytes()).unwrap_or_default();
    // First the version: another one's fields are not this one's faults.
    let head: Head = serde_json::from_slice(head)?;
    if head.version != version {
        return Err(Unsealed::Version { found: head.version, known: version });
    }
    if head.sha256 != hex(&Sha256::digest(body)) {
        return Err(Unsealed::Torn);
    }
    Ok(Some(body.to_vec()))
}

/// Writes JSON beside the file and renames.
pub(super) fn write<T: Serialize>(path: &Path, version: u32, value: &T) -> Result<(), StoreError> {
    let body = serde_json::to_vec_pretty(value).map_err(|error| io_error("writing", path, error.into()))?;
    write_body(path, version, "", &body)
}

/// The same with anything below the head, which is behind `mark`: what makes it a comment there.
pub(super) fn write_body(path: &Path, version: u32, mark: &str, body: &[u8]) -> Result<(), StoreError> {
    let head = Head { version, sha256: hex(&Sha256::digest(body)) };
    let mut bytes = mark.as_bytes().to_vec();
    serde_json::to_writer(&mut bytes, &head).map_err(|error| io_error("writing", path, error.into()))?;
    bytes.push(b'\n');
    bytes.extend(body);
    write_atomically(path, &bytes)
}

/// Moves a file that is not obeyed out of the way; says so in one sentence.
pub(super) fn set_aside(path: &Path, fault: &Unsealed) -> String {
    let broken: PathBuf = path.with_extension("json.broken");
    let aside = match disk::rename(path, &broken) {
        Ok(()) => format!("was set aside as {}", broken.display()),
        Err(error) => format!("can't be set aside: {error}"),
    };
    format!("{} is not obeyed and {aside}: {fault}", path.display())
}

/// As in a checksum's usual spelling.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
