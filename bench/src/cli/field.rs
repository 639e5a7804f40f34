//! Options of all scenarios whose contestants have containers of their own.

use std::path::PathBuf;

use clap::Args;
use sherd_bench::{
    contestant::{Engine, Server},
    scenario::{Entrant, FieldOptions},
};

use super::comparison::{Comparison, program};

/// What containers are made of, and which peers stand in front of them.
#[derive(Args)]
pub(super) struct Field {
    /// The server in the image: shard (this program's own) or go (net/http; needs go).
    #[arg(long, value_name = "NAME", default_value = "shard")]
    image_server: Server,
    /// The Docker Engine's socket [default: $SHERD_TEST_DOCKER, $DOCKER_HOST or /var/run/docker.sock].
    #[arg(long, value_name = "SOCKET")]
    docker: Option<PathBuf>,
    /// nginx with its stream module [default: the installed one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    nginx: Option<PathBuf>,
    /// Envoy [default: the installed one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    envoy: Option<PathBuf>,
}

impl Field {
    /// All of it, with what every comparison is told.
    pub(super) fn options(&self, contestants: &[Entrant], comparison: &Comparison, cpus: &[usize]) -> FieldOptions {
        FieldOptions {
            contestants: contestants.to_vec(),
            server: self.image_server,
            cpus: cpus.to_vec(),
            docker: self.docker.clone().unwrap_or_else(Engine::default_socket),
            peers: comparison.peers.clone(),
            sherd: comparison.sherd(),
            haproxy: comparison.haproxy.clone(),
            nginx: self.nginx.clone(),
            envoy: self.envoy.clone(),
        }
    }
}
