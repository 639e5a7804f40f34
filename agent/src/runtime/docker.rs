//! Shards as containers of a Docker Engine API (Docker, Podman). With its children the only user of bollard, whose
//! types stay in here.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bollard::{
    models::{ContainerCreateBody, ContainerUpdateBody},
    query_parameters::{
        CreateContainerOptions, RemoveContainerOptions, RenameContainerOptions, StartContainerOptions,
        StopContainerOptions,
    },
};
use futures_util::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream};
use sherd_topology::plan::{MemoryBinding, Slot};

use self::{connection::Connection, failure::Failure, labels::Identity, observe::Seen, own::Own};
use super::{
    EngineHealth, Executed, Foreign, Listing, LogLine, ObservedShard, Operation, ProgressSink, Runtime, RuntimeError,
    RuntimeEvent, ShardId, ShardOrder,
};
use crate::{
    fault,
    spec::{Check, ContainerSpec, GroupSpec, RuntimeSpec},
};

mod body;
mod connection;
mod credentials;
mod describe;
mod events;
mod exec;
mod extra;
mod failure;
mod health;
mod image;
mod labels;
mod logs;
mod observe;
mod own;
mod reference;
mod shim;
mod wire;

pub(crate) use self::connection::OLDEST_API;
pub use self::connection::Timeouts;
pub use self::describe::{EngineFacts, describe_engine};

/// Containers that are asked about at once.
const INSPECTIONS: usize = 8;
/// Between two looks at a container that the engine is removing.
const REMOVAL_POLL: Duration = Duration::from_millis(50);

/// Where the engine is and as whom we come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// `unix:///PATH` or `tcp://HOST:PORT`.
    pub address: String,
    /// Separates several agents on one engine.
    pub instance: String,
    /// How long the engine may take.
    pub timeouts: Timeouts,
    /// The directory of Docker's `config.json`, for registry credentials.
    pub credentials: Option<PathBuf>,
    /// The file in which the ids of our containers are kept for the next agent; absent: they are not.
    pub own_ids: Option<PathBuf>,
}

impl DockerConfig {
    /// The engine of `DOCKER_HOST`, else the host's own; credentials from `DOCKER_CONFIG`, else `~/.docker`.
    pub fn from_environment(instance: &str) -> Self {
        let address = std::env::var("DOCKER_HOST").ok().filter(|address| !address.is_empty());
        Self {
            address: address.unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned()),
            instance: instance.to_owned(),
            timeouts: Timeouts::default(),
            credentials: credentials::default_directory(),
            own_ids: None,
        }
    }
}

/// The runtime of containers.
pub struct DockerRuntime {
    engine: Arc<Connection>,
    instance: String,
    credentials: Option<PathBuf>,
    execs: Arc<exec::Execs>,
    /// They are ours whatever they are called by now.
    own: Own,
}

impl DockerRuntime {
    /// Asks nothing yet: an engine that is not there is an error of the first call, and of that call only.
    pub fn new(config: DockerConfig) -> Self {
        let DockerConfig { address, instance, timeouts, credentials, own_ids } = config;
        let engine = Arc::new(Connection::new(address, timeouts));
        let execs = Arc::new(exec::Execs::new(Arc::clone(&engine)));
        Self { engine, instance, credentials, execs, own: Own::open(own_ids) }
    }

