//! Pulling with credentials: a real Docker Engine, a registry of the test's own, and Docker's `config.json`. Docker
//! alone: it speaks plain HTTP to registries on loopback, Podman only where its configuration says so.

use std::{fs, os::unix::fs::PermissionsExt, sync::Mutex};

use sherd::runtime::{
    Progress, Runtime, RuntimeError,
    docker::{DockerConfig, DockerRuntime},
};
use sherd_testkit::{Need, docker_socket, needs};

#[path = "runtime/engine.rs"]
#[allow(dead_code, reason = "shared with the tests of engines")]
mod engine;
#[path = "runtime/registry.rs"]
mod registry;
#[path = "runtime/support.rs"]
#[allow(dead_code, reason = "shared with the tests of engines")]
mod support;

use engine::Engine;
use support::{block_on, cpus, order, slot};

struct Pulled {
    result: Result<(), RuntimeError>,
    steps: Vec<Progress>,
}

fn pull(engine: &Engine, image: &str, config_json: &str) -> Pulled {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.json"), config_json).unwrap();
    let config = DockerConfig { credentials: Some(directory.path().to_owned()), ..engine.config() };
    let order = order(&format!("name = \"web\"\n[container]\nimage = \"{image}\"\n"), slot(0, &cpus()[..1]), 1);
    let steps = Mutex::new(Vec::new());
    let progress = |step: Progress| steps.lock().unwrap().push(step);
    let result = block_on(DockerRuntime::new(config).prepare(&order.spec, &progress));
    Pulled { result, steps: steps.into_inner().unwrap() }
}

#[test]
fn an_image_is_pulled_with_the_credentials_of_docker_login() {
    if !needs("an_image_is_pulled_with_the_credentials_of_docker_login", &[Need::Root, Need::Docker]) {
        return;
    }
    let engine = Engine::new(docker_socket(), "registry");
    let address = registry::serve(engine::busybox_tar());
    let image = format!("{address}/app:1");
    let auths = |auth: &str| format!(r#"{{"auths": {{"{address}": {{"auth": "{auth}"}}}}}}"#);

    for config in ["{}".to_owned(), auths("d3Jvbmc6d3Jvbmc=")] {
        let refused = pull(&engine, &image, &config).result;
        assert!(
            matches!(&refused, Err(RuntimeError::RegistryDenied { registry, .. }) if *registry == address),
            "{refused:?}"
        );
    }
    let broken = pull(&engine, &image, "{").result;
    assert!(matches!(broken, Err(RuntimeError::BadCredentials { .. })), "{broken:?}");
    let absent = pull(&engine, &format!("{address}/app:2"), &auths(registry::AUTH)).result;
    assert!(matches!(absent, Err(RuntimeError::NoSuchImage { .. })), "{absent:?}");

    let pulled = pull(&engine, &image, &auths(registry::AUTH));
    pulled.result.unwrap();
    assert!(pulled.steps.iter().any(|step| step.action == "Pull complete"), "{:?}", pulled.steps);
    assert!(pulled.steps.iter().any(|step| step.bytes.is_some_and(|(_, total)| total > 0)), "{:?}", pulled.steps);
    let again = pull(&engine, &image, "{}");
    again.result.unwrap();
    assert_eq!(again.steps, [], "it is there");
    engine.json("DELETE", &format!("/images/{image}?force=1"), &serde_json::Value::Null);
}

#[test]
fn a_credential_helper_is_asked() {
    if !needs("a_credential_helper_is_asked", &[Need::Root, Need::Docker]) {
        return;
    }
    let engine = Engine::new(docker_socket(), "helper");
    let address = registry::serve(engine::busybox_tar());
    let programs = tempfile::tempdir().unwrap();
    let helper = programs.path().join("docker-credential-sherd-test");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {address} ] || exit 1\n\
         echo '{{\"ServerURL\": \"x\", \"Username\": \"user\", \"Secret\": \"secret\"}}'\n"
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    // The helper's name is joined to `docker-credential-`, and looked up in PATH unless it is a path.
    let image = format!("{address}/app:1");
    let config = format!(r#"{{"credHelpers": {{"{address}": "sherd-test"}}}}"#);
    let missing = pull(&engine, &image, &config).result;
    assert!(matches!(missing, Err(RuntimeError::BadCredentials { .. })), "{missing:?}");
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pull_as_told", "--nocapture"])
        .env("PATH", format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap()))
        .env("SHERD_TEST_PULL", format!("{image} {config}"))
        .status()
        .unwrap();
    assert!(child.success());
    engine.json("DELETE", &format!("/images/{image}?force=1"), &serde_json::Value::Null);
}

/// The half of the test above that needs another PATH, in a process of its own; does nothing by itself.
#[test]
fn pull_as_told() {
    let Ok(told) = std::env::var("SHERD_TEST_PULL") else { return };
    let (image, config) = told.split_once(' ').unwrap();
    let engine = Engine::new(docker_socket(), "helped");
    pull(&engine, image, config).result.unwrap();
}
