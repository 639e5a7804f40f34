//! Registry credentials as `docker login` leaves them: Docker's `config.json` and its credential helpers. Reads, never
//! writes; secrets go nowhere but into the pull.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::reference::DOCKER_HUB;
use crate::runtime::RuntimeError;

/// Docker Hub's key in `config.json`, from the time of the registry's first API.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// A helper may ask a keyring, but nobody is there to answer a prompt.
const HELPER_TIMEOUT: Duration = Duration::from_secs(20);
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What a registry wants to see.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Password { user: String, password: String },
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// `$DOCKER_CONFIG`, else `~/.docker`.
pub(super) fn default_directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")))
}

/// The credentials for `registry`, if there are any. No file is no error; a broken one is.
pub(super) async fn find(directory: &Path, registry: &str) -> Result<Option<Credentials>, RuntimeError> {
    let path = directory.join("config.json");
    let bad = |path: &Path, reason: String| RuntimeError::BadCredentials {
        registry: registry.to_owned(),
        path: path.to_owned(),
        reason,
    };
    let text = match tokio::fs::read(&path).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(bad(&path, error.to_string())),
    };
    let config: Config = serde_json::from_slice(&text).map_err(|error| bad(&path, error.to_string()))?;
    let key = server(registry);
    let helper = config.cred_helpers.iter().find(|(server, _)| host(server) == host(key)).map(|(_, helper)| helper);
    if let Some(helper) = helper.or(config.creds_store.as_ref()) {
        let program = format!("docker-credential-{helper}");
        let found = ask_helper(&program, key).await.map_err(|reason| bad(Path::new(&program), reason))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    match config.auths.iter().find(|(server, _)| host(server) == host(key)) {
        Some((_, auth)) => auth.credentials().map_err(|reason| bad(&path, reason)),
        None => Ok(None),
    }
}

impl Auth {
    fn credentials(&self) -> Result<Option<Credentials>, String> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identitytoken.clone())));
        }
        if self.auth.is_empty() {
            let Self { username, password, .. } = self;
            let set = !username.is_empty();
            return Ok(set.then(|| Credentials::Password { user: username.clone(), password: password.clone() }));
        }
        let decoded = STANDARD.decode(self.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
        let (user, password) = pair.ok_or("its `auth` is not the base64 of USER:PASSWORD")?;
        // Some versions of `docker login` padded with NUL.
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Credentials::Password { user: user.to_owned(), password }))
    }
}

fn server(registry: &str) -> &str {
    if registry == DOCKER_HUB { DOCKER_HUB_KEY } else { registry }
}

/// Keys are written as hosts, as URLs, and Docker Hub's in three ways.
fn host(key: &str) -> &str {
    let host = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = host.split_once('/').map_or(host, |(host, _)| host);
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { DOCKER_HUB } else { host }
}

/// The protocol of docker-credential-helpers: the server on standard input, JSON on standard output.
async fn ask_helper(program: &str, server: &str) -> Result<Option<Credentials>, String> {
    let run = async {
        let mut child = tokio::process::Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(server.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output: Output = match tokio::time::timeout(HELPER_TIMEOUT, run).await {
        Ok(output) => output.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no answer within {HELPER_TIMEOUT:?}")),
    };
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        return if words.contains("not found") { Ok(None) } else { Err(format!("{}: {words}", output.status)) };
    }
    let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|_| "its answer is not JSON".to_owned())?;
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credentials::IdentityToken(answer.secret),
        _ => Credentials::Password { user: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(config: &str, registry: &str, expected: Result<Option<Credentials>, ()>) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        let found = find(directory.path(), registry).await;
        match (&found, &expected) {
            (Ok(found), Ok(expected)) if found == expected => {}
            (Err(RuntimeError::BadCredentials { .. }), Err(())) => {}
            _ => panic!("{config} for {registry}: {found:?}"),
        }
    }

    fn password(user: &str, password: &str) -> Result<Option<Credentials>, ()> {
        Ok(Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() }))
    }

    #[tokio::test]
    async fn credentials_are_found_as_docker_finds_them() {
        // "u:p:q"
        let auths = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpwOnE="}, "r.example:5000": {"auth": "dTpw"},
            "https://t.example/v2/": {"identitytoken": "tok"}, "empty.example": {}}}"#;
        check(auths, "docker.io", password("u", "p:q")).await;
        check(auths, "r.example:5000", password("u", "p")).await;
        check(auths, "r.example", Ok(None)).await;
        check(auths, "t.example", Ok(Some(Credentials::IdentityToken("tok".into())))).await;
        check(auths, "empty.example", Ok(None)).await;
        check("{}", "docker.io", Ok(None)).await;
        check("{", "docker.io", Err(())).await;
        check(r#"{"auths": {"docker.io": {"auth": "!"}}}"#, "docker.io", Err(())).await;
        check(r#"{"credHelpers": {"r.example": "sherd-test-absent"}}"#, "r.example", Err(())).await;
        check(r#"{"credHelpers": {"r.example": "sherd-test-absent"}}"#, "docker.io", Ok(None)).await;
        let nowhere = tempfile::tempdir().unwrap();
        assert!(find(nowhere.path(), "docker.io").await.unwrap().is_none());
    }
}
