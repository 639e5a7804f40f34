//! The agent's life: takes its directories, finds holder and runtimes, starts the loop, the API and the metrics, and
//! ends them in order. Decides nothing about shards.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sherd_topology::discover;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};

use crate::{
    api,
    config::AgentConfig,
    control, journal, metrics,
    reconcile::{
        Parts, Reconciler, Runtimes, Settings,
        keeper::{HolderUnit, Keeper},
    },
    runtime::{
        Runtime,
        docker::{DockerConfig, DockerRuntime},
        process::{Launch, ProcessConfig, ProcessRuntime},
    },
    store::Store,
    systemd,
};

/// How long relayed connections may go on that can't be handed over, when the agent is told to end. The units' TimeoutStopSec is longer.
const SHUTDOWN_DRAIN: Duration = Duration::from_secs(10);
/// The loop's part of the work is small; the relay workers are threads of their own.
const RUNTIME_THREADS: usize = 2;

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it can't start: each says what is missing and what to do.
pub fn run(config: &AgentConfig) -> Result<()> {
    journal::start(&config.log)?;
    raise_descriptor_limit();
    match systemd::enter_leaf() {
        Ok(Some(leaf)) => tracing::debug!(cgroup = %leaf.display(), "leaf"),
        Ok(None) => {}
        Err(error) => tracing::warn!("the agent can't move to a leaf cgroup: its unit needs Delegate=yes: {error}"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("sherd")
        .enable_all()
        .build()
        .context("the agent's threads can't be started")?;
    let result = runtime.block_on(serve(config));
    // What still runs in the background is an engine call or a probe; nobody waits for its answer any more.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

async fn serve(config: &AgentConfig) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be awaited")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be awaited")?;
    make_directories(config)?;
    let listener = api::bind(&config.api_socket())?;
    let store = Store::open(&config.state_dir)?;
    let keeper = Keeper::connect(&config.holder_socket(), holder_unit()?)?;
    let host = discover::this_host().context("the machine's topology can't be read")?;
    let settings = Settings {
        instance: config.instance.clone(),
        reserved: config.reserved_on(&host),
        shutdown_drain: SHUTDOWN_DRAIN,
        relay_handover: config.relay_handover,
        run_dir: config.run_dir.clone(),
        state_dir: config.state_dir.clone(),
    };
    let runtimes = runtimes(config)?;
    let mut reconciler = Reconciler::new(Parts { host, settings, store, keeper, runtimes });
    reconciler.adopt().await?;

    let (requests, inbox) = mpsc::channel(control::REQUEST_QUEUE_LEN);
    let (stop, stopped) = oneshot::channel();
    let reconcile = tokio::spawn(reconciler.run(inbox, stopped));
    let (closing, closed) = watch::channel(false);
    let sampler = Arc::new(metrics::Sampler::new());
    let api = tokio::spawn(api::serve(listener, requests.clone(), Arc::clone(&sampler), told(closed.clone())));
    let metrics = match config.metrics_address {
        Some(address) => {
            let listener = metrics::bind(address).await?;
            Some(tokio::spawn(metrics::serve(listener, requests.clone(), sampler, told(closed))))
        }
        None => None,
    };
    let watchdog = tokio::spawn(systemd::feed_watchdog(requests));
    systemd::notify_ready();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), instance = config.instance, "sherd agent runs");

    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: ending; shards and listeners stay"),
        _ = interrupt.recv() => tracing::info!("SIGINT: ending; shards and listeners stay"),
    }
    systemd::notify_stopping();
    watchdog.abort();
    closing.send_replace(true);
    api.await.context("the API failed")?;
    if let Some(metrics) = metrics {
        metrics.await.context("serving metrics failed")?;
    }
    // The loop may have ended by itself only through a panic, which `reconcile` then reports.
    let _ = stop.send(());
    reconcile.await.context("the reconcile loop failed")
}

/// Ready when the channel says so, or is gone.
async fn told(mut channel: watch::Receiver<bool>) {
    drop(channel.wait_for(|closing| *closing).await);
}

fn runtimes(config: &AgentConfig) -> Result<Runtimes> {
    let process = ProcessRuntime::new(ProcessConfig {
        instance: config.instance.clone(),
        run_dir: config.run_dir.clone(),
        program: this_program()?,
        launch: Launch::of_this_host(),
    });
    let mut runtimes: Vec<Arc<dyn Runtime>> = vec![Arc::new(process)];
    if let Some(socket) = config.docker.socket() {
        let address = format!("unix://{}", socket.display());
        let own_ids = Some(config.state_dir.join("containers"));
        let docker = DockerConfig { address, own_ids, ..DockerConfig::from_environment(&config.instance) };
        runtimes.push(Arc::new(DockerRuntime::new(docker)));
    }
    Ok(Runtimes(runtimes))
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("the path of this program is not known")
}

fn make_directories(config: &AgentConfig) -> Result<()> {
    for directory in [&config.run_dir, &config.state_dir] {
        fs::create_dir_all(directory).with_context(|| {
            format!(
                "{} can't be made: run the agent as root, or name another with --run-dir and --state-dir",
                directory.display()
            )
        })?;
    }
    // Specifications may hold secrets in their environment.
    fs::set_permissions(&config.state_dir, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("the permissions of {} can't be set", config.state_dir.display()))
}

/// Under systemd the holder has a unit of its own; else the agent starts it from its own program.
fn holder_unit() -> Result<HolderUnit> {
    if systemd::is_unit() {
        return Ok(HolderUnit::Systemd);
    }
    Ok(HolderUnit::Spawned(this_program()?))
}

/// A relayed connection takes two descriptors, and more while it is spliced.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "descriptors"),
        Err(error) => tracing::warn!("the limit of open files can't be raised: fewer connections fit: {error}"),
    }
}