    async fn list(&self) -> Result<Listing, RuntimeError> {
        let operation = Operation::List;
        let filters = serde_json::json!({"label": [format!("{}={}", labels::INSTANCE, self.instance)]}).to_string();
        let path = format!("/containers/json?all=true&filters={}", wire::percent_encoded(&filters));
        let listed: Vec<wire::Listed> = (self.engine.get(operation, &path).await)
            .map_err(|failure| failure.into_error(operation, self.engine.address()))?;
        let ids = listed.into_iter().filter_map(|container| container.id);
        // Containers that go away between the two questions are gone.
        let found: Vec<_> = stream::iter(ids)
            .map(|id| self.observe(id, operation))
            .buffer_unordered(INSPECTIONS)
            .try_filter_map(async |found| Ok(found))
            .try_collect()
            .await?;
        let mut listing = Listing::default();
        for container in found {
            match container {
                Ok(Seen { shard, renamed }) => {
                    listing.renamed.extend(renamed);
                    listing.shards.push(shard);
                }
                Err(foreign) => listing.foreign.push(foreign),
            }
        }
        self.own.replace(listing.shards.iter().map(|shard| shard.id.clone()).collect());
        listing.shards.sort_by(|a, b| (&a.key, a.generation, &a.id).cmp(&(&b.key, b.generation, &b.id)));
        listing.foreign.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(listing)
    }

    async fn observe(&self, name: String, operation: Operation) -> Result<Option<Result<Seen, Foreign>>, RuntimeError> {
        let Some(found) = self.inspect(name, operation).await? else { return Ok(None) };
        Ok(Some(observe::container(&found, &self.instance, |id| self.own.contains(id))))
    }

    async fn inspect(&self, name: String, operation: Operation) -> Result<Option<wire::Inspected>, RuntimeError> {
        match self.engine.get(operation, &format!("/containers/{name}/json")).await {
            Ok(found) => Ok(Some(found)),
            Err(Failure::NotFound(_)) => Ok(None),
            Err(failure) => Err(failure.into_error(operation, self.engine.address())),
        }
    }

    async fn create(&self, order: &ShardOrder) -> Result<ShardId, RuntimeError> {
        let container = container_of(&order.spec)?;
        let image = image::defaults(&self.engine, &container.image).await?;
        health::check_image(&order.spec, container, &image)?;
        let body = body::create(order, container, &self.instance, &image)?;
        let identity = Identity::of(order);
        let name = identity.name(&self.instance);
        fault::point("create.before");
        let id = match self.create_container(name.clone(), body).await {
            Ok(id) => id,
            Err(Failure::Conflict(_)) => self.adopt(name, &identity).await?,
            Err(Failure::NotFound(reason)) => {
                return Err(RuntimeError::NoSuchImage { image: container.image.clone(), reason });
            }
            Err(failure) => return Err(failure.into_error(Operation::Create, self.engine.address())),
        };
        fault::point("create.after");
        self.own.add(&id);
        Ok(id)
    }

    async fn create_container(&self, name: String, body: ContainerCreateBody) -> Result<ShardId, Failure> {
        let options = CreateContainerOptions { name: Some(name), ..Default::default() };
        let create = |client: bollard::Docker| async move { client.create_container(Some(options), body).await };
        let created = self.engine.call(Operation::Create, self.engine.timeouts.change, create).await?;
        for warning in created.warnings {
            tracing::warn!(container = created.id, warning, "the engine created it with a warning");
        }
        Ok(ShardId(created.id))
    }

    /// The name is taken: by what a killed agent (or our own call, after its time-out) made, or by a stranger.
    async fn adopt(&self, name: String, wanted: &Identity) -> Result<ShardId, RuntimeError> {
        let conflict = |difference: String| RuntimeError::Conflict { name: name.clone(), difference };
        match self.observe(name.clone(), Operation::Create).await? {
            Some(Ok(found)) => {
                let ObservedShard { id, key, spec, generation, .. } = found.shard;
                let found = Identity { key, spec, generation };
                if found == *wanted { Ok(id) } else { Err(conflict(format!("it is {found:?}"))) }
            }
            Some(Err(foreign)) => Err(conflict(foreign.reason)),
            None => Err(conflict("it was there and is gone again".to_owned())),
        }
    }

