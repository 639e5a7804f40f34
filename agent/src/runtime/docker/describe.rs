//! What an engine says of itself, for who only wants to know. Asks two questions and changes nothing.

use std::path::Path;

use serde::Deserialize;

use super::{connection::Timeouts, wire};

/// A container engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// `Engine` is Docker's, `Podman Engine` Podman's.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Of its API, as (1, 41).
    pub api: (usize, usize),
    /// Whether its containers go on while it is away.
    pub live_restore: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Version {
    version: String,
    api_version: String,
    components: Vec<Component>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(default)]
    live_restore_enabled: bool,
}

/// Asks the engine on a socket.
///
/// # Errors
/// Why it doesn't answer, in words.
pub async fn describe_engine(socket: &Path) -> Result<EngineFacts, String> {
    let address = format!("unix://{}", socket.display());
    let ask = async {
        let version: Version = wire::get(&address, "/version").await?;
        let info: Info = wire::get(&address, "/info").await?;
        Ok::<_, bollard::errors::Error>((version, info))
    };
    let answer = tokio::time::timeout(Timeouts::default().ask, ask).await;
    let (version, info) =
        answer.map_err(|_| "it does not answer in time".to_owned())?.map_err(|error| error.to_string())?;
    let api = &version.api_version;
    let api = api.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    Ok(EngineFacts {
        name: version.components.into_iter().next().map_or_else(|| "Engine".to_owned(), |first| first.name),
        version: version.version,
        api: api.ok_or_else(|| format!("its API version is `{}`", version.api_version))?,
        live_restore: info.live_restore_enabled,
    })
}
