//! One relay worker in front of one address, until its standard input ends: for comparing it by hand with other
//! relays, and for counting its system calls.
//!
//! `relay_proxy LISTEN BACKEND [NETNS-FILE]`

use std::{
    env,
    fs::File,
    io::{Read, stdin},
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use sherd_lb::relay::{Backend, Limits, PortKey, Role, Worker, WorkerConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [listen, backend, netns @ ..] = arguments.as_slice() else {
        return Err("usage: relay_proxy LISTEN BACKEND [NETNS-FILE]".into());
    };
    let listener = TcpListener::bind(listen.parse::<SocketAddr>()?)?;
    let netns = netns.first().map(File::open).transpose()?.map(Into::into);
    let copy_only = env::var_os("COPY_ONLY").is_some();
    let mut limits = Limits { idle_timeout: Some(Duration::from_secs(600)), ..Limits::default() };
    if copy_only {
        limits.splice_above = None;
    }
    let worker = Worker::spawn(WorkerConfig { slot: 0, name: "relay-0".into(), pin: Box::new(|| Ok(())), limits })?;
    worker
        .set_backend(Some(Backend { netns, ports: vec![(PortKey(0), backend.parse::<SocketAddr>()?.into())] }))
        .recv()??;
    worker.serve(PortKey(0), listener.into(), Role::Slot).recv()??;
    let mut rest = Vec::new();
    stdin().read_to_end(&mut rest)?;
    let stats = worker.stats();
    eprintln!(
        "accepted {} established {} closed {} active {} in {} out {} spliced {} wakeups {}",
        stats.accepted.get(),
        stats.established.get(),
        stats.closed.get(),
        stats.active.get(),
        stats.bytes_in.get(),
        stats.bytes_out.get(),
        stats.bytes_spliced.get(),
        stats.wakeups.get()
    );
    Ok(())
}
