//! Images: whether the engine has one, what it brings, and pulling it with progress and credentials.

use std::{collections::BTreeMap, path::Path};

use bollard::{auth::DockerCredentials, models::CreateImageInfo, query_parameters::CreateImageOptions};
use futures_util::StreamExt;

use super::{
    body,
    connection::Connection,
    credentials::{self, Credentials},
    failure::Failure,
    reference::Reference,
};
use crate::{
    runtime::{ImageId, Operation, Progress, ProgressSink, RuntimeError},
    spec::PullPolicy,
};

/// What an image says of the containers that are made from it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Defaults {
    /// Which image it is; absent where the engine doesn't say.
    pub(super) id: Option<ImageId>,
    /// The variables it sets.
    pub(super) environment: BTreeMap<String, String>,
    /// Empty when it has none.
    pub(super) entrypoint: Vec<String>,
    /// Empty when it has none.
    pub(super) command: Vec<String>,
    /// The test of its HEALTHCHECK; empty when it has none.
    pub(super) healthcheck: Vec<String>,
}

/// Sees to it that the engine has the image.
pub(super) async fn ensure(
    engine: &Connection,
    image: &str,
    policy: PullPolicy,
    credentials: Option<&Path>,
    progress: ProgressSink<'_>,
) -> Result<(), RuntimeError> {
    let reference = Reference::parse(image)?;
    // An image's own id is not a name in any registry.
    let policy = if image.starts_with("sha256:") { PullPolicy::Never } else { policy };
    match (policy, defaults(engine, image).await) {
        (PullPolicy::Missing | PullPolicy::Never, Ok(_)) => Ok(()),
        (PullPolicy::Never, Err(RuntimeError::NoSuchImage { image, .. })) => {
            let reason = "the engine does not have it, and the pull policy is `never`".to_owned();
            Err(RuntimeError::NoSuchImage { image, reason })
        }
        (PullPolicy::Missing, Err(RuntimeError::NoSuchImage { .. })) | (PullPolicy::Always, _) => {
            pull(engine, image, &reference, credentials, progress).await?;
            defaults(engine, image).await.map(drop)
        }
        (_, Err(other)) => Err(other),
    }
}

/// What the image brings.
pub(super) async fn defaults(engine: &Connection, image: &str) -> Result<Defaults, RuntimeError> {
    let operation = Operation::InspectImage;
    let name = image.to_owned();
    let ask = engine.timeouts.ask;
    match engine.call(operation, ask, |client| async move { client.inspect_image(&name).await }).await {
        Ok(found) => {
            let config = found.config.unwrap_or_default();
            Ok(Defaults {
                id: found.id.as_deref().map(ImageId::new),
                environment: body::parse_environment(&config.env.unwrap_or_default()),
                entrypoint: config.entrypoint.unwrap_or_default(),
                command: config.cmd.unwrap_or_default(),
                healthcheck: config.healthcheck.and_then(|check| check.test).unwrap_or_default(),
            })
        }
        Err(Failure::NotFound(reason)) => Err(RuntimeError::NoSuchImage { image: image.to_owned(), reason }),
        Err(failure) => Err(failure.into_error(operation, engine.address())),
    }
}

async fn pull(
    engine: &Connection,
    image: &str,
    reference: &Reference,
    directory: Option<&Path>,
    progress: ProgressSink<'_>,
) -> Result<(), RuntimeError> {
    let credentials = match directory {
        Some(directory) => credentials::find(directory, &reference.registry).await?,
        None => None,
    };
    let options = CreateImageOptions {
        from_image: Some(reference.name.clone()),
        tag: Some(reference.version().to_owned()),
        ..Default::default()
    };
    let client = engine.client(Operation::Pull).await?;
    let registry = &reference.registry;
    let mut words = client.create_image(Some(options), None, credentials.map(|found| for_engine(found, registry)));
    let after = engine.timeouts.pull_stall;
    loop {
        match tokio::time::timeout(after, words.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(word))) => progress(report(word, image)),
            Ok(Some(Err(error))) => {
                let failure = Failure::of(error, Operation::Pull, engine.address());
                return Err(explain(failure, image, registry, engine));
            }
            Err(_) => {
                let engine = engine.address().to_owned();
                return Err(RuntimeError::TimedOut { operation: Operation::Pull, engine, after });
            }
        }
    }
}

fn for_engine(credentials: Credentials, registry: &str) -> DockerCredentials {
    let serveraddress = Some(registry.to_owned());
    match credentials {
        Credentials::Password { user, password } => {
            DockerCredentials { username: Some(user), password: Some(password), serveraddress, ..Default::default() }
        }
        Credentials::IdentityToken(token) => {
            DockerCredentials { identitytoken: Some(token), serveraddress, ..Default::default() }
        }
    }
}

fn report(word: CreateImageInfo, image: &str) -> Progress {
    let count = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
    Progress {
        subject: word.id.unwrap_or_else(|| image.to_owned()),
        action: word.status.unwrap_or_default(),
        bytes: word.progress_detail.and_then(|detail| count(detail.current).zip(count(detail.total))),
    }
}

/// Engines relay the registry's words; which of three things is wrong stands only there.
fn explain(failure: Failure, image: &str, registry: &str, engine: &Connection) -> RuntimeError {
    let reason = match failure {
        Failure::Runtime(error) => return error,
        Failure::NotFound(reason) | Failure::Conflict(reason) | Failure::Refused { message: reason, .. } => reason,
    };
    tracing::debug!(image, registry, engine = engine.address(), reason, "a pull failed");
    let image = image.to_owned();
    let says = |words: &[&str]| words.iter().any(|word| reason.to_lowercase().contains(word));
    if says(&["denied", "unauthorized", "no basic auth", "authentication required", "authorization failed"]) {
        RuntimeError::RegistryDenied { image, registry: registry.to_owned(), reason }
    } else if says(&["manifest unknown", "not found", "name unknown", "no such image"]) {
        RuntimeError::NoSuchImage { image, reason }
    } else {
        RuntimeError::PullFailed { image, reason }
    }
}