    async fn start(&self, id: &ShardId) -> Result<(), RuntimeError> {
        let name = id.0.clone();
        let start =
            |client: bollard::Docker| async move { client.start_container(&name, None::<StartContainerOptions>).await };
        fault::point("start.before");
        let answer = self.engine.call(Operation::Start, self.engine.timeouts.change, start).await;
        fault::point("start.after");
        match answer {
            Ok(()) => Ok(()),
            Err(Failure::NotFound(reason)) if reason.to_lowercase().contains("no such container") => {
                Err(RuntimeError::NoSuchShard { operation: Operation::Start, id: id.clone() })
            }
            // Engines say 404 and 400 too when the program isn't in the image.
            Err(Failure::NotFound(reason) | Failure::Conflict(reason) | Failure::Refused { message: reason, .. }) => {
                Err(RuntimeError::NotStarted { id: id.clone(), reason })
            }
            Err(Failure::Runtime(error)) => Err(error),
        }
    }

    async fn stop(&self, id: &ShardId, grace: Duration) -> Result<(), RuntimeError> {
        let grace_s = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        let options = StopContainerOptions { signal: None, t: Some(grace_s) };
        let name = id.0.clone();
        let stop = |client: bollard::Docker| async move { client.stop_container(&name, Some(options)).await };
        fault::point("stop.before");
        let answer = self.engine.call(Operation::Stop, grace + self.engine.timeouts.change, stop).await;
        fault::point("stop.after");
        match answer {
            Ok(()) | Err(Failure::NotFound(_)) => Ok(()),
            Err(failure) => Err(failure.into_error(Operation::Stop, self.engine.address())),
        }
    }

    /// Anonymous volumes go with their container; named ones and binds are the operator's.
    async fn remove(&self, id: &ShardId) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
        let name = id.0.clone();
        let remove = |client: bollard::Docker| async move { client.remove_container(&name, Some(options)).await };
        fault::point("remove.before");
        let answer = self.engine.call(Operation::Remove, self.engine.timeouts.change, remove).await;
        fault::point("remove.after");
        match answer {
            Ok(()) | Err(Failure::NotFound(_)) => Ok(()),
            Err(Failure::Conflict(_)) => self.removed_by_other(id).await,
            Err(failure) => Err(failure.into_error(Operation::Remove, self.engine.address())),
        }
    }

    /// Somebody's removal is under way already.
    async fn removed_by_other(&self, id: &ShardId) -> Result<(), RuntimeError> {
        let after = self.engine.timeouts.change;
        let gone = async {
            while self.inspect(id.0.clone(), Operation::Remove).await?.is_some() {
                tokio::time::sleep(REMOVAL_POLL).await;
            }
            Ok(())
        };
        tokio::time::timeout(after, gone).await.unwrap_or_else(|_| {
            let engine = self.engine.address().to_owned();
            Err(RuntimeError::TimedOut { operation: Operation::Remove, engine, after })
        })
    }

    async fn unpause(&self, id: &ShardId) -> Result<(), RuntimeError> {
        let name = id.0.clone();
        let unpause = |client: bollard::Docker| async move { client.unpause_container(&name).await };
        match self.engine.call(Operation::Unpause, self.engine.timeouts.change, unpause).await {
            Ok(()) | Err(Failure::NotFound(_)) => Ok(()),
            // Somebody was quicker; Docker says 500 (moby, daemon/unpause.go), Podman 409.
            Err(Failure::Conflict(reason) | Failure::Refused { message: reason, .. })
                if reason.contains("is not paused") =>
            {
                Ok(())
            }
            Err(failure) => Err(failure.into_error(Operation::Unpause, self.engine.address())),
        }
    }

    async fn rename(&self, id: &ShardId, name: &str) -> Result<(), RuntimeError> {
        let (id, options) = (id.0.clone(), RenameContainerOptions { name: name.to_owned() });
        let rename = |client: bollard::Docker| async move { client.rename_container(&id, options).await };
        match self.engine.call(Operation::Rename, self.engine.timeouts.ask, rename).await {
            Err(Failure::Conflict(difference)) => Err(RuntimeError::Conflict { name: name.to_owned(), difference }),
            Err(Failure::NotFound(_)) | Ok(()) => Ok(()),
            Err(failure) => Err(failure.into_error(Operation::Rename, self.engine.address())),
        }
    }

    async fn update_cpus(&self, id: &ShardId, slot: &Slot) -> Result<(), RuntimeError> {
        let update = ContainerUpdateBody {
            cpuset_cpus: Some(slot.cpus.to_string()),
            cpuset_mems: (slot.memory == MemoryBinding::Bind).then(|| slot.mems.to_string()),
            ..Default::default()
        };
        let operation = Operation::UpdateCpus;
        let name = id.0.clone();
        let update = |client: bollard::Docker| async move { client.update_container(&name, update).await };
        match self.engine.call(operation, self.engine.timeouts.change, update).await {
            Ok(()) => Ok(()),
            Err(Failure::NotFound(reason)) if reason.to_lowercase().contains("no such container") => {
                Err(RuntimeError::NoSuchShard { operation, id: id.clone() })
            }
            Err(Failure::NotFound(reason) | Failure::Conflict(reason) | Failure::Refused { message: reason, .. }) => {
                Err(RuntimeError::CannotMove { id: id.clone(), reason })
            }
            Err(Failure::Runtime(error)) => Err(error),
        }
    }
}

