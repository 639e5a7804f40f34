//! The create body of a shard's container: the operator's options, and over them what sherd decides. PURE.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use sherd_topology::plan::{MemoryBinding, Slot};

use super::{extra, image::Defaults, labels, shim};
use crate::{
    runtime::{RuntimeError, ShardOrder, ShimOrder, environment},
    spec::{ContainerSpec, Logging, Ulimit},
};

/// The body to create `order`'s container with. `image` is what the image brings.
pub(super) fn create(
    order: &ShardOrder,
    container: &ContainerSpec,
    instance: &str,
    image: &Defaults,
) -> Result<ContainerCreateBody, RuntimeError> {
    let mut body = extra::parse(&container.extra)?;
    let mut host = body.host_config.take().unwrap_or_default();
    host_options(&mut host, container);
    pin(&mut host, &order.slot);
    if let Some(limit) = container.memory_bytes.or(order.slot.memory_limit_bytes) {
        host.memory = Some(i64::try_from(limit).unwrap_or(i64::MAX));
    }
    host.restart_policy = Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None });

    let limit = host.memory.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0);
    let mut user = parse_environment(body.env.as_deref().unwrap_or_default());
    user.extend(order.spec.environment.clone());
    let variables = environment::variables(order, &user, &image.environment, limit);
    body.env = Some(variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect());

    body.image = Some(container.image.clone());
    body.cmd = container.command.clone().or(body.cmd);
    body.entrypoint = container.entrypoint.clone().or(body.entrypoint);
    body.user = container.user.clone().or(body.user);
    body.working_dir = container.working_dir.clone().or(body.working_dir);
    let mut all_labels = body.labels.take().unwrap_or_default();
    all_labels.extend(container.labels.clone());
    all_labels.extend(labels::of(order, instance));
    body.labels = Some(all_labels);
    body.host_config = Some(host);
    let goes_without = |shim: &ShimOrder| image.id.as_ref().is_some_and(|id| shim.except.contains(id));
    if let Some(order) = order.shim.as_ref().filter(|shim| !goes_without(shim)) {
        shim::put_in_front(&mut body, order, image)?;
    }
    Ok(body)
}

/// Splits `NAME=VALUE`; a name without `=` is Docker's "take it away", kept as an empty value.
pub(super) fn parse_environment(variables: &[String]) -> BTreeMap<String, String> {
    let split = |variable: &String| {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        (name.to_owned(), value.to_owned())
    };
    variables.iter().map(split).collect()
}

/// CPUs always; memory nodes only where memory is bound, because an engine can't merely prefer them.
fn pin(host: &mut HostConfig, slot: &Slot) {
    host.cpuset_cpus = Some(slot.cpus.to_string());
    host.cpuset_mems = (slot.memory == MemoryBinding::Bind).then(|| slot.mems.to_string());
}

fn host_options(host: &mut HostConfig, container: &ContainerSpec) {
    let list = |typed: &[String], extra: Option<Vec<String>>| match typed {
        [] => extra,
        typed => Some(typed.to_vec()),
    };
    host.binds = list(&container.volumes, host.binds.take());
    host.cap_add = list(&container.cap_add, host.cap_add.take());
    host.cap_drop = list(&container.cap_drop, host.cap_drop.take());
    host.security_opt = list(&container.security_opt, host.security_opt.take());
    host.network_mode = container.network.clone().or(host.network_mode.take());
    host.log_config = container.logging.as_ref().map(log_config).or(host.log_config.take());
    if !container.ulimits.is_empty() {
        host.ulimits = Some(container.ulimits.iter().map(ulimit).collect());
    }
    if !container.tmpfs.is_empty() {
        host.tmpfs = Some(container.tmpfs.clone().into_iter().collect());
    }
    if container.read_only {
        host.readonly_rootfs = Some(true);
    }
}

fn log_config(logging: &Logging) -> HostConfigLogConfig {
    let options: HashMap<_, _> = logging.options.clone().into_iter().collect();
    HostConfigLogConfig { typ: Some(logging.driver.clone()), config: Some(options) }
}

fn ulimit(limit: &Ulimit) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(limit.name.clone()), soft: Some(limit.soft), hard: Some(limit.hard) }
}
