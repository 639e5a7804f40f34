//! Puts the shim in front of a container's own program: two mounts and another entrypoint in its create body. PURE.

use std::path::Path;

use bollard::models::{ContainerCreateBody, Mount, MountType};

use super::image::Defaults;
use crate::{
    runtime::{RuntimeError, ShimOrder},
    shim,
};

/// Where a container has its two directories; no image has anything there.
const PROGRAMS: &str = "/.sherd/bin";
const DOOR: &str = "/.sherd/run";

/// Whether a container of ours has the shim in front, by its entrypoint.
pub(super) fn is_in_front(entrypoint: &serde_json::Value) -> bool {
    entrypoint[0].as_str().is_some_and(|program| program == format!("{PROGRAMS}/{}", shim::NAME))
}

/// Changes a body that is otherwise complete, so that the shim becomes the program that would have been started.
pub(super) fn put_in_front(
    body: &mut ContainerCreateBody,
    order: &ShimOrder,
    image: &Defaults,
) -> Result<(), RuntimeError> {
    let (entrypoint, command) = program(body, image);
    if entrypoint.is_empty() && command.is_empty() {
        return Err(RuntimeError::NoCommand { image: body.image.clone().unwrap_or_default() });
    }
    let (program, socket) = (format!("{PROGRAMS}/{}", shim::NAME), format!("{DOOR}/broker"));
    let in_front = [&*program, "--socket", &*socket, "--"].map(str::to_owned);
    body.entrypoint = Some(in_front.into_iter().chain(entrypoint).collect());
    body.cmd = Some(command).filter(|command| !command.is_empty());
    let mounts = body.host_config.get_or_insert_default().mounts.get_or_insert_default();
    mounts.extend([(&order.programs, PROGRAMS), (&order.door, DOOR)].map(|(source, target)| mount(source, target)));
    Ok(())
}

/// Entrypoint and command as engines put them together (moby, daemon/commit.go, `merge`, and daemon/container.go).
fn program(body: &mut ContainerCreateBody, image: &Defaults) -> (Vec<String>, Vec<String>) {
    let command = body.cmd.take();
    let (entrypoint, command) = match body.entrypoint.take() {
        // It drops the image's command, which was meant for the image's entrypoint.
        Some(entrypoint) => (entrypoint, command.unwrap_or_default()),
        None => (image.entrypoint.clone(), command.unwrap_or_else(|| image.command.clone())),
    };
    // What `--entrypoint ""` sends: no entrypoint, also not the image's.
    if entrypoint == [""] { (Vec::new(), command) } else { (entrypoint, command) }
}

