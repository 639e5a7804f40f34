//! What an image's HEALTHCHECK comes to: whether there is one, and what the engine says by it. PURE.

use super::{image::Defaults, wire::State};
use crate::{
    runtime::{EngineHealth, RuntimeError, executed::Tail},
    spec::{Check, ContainerSpec, GroupSpec},
};

/// A specification that follows the image's own check needs one.
pub(super) fn check_image(spec: &GroupSpec, container: &ContainerSpec, image: &Defaults) -> Result<(), RuntimeError> {
    let words = |test: &serde_json::Value| -> Vec<String> {
        let words = test.as_array().into_iter().flatten();
        words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    // The operator's own goes before the image's.
    let own = container.extra.pointer("/Healthcheck/Test").map(words).filter(|test| !test.is_empty());
    let test = own.as_ref().unwrap_or(&image.healthcheck);
    let is_none = test.first().is_none_or(|first| first == "NONE");
    match spec.readiness.check == Check::Image && is_none {
        true => Err(RuntimeError::NoHealthcheck { image: container.image.clone() }),
        false => Ok(()),
    }
}

/// What the engine says of a container.
pub(super) fn of(state: &State) -> EngineHealth {
    let Some(health) = &state.health else { return EngineHealth::None };
    match health.status.as_str() {
        "healthy" => EngineHealth::Healthy,
        "starting" => EngineHealth::Starting,
        // Podman describes the check of a container that has none.
        "" | "none" => EngineHealth::None,
        _ => {
            let mut tail = Tail::default();
            tail.add(health.log.iter().flatten().next_back().map_or(b"", |run| run.output.as_bytes()));
            EngineHealth::Unhealthy { output: tail.text() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_says_how_a_container_is() {
        let check = |json: &str, expected| {
            let state: State = serde_json::from_str(json).expect("JSON");
            assert_eq!(of(&state), expected, "{json}");
        };
        check("{}", EngineHealth::None);
        check(r#"{"Health": null}"#, EngineHealth::None);
        check(r#"{"Health": {"Status": "", "Log": null}}"#, EngineHealth::None);
        check(r#"{"Health": {"Status": "starting"}}"#, EngineHealth::Starting);
        check(r#"{"Health": {"Status": "healthy", "FailingStreak": 0}}"#, EngineHealth::Healthy);
        let log = r#"{"Health": {"Status": "unhealthy", "Log": [{"Output": "fine"}, {"Output": " broken\n"}]}}"#;
        check(log, EngineHealth::Unhealthy { output: "broken".to_owned() });
    }

    #[test]
    fn the_operators_check_goes_before_the_images() {
        let check = |image: &[&str], extra: &str, expected: bool| {
            let text = format!("name = \"web\"\n[container]\nimage = \"a\"\n{extra}\n[readiness]\ncheck = \"image\"\n");
            let spec = GroupSpec::parse("web.toml", &text).unwrap_or_else(|faults| panic!("{faults}"));
            let crate::spec::RuntimeSpec::Docker(container) = &spec.runtime else { panic!("a container") };
            let healthcheck = image.iter().map(|word| (*word).to_owned()).collect();
            let found = check_image(&spec, container, &Defaults { healthcheck, ..Defaults::default() });
            assert_eq!(found.is_ok(), expected, "{image:?} {extra}");
        };
        check(&["CMD", "/check"], "", true);
        check(&[], "", false);
        check(&["NONE"], "", false);
        check(&[], "extra = { Healthcheck = { Test = [\"CMD\", \"/check\"] } }", true);
        check(&["CMD", "/check"], "extra = { Healthcheck = { Test = [\"NONE\"] } }", false);
        check(&["CMD", "/check"], "extra = { Healthcheck = { Test = [] } }", true);
    }
}
