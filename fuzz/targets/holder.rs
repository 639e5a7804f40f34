//! What comes to the holder: frames of a client that may be any program of root, with a descriptor on some. Whatever it
//! is, the holder goes on and serves the next.

#![no_main]

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::LazyLock,
    thread,
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use sherd_lb::holder::{HolderClient, Idle, serve};

static HOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = tempfile::tempdir().expect("a directory").keep().join("holder");
    let listener = UnixListener::bind(&path).expect("a socket");
    thread::spawn(move || {
        let ended = serve(listener, Idle::Stay);
        panic!("the holder ended: {ended:?}");
    });
    path
});

fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut client = UnixStream::connect(&*HOLDER).expect("the holder accepts");
    client.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
    for piece in &pieces {
        // It may have seen enough.
        let _ = client.write_all(piece);
    }
    let _ = client.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    match client.read_to_end(&mut answers) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the holder keeps a client that has said all: {error}"),
    }
    let mut next = HolderClient::connect(&HOLDER).expect("the holder accepts");
    assert!(next.ping().is_ok(), "it doesn't serve the next");
});