/// Read-only: connecting to a socket takes no more. Not one of `Binds`: their syntax has no place for a colon in a
/// path, and an engine makes a source that is missing instead of saying so.
fn mount(source: &Path, target: &str) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(true),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use sherd_topology::plan::{MemoryBinding, Slot, SlotId};

    use super::*;
    use crate::{
        runtime::{ImageId, ShardKey, ShardOrder, docker::body},
        spec::{GroupSpec, RuntimeSpec},
    };

    /// The body for a container with these options, as JSON.
    fn body(options: &str, image: &Defaults, shim: Option<ShimOrder>) -> Result<serde_json::Value, RuntimeError> {
        let spec = GroupSpec::parse("test", &format!("name = \"web\"\n[container]\nimage = \"app:1\"\n{options}"));
        let spec = Arc::new(spec.unwrap_or_else(|faults| panic!("{faults}")));
        let id = SlotId(0);
        let slot = Slot {
            id,
            cpus: "0".parse().unwrap(),
            mems: "0".parse().unwrap(),
            memory: MemoryBinding::Bind,
            memory_limit_bytes: None,
        };
        let key = ShardKey { group: spec.name.clone(), slot: id };
        let order =
            ShardOrder { key, spec: spec.clone(), slot, shards: 1, generation: 1, process_ports: Vec::new(), shim };
        let RuntimeSpec::Docker(container) = &spec.runtime else { panic!("a container") };
        Ok(json!(body::create(&order, container, "default", image)?))
    }

    fn shim() -> Option<ShimOrder> {
        let except = [ImageId::new("sha256:bad")].into();
        Some(ShimOrder { programs: "/var/lib/sherd/bin".into(), door: "/run/sherd/a:b".into(), except })
    }

    fn image(entrypoint: &[&str], command: &[&str]) -> Defaults {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Defaults { entrypoint: words(entrypoint), command: words(command), ..Default::default() }
    }

    #[test]
    fn the_shim_is_given_what_the_engine_would_have_run() {
        let check = |options: &str, image: &Defaults, entrypoint: &[&str], command: serde_json::Value| {
            let found = body(options, image, shim()).unwrap();
            let in_front = ["/.sherd/bin/sherd-shim", "--socket", "/.sherd/run/broker", "--"];
            assert_eq!(found["Entrypoint"], json!([&in_front, entrypoint].concat()), "{options} {image:?}");
            assert!(is_in_front(&found["Entrypoint"]));
            assert_eq!(found["Cmd"], command, "{options} {image:?}");
        };
        let both = image(&["/init", "-v"], &["serve", "now"]);
        check("", &both, &["/init", "-v"], json!(["serve", "now"]));
        check("command = [\"stop\"]", &both, &["/init", "-v"], json!(["stop"]));
        check("entrypoint = [\"/sh\"]", &both, &["/sh"], json!(null));
        check("entrypoint = [\"/sh\"]\ncommand = [\"x\"]", &both, &["/sh"], json!(["x"]));
        check("entrypoint = [\"\"]\ncommand = [\"/x\", \"\"]", &both, &[], json!(["/x", ""]));
        check("extra = { Entrypoint = [\"/e\"] }", &both, &["/e"], json!(null));
        check("extra = { Entrypoint = [\"/e\"], Cmd = [\"c\"] }", &both, &["/e"], json!(["c"]));
        check("command = [\"x\"]\nextra = { Cmd = [\"c\"] }", &both, &["/init", "-v"], json!(["x"]));
        check("extra = { Entrypoint = [] }", &both, &["/init", "-v"], json!(["serve", "now"]));
        check("", &image(&["/init"], &[]), &["/init"], json!(null));
        check("", &image(&[], &["/serve"]), &[], json!(["/serve"]));
        check("", &image(&[""], &["/serve"]), &[], json!(["/serve"]));
        check("command = [\"/x\"]", &image(&[], &[]), &[], json!(["/x"]));
    }

    #[test]
    fn a_container_without_a_program_is_refused() {
        let check = |options: &str, image: &Defaults| {
            let error = body(options, image, shim()).unwrap_err();
            assert!(matches!(&error, RuntimeError::NoCommand { image } if image == "app:1"), "{error}");
        };
        check("", &image(&[], &[]));
        check("entrypoint = [\"\"]", &image(&["/init"], &["serve"]));
    }

    #[test]
    fn its_mounts_come_beside_the_operators() {
        let options = "volumes = [\"/a:/b:ro\"]\nextra = { HostConfig = { Init = true, Mounts = [{ Type = \"tmpfs\", \
                       Target = \"/t\" }] } }";
        let found = body(options, &image(&["/init"], &[]), shim()).unwrap();
        let bind = |source, target| json!({ "Type": "bind", "Source": source, "Target": target, "ReadOnly": true });
        let mounts = json!([
            { "Type": "tmpfs", "Target": "/t" },
            bind("/var/lib/sherd/bin", "/.sherd/bin"),
            bind("/run/sherd/a:b", "/.sherd/run"),
        ]);
        assert_eq!(found["HostConfig"]["Mounts"], mounts);
        assert_eq!(found["HostConfig"]["Binds"], json!(["/a:/b:ro"]));
        assert_eq!(found["HostConfig"]["Init"], json!(true));
    }

    #[test]
    fn an_image_that_is_excepted_goes_without() {
        let image = |id| Defaults { id: Some(ImageId::new(id)), ..image(&["/init"], &["serve"]) };
        let entrypoint = |id| body("", &image(id), shim()).unwrap()["Entrypoint"].clone();
        assert_eq!(entrypoint("bad"), json!(null));
        assert!(!is_in_front(&entrypoint("bad")));
        assert!(is_in_front(&entrypoint("sha256:good")));
    }

    #[test]
    fn without_an_order_the_engine_puts_the_program_together() {
        let found = body("command = [\"x\"]", &image(&["/init"], &["serve"]), None).unwrap();
        assert_eq!((&found["Entrypoint"], &found["Cmd"]), (&json!(null), &json!(["x"])));
        assert_eq!(found["HostConfig"]["Mounts"], json!(null));
    }
}
