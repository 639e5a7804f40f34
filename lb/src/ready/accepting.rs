//! Whether a program accepts from its listener. That a connection is established doesn't tell: the kernel does that alone.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::{Probe, ProbeError, Route};
use crate::sockdiag::{self, Arrival};

/// Between two looks at the far end; no event tells that a connection was accepted.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Whether `route` leads to a program that accepts a connection, within `timeout`. Both ends must be in the namespace that
/// is probed from. A program that is busy with other connections accepts late: ask this once, of one that is starting.
///
/// # Errors
/// [`ProbeError::NotAccepted`] when the connection stays in the queue.
pub fn probe_accept(route: &Route<'_>, timeout: Duration) -> Result<(), ProbeError> {
    let probe = Probe::new(route, timeout);
    probe.inside(|| {
        let stream = probe.connect()?;
        wait(&stream, &probe)
    })
}

fn wait(stream: &TcpStream, probe: &Probe<'_>) -> Result<(), ProbeError> {
    let address = probe.route.address;
    let failed = |source| ProbeError::Unreachable { address, source };
    let (near, far) = (stream.peer_addr().map_err(failed)?, stream.local_addr().map_err(failed)?);
    loop {
        match sockdiag::arrival(near, far).map_err(failed)? {
            Arrival::Accepted => return Ok(()),
            Arrival::Gone => return Err(ProbeError::Reset { address }),
            Arrival::Handshake if defers(near).map_err(failed)? => return Ok(()),
            Arrival::Handshake | Arrival::Queued => {}
        }
        if Instant::now() + LOOK_AGAIN >= probe.deadline {
            return Err(ProbeError::NotAccepted { address, timeout: probe.timeout });
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// A handshake stays open although there is room: the listener wants data first (TCP_DEFER_ACCEPT), and what a client
/// of the program would send is not known here.
fn defers(near: SocketAddr) -> io::Result<bool> {
    Ok(sockdiag::listeners(near.port())?.iter().all(|listener| listener.queued == 0))
}
