//! Between an agent and an engine: passes on what they say, answers in the engine's place, or tells of events that never were.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use crate::images::Engine;

/// What becomes of what the agent asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Pass,
    /// No answer of an engine.
    Nonsense,
    /// An error for everything.
    Refuse,
    /// No answer at all.
    Hang,
}

/// See the module.
pub(super) struct Proxy {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

struct State {
    mode: Mode,
    /// The agents' sides of what was passed on or is being held up.
    streams: Vec<UnixStream>,
    /// The one on which the agent hears of events.
    events: Option<UnixStream>,
}

impl Proxy {
    pub(super) fn of(engine: Engine) -> Self {
        let socket = std::env::temp_dir().join(format!("sherd-proxy-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&socket).expect("a socket");
        let state = Arc::new(Mutex::new(State { mode: Mode::Pass, streams: Vec::new(), events: None }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mode = {
                    let mut state = shared.lock().expect("nobody panics");
                    state.streams.extend(stream.try_clone());
                    state.mode
                };
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, mode, engine, &shared));
            }
        });
        Self { socket, state }
    }

    /// Where the agent asks.
    pub(super) fn socket(&self) -> &str {
        self.socket.to_str().expect("a path")
    }

    /// From now on, and nobody goes on with what it had.
    pub(super) fn set(&self, mode: Mode) {
        let mut state = self.state.lock().expect("nobody panics");
        (state.mode, state.events) = (mode, None);
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether the agent hears of events since [`Proxy::set`].
    pub(super) fn is_listened_to(&self) -> bool {
        self.state.lock().expect("nobody panics").events.is_some()
    }

    /// The agent hears of so many events at once, each of another container with that label.
    pub(super) fn tell_of_events(&self, count: usize, instance: &str) {
        let event = |index: usize| {
            let event = format!(
                "{{\"Type\": \"container\", \"Action\": \"kill\", \"Actor\": {{\"ID\": \"{index:064x}\", \"Attributes\": \
                 {{\"name\": \"many\", \"signal\": \"15\", \"sherd.instance\": \"{instance}\"}}}}}}\n"
            );
            format!("{:x}\r\n{event}\r\n", event.len())
        };
        let events: String = (0..count).map(event).collect();
        let state = self.state.lock().expect("nobody panics");
        let mut stream = state.events.as_ref().expect("the agent listens").try_clone().expect("a descriptor");
        drop(state);
        stream.write_all(events.as_bytes()).expect("the agent reads");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

fn serve(mut agent: UnixStream, mode: Mode, engine: Engine, shared: &Mutex<State>) {
    let mut request = [0; 4096];
    let len = match agent.read(&mut request) {
        Ok(len) if len > 0 => len,
        _ => return,
    };
    let body: &[u8] = match mode {
        Mode::Pass => return pass(agent, &request[..len], engine, shared),
        Mode::Hang => {
            // Until the agent gives up.
            while agent.read(&mut request).is_ok_and(|len| len > 0) {}
            return;
        }
        Mode::Nonsense => b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nnonsense",
        Mode::Refuse => b"HTTP/1.1 500 Oops\r\nContent-Length: 22\r\n\r\n{\"message\": \"not now\"}",
    };
    let _ = agent.write_all(body);
}

fn pass(agent: UnixStream, request: &[u8], engine: Engine, shared: &Mutex<State>) {
    let Ok(mut engine) = UnixStream::connect(engine.socket()) else { return };
    let copy = |mut from: UnixStream, mut to: UnixStream| {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        })
    };
    let clone = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
    if request.starts_with(b"GET /") && request.windows(8).any(|part| part == b"/events?") {
        shared.lock().expect("nobody panics").events = Some(clone(&agent));
    }
    if engine.write_all(request).is_err() {
        return;
    }
    let (there, back) = (copy(clone(&agent), clone(&engine)), copy(engine, agent));
    let _ = (there.join(), back.join());
}