fn container_of(spec: &GroupSpec) -> Result<&ContainerSpec, RuntimeError> {
    match &spec.runtime {
        RuntimeSpec::Docker(container) => Ok(container),
        RuntimeSpec::Process(_) => Err(RuntimeError::WrongRuntime { group: spec.name.to_string(), runtime: "docker" }),
    }
}

impl Runtime for DockerRuntime {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn version(&self) -> BoxFuture<'_, Result<String, RuntimeError>> {
        self.engine.describe().boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Listing, RuntimeError>> {
        self.list().boxed()
    }

    fn prepare<'a>(
        &'a self,
        spec: &'a GroupSpec,
        progress: ProgressSink<'a>,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move {
            let container = container_of(spec)?;
            extra::parse(&container.extra)?;
            image::ensure(&self.engine, &container.image, container.pull, self.credentials.as_deref(), progress)
                .await?;
            if spec.readiness.check != Check::Image {
                return Ok(());
            }
            health::check_image(spec, container, &image::defaults(&self.engine, &container.image).await?)
        }
        .boxed()
    }

    fn create<'a>(&'a self, order: &'a ShardOrder) -> BoxFuture<'a, Result<ShardId, RuntimeError>> {
        self.create(order).boxed()
    }

    fn start<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.start(id).boxed()
    }

    fn stop<'a>(&'a self, id: &'a ShardId, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.stop(id, grace).boxed()
    }

    fn remove<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.remove(id).boxed()
    }

    fn unpause<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.unpause(id).boxed()
    }

    fn rename<'a>(&'a self, id: &'a ShardId, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.rename(id, name).boxed()
    }

    fn update_cpus<'a>(&'a self, id: &'a ShardId, slot: &'a Slot) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.update_cpus(id, slot).boxed()
    }

    fn exec<'a>(
        &'a self,
        id: &'a ShardId,
        pid: u32,
        command: &'a [String],
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Executed, RuntimeError>> {
        Arc::clone(&self.execs).run(id.clone(), pid, command.to_vec(), timeout).boxed()
    }

    fn health<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<EngineHealth, RuntimeError>> {
        async move {
            let operation = Operation::Health;
            let found = self.inspect(id.0.clone(), operation).await?;
            found.map(|found| health::of(&found.state)).ok_or(RuntimeError::NoSuchShard { operation, id: id.clone() })
        }
        .boxed()
    }

    fn logs(
        &self,
        id: &ShardId,
        tail: Option<usize>,
        follow: bool,
    ) -> BoxStream<'static, Result<LogLine, RuntimeError>> {
        logs::read(self.engine.clone(), id.clone(), tail, follow).boxed()
    }

    fn events(&self) -> BoxStream<'static, Result<RuntimeEvent, RuntimeError>> {
        events::watch(self.engine.clone(), &self.instance).boxed()
    }
}
