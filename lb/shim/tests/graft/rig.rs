//! A steered address with one slot, a program behind the shim, and the broker between them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use sherd_lb::{
    front::{Front, FrontConfig, Path, Place},
    graft::{Broker, Grafted, Holder, Journal, Listener, Report, State, Trapped, Verdict, is_notify_fd},
    table::{Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::eventually;
use socket2::{Domain, Socket, Type};

use crate::broker::{Folder, Running, SOON};

/// Where the program's own socket is bound. In the same namespace here, so [`Trapped::is_here`] tells nothing by itself.
pub(crate) const INNER: u16 = 9_000;
const SLOT: SlotIndex = SlotIndex(0);

/// Where the first broker stays for ever, as one whose agent was killed there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stuck {
    Nowhere,
    /// It has received the call.
    Deciding,
    /// The listener is at the program's descriptor, which has no answer.
    Placed,
}

/// See the module.
pub(crate) struct Rig {
    front: Arc<Mutex<Front>>,
    pub(crate) address: SocketAddr,
    pub(crate) program: Running,
    pub(crate) reports: mpsc::Receiver<Report>,
    tell: mpsc::Sender<Report>,
    notify: OwnedFd,
    held: Arc<Mutex<Held>>,
    brokers: Vec<Broker>,
    _folder: Folder,
}

/// What an agent has between calls.
#[derive(Default)]
struct Held {
    holder: Option<Holder>,
    original: Option<OwnedFd>,
    is_stuck: bool,
}

impl Rig {
    /// Starts a Python program, and lets the broker graft whatever it listens on at [`INNER`].
    pub(crate) fn python(script: &str) -> Rig {
        Self::start(&["python3", "-c", script])
    }

    pub(crate) fn start(program: &[&str]) -> Rig {
        Self::start_stuck(program, Stuck::Nowhere)
    }

    pub(crate) fn start_stuck(program: &[&str], stuck: Stuck) -> Rig {
        let table = SteeringTable::flat(Policy::Connection, [SLOT]);
        let mut front = Front::open(&FrontConfig::new(([127, 0, 0, 1], 0).into()), &table).expect("a free port");
        // Its relay listener, which nobody accepts from: what came there would wait for ever.
        front.add_slot(SLOT).expect("a slot");
        let address = front.address();
        let front = Arc::new(Mutex::new(front));
        let folder = Folder::new();
        let door = folder.broker();
        let mut command: Command = folder.shim(program);
        let program = Running::start(&mut command);
        let notify = door.let_go().expect("a notify descriptor");
        assert!(is_notify_fd(&notify).expect("/proc"));
        let (tell, reports) = mpsc::channel();
        let (held, brokers) = (Arc::default(), Vec::new());
        let mut rig = Rig { front, address, program, reports, tell, notify, held, brokers, _folder: folder };
        rig.spawn_broker(Journal::new().expect("memory"), stuck);
        rig
    }

    fn spawn_broker(&mut self, journal: Journal, stuck: Stuck) {
        let (front, tell) = (Arc::clone(&self.front), self.tell.clone());
        let (deciding, telling) = (Arc::clone(&self.held), Arc::clone(&self.held));
        let broker = Broker::spawn(
            "graft-test".into(),
            self.notify.try_clone().expect("a descriptor"),
            journal,
            Box::new(move |trapped| {
                if stuck == Stuck::Deciding {
                    stay(&deciding);
                }
                decide(&front, &deciding, trapped)
            }),
            Box::new(move |report| {
                if stuck == Stuck::Placed {
                    stay(&telling);
                }
                if let Report::Grafted(grafted) = &report {
                    let mut held = locked(&telling);
                    (held.holder, held.original) = (Some(grafted.holder), None);
                }
                drop(tell.send(report));
            }),
        );
        self.brokers.push(broker.expect("a thread"));
    }

    /// Another broker takes over from the one that is stuck, with what an agent would have kept.
    pub(crate) fn take_over(&mut self) {
        eventually("the first broker is stuck", SOON, || locked(&self.held).is_stuck.then_some(()));
        let memory = self.brokers[0].journal().try_clone_to_owned().expect("a descriptor");
        let mut journal = Journal::adopt(memory).expect("it is one");
        assert!(journal.is_open(&self.notify), "the program waits");
        if let Some(original) = locked(&self.held).original.take() {
            journal = journal.with_original(original);
        }
        self.spawn_broker(journal, Stuck::Nowhere);
    }

    /// The next graft; from then on connections go to the program.
    pub(crate) fn grafted(&self) -> Grafted {
        let report = self.reports.recv_timeout(SOON).expect("a report");
        let Report::Grafted(grafted) = report else { panic!("{report:?}") };
        let mut front = locked(&self.front);
        front.set_path(SLOT, Path::Direct(Place::A)).expect("eBPF steering");
        front.set_in(SLOT, true).expect("it has a listener");
        grafted
    }

    /// See [`ask`].
    pub(crate) fn ask(&self) -> (String, SocketAddr) {
        ask(self.address)
    }

    pub(crate) fn has_direct_listener(&self) -> bool {
        locked(&self.front).direct_cookie(SLOT, Place::A).is_some()
    }

    /// Until the kernel has taken the listener out of the array.
    pub(crate) fn listener_is_gone(&self) {
        eventually("the listener is closed", Duration::from_secs(10), || (!self.has_direct_listener()).then_some(()));
    }
}

/// What the program answers on a new connection, and the address we came from.
pub(crate) fn ask(address: SocketAddr) -> (String, SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&address, SOON).expect("it is published");
    stream.set_read_timeout(Some(SOON)).expect("a socket");
    stream.write_all(b"hello\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    (answer, stream.local_addr().expect("a socket"))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stay(held: &Mutex<Held>) {
    locked(held).is_stuck = true;
    loop {
        thread::park();
    }
}

fn decide(front: &Arc<Mutex<Front>>, held: &Arc<Mutex<Held>>, trapped: &Trapped) -> Verdict {
    let locked_front = locked(front);
    if locked_front.direct_cookie(SLOT, Place::A) == Some(trapped.cookie()) {
        return Verdict::Ours;
    }
    if trapped.is_here() && trapped.state() != State::Listening && trapped.address() == locked_front.address() {
        return Verdict::Refuse;
    }
    if trapped.address().port() != INNER {
        return Verdict::Leave;
    }
    // The process that has it waits for its child here, or doesn't: both are right.
    let shared = locked(held).holder.as_ref().and_then(Holder::listener);
    if let Some(listener) = shared.filter(|_| locked_front.direct_cookie(SLOT, Place::A).is_some()) {
        return Verdict::Share(listener);
    }
    let address = locked_front.address();
    let (joining, keeping) = (Arc::clone(front), Arc::clone(held));
    let socket = bound(address);
    let copy = socket.try_clone().expect("a descriptor");
    let listen = move |backlog, original: BorrowedFd<'_>| {
        locked(&keeping).original = original.try_clone_to_owned().ok();
        let mut front = locked(&joining);
        front.join_direct(SLOT, Place::A, copy.as_fd(), backlog).map_err(|error| error.to_string())
    };
    Verdict::Graft(Listener { socket: socket.into(), listen: Box::new(listen) })
}

/// As the guard's maker makes them, without the guard.
fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.set_reuse_port(true).expect("an option");
    socket.bind(&address.into()).expect("our own address");
    socket
}
