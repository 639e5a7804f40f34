//! A steered address with one slot, a program behind the shim, and the broker between them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    process::Command,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use sherd_lb::{
    front::{Front, FrontConfig, Path},
    graft::{Broker, Grafted, Holder, Journal, Listener, Report, State, Trapped, Verdict, is_notify_fd},
    table::{Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::eventually;
use socket2::{Domain, Socket, Type};

use crate::broker::{Folder, Running, SOON};

/// Where the program's own socket is bound. In the same namespace here, so [`Trapped::is_here`] tells nothing by itself.
pub(crate) const INNER: u16 = 9_000;
const SLOT: SlotIndex = SlotIndex(0);

/// See the module.
pub(crate) struct Rig {
    front: Arc<Mutex<Front>>,
    pub(crate) address: SocketAddr,
    pub(crate) program: Running,
    pub(crate) reports: mpsc::Receiver<Report>,
    _broker: Broker,
    _folder: Folder,
}

impl Rig {
    /// Starts a Python program, and lets the broker graft whatever it listens on at [`INNER`].
    pub(crate) fn python(script: &str) -> Rig {
        Self::start(&["python3", "-c", script])
    }

    pub(crate) fn start(program: &[&str]) -> Rig {
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
        let (deciding, held) = (Arc::clone(&front), Arc::new(Mutex::new(None)));
        let noting = Arc::clone(&held);
        let broker = Broker::spawn(
            "graft-test".into(),
            notify,
            Journal::new().expect("memory"),
            Box::new(move |trapped| decide(&deciding, *held.lock().unwrap_or_else(PoisonError::into_inner), trapped)),
            Box::new(move |report| {
                if let Report::Grafted(grafted) = &report {
                    *noting.lock().unwrap_or_else(PoisonError::into_inner) = Some(grafted.holder);
                }
                drop(tell.send(report));
            }),
        );
        Rig { front, address, program, reports, _broker: broker.expect("a thread"), _folder: folder }
    }

    /// The next graft; from then on connections go to the program.
    pub(crate) fn grafted(&self) -> Grafted {
        let report = self.reports.recv_timeout(SOON).expect("a report");
        let Report::Grafted(grafted) = report else { panic!("{report:?}") };
        let mut front = self.front.lock().unwrap_or_else(PoisonError::into_inner);
        front.set_path(SLOT, Path::Direct).expect("eBPF steering");
        front.set_in(SLOT, true).expect("it has a listener");
        grafted
    }

    /// See [`ask`].
    pub(crate) fn ask(&self) -> (String, SocketAddr) {
        ask(self.address)
    }

    pub(crate) fn has_direct_listener(&self) -> bool {
        self.front.lock().unwrap_or_else(PoisonError::into_inner).direct_cookie(SLOT).is_some()
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

fn decide(front: &Arc<Mutex<Front>>, holder: Option<Holder>, trapped: &Trapped) -> Verdict {
    let locked = front.lock().unwrap_or_else(PoisonError::into_inner);
    if locked.direct_cookie(SLOT) == Some(trapped.cookie()) {
        return Verdict::Ours;
    }
    if trapped.is_here() && trapped.state() != State::Listening && trapped.address() == locked.address() {
        return Verdict::Refuse;
    }
    if trapped.address().port() != INNER {
        return Verdict::Leave;
    }
    // The process that has it waits for its child here, or doesn't: both are right.
    let held = holder.as_ref().and_then(Holder::listener);
    if let Some(listener) = held.filter(|_| locked.direct_cookie(SLOT).is_some()) {
        return Verdict::Share(listener);
    }
    let address = locked.address();
    let joining = Arc::clone(front);
    let socket = bound(address);
    let copy = socket.try_clone().expect("a descriptor");
    let listen = move |backlog, _: BorrowedFd<'_>| {
        let mut front = joining.lock().unwrap_or_else(PoisonError::into_inner);
        front.join_direct(SLOT, copy.as_fd(), backlog).map_err(|error| error.to_string())
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
