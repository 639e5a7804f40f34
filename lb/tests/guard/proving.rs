//! The proof: passes on what is guarded, names what was not refused on what is not, and changes nothing.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
};

use sherd_lb::guard::{Guard, GuardError, Operation, Stage, Unproven};
use socket2::{Domain, SockRef, Socket, Type};

use super::rig::{Parent, World, alone, loopbacks, start_maker};

#[test]
fn a_guard_is_proven() {
    alone("a_guard_is_proven", || {
        let world = World::new();
        world.guard.borrow_mut().prove(&world.maker).expect("this kernel runs the hooks");
        for address in loopbacks() {
            let bound = world.maker.listener(address, true).expect("the address is free");
            Guard::prove_listener(bound.as_fd()).expect("it is guarded");
            world.mark(&bound);
            SockRef::from(&bound).listen(1).expect("it is bound");
            Guard::prove_listener(bound.as_fd()).expect("it is guarded");
            let address = SockRef::from(&bound).local_addr().expect("it is bound");
            TcpStream::connect(address.as_socket().expect("of TCP")).expect("it listens as before");
        }
    });
}

#[test]
fn a_socket_made_elsewhere_is_not_proven_and_stays_as_it_is() {
    alone("a_socket_made_elsewhere_is_not_proven_and_stays_as_it_is", || {
        let _world = World::new();
        for address in loopbacks() {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
            socket.bind(&address.into()).expect("a free port");
            check_unproven(&socket, Stage::Bound);
            // Whoever has only some of the hooks is found out too: none of these has an effect.
            let address: SocketAddr = socket.local_addr().expect("it is bound").as_socket().expect("of TCP");
            let answers = [Operation::Bind(address), Operation::ConnectOtherFamily]
                .map(|operation| operation.attempt(socket.as_fd()).err().and_then(|error| error.raw_os_error()));
            assert_eq!(answers, [Some(libc::EINVAL), Some(libc::EAFNOSUPPORT)]);
            socket.listen(1).expect("it is bound");
            check_unproven(&socket, Stage::Listening);
            TcpStream::connect(address).expect("it listens");
            TcpListener::from(socket).accept().expect("a connection waits");
        }
    });
}

fn check_unproven(socket: &Socket, expected: Stage) {
    match Guard::prove_listener(socket.as_fd()) {
        Err(Unproven::NotRefused { operation: Operation::SetOption { .. }, stage, .. }) => assert_eq!(stage, expected),
        proven => panic!("{proven:?}"),
    }
}

#[test]
fn a_cgroup_without_the_programs_is_not_proven() {
    alone("a_cgroup_without_the_programs_is_not_proven", || {
        let parent = Parent::new();
        let plain = parent.0.join("guard-without");
        fs::create_dir(&plain).expect("a cgroup");
        let maker = start_maker(&plain);
        let proven = parent.guard(1).prove(&maker);
        assert!(matches!(proven, Err(Unproven::NotRefused { .. })), "{proven:?}");
    });
}

#[test]
fn a_guard_needs_a_place_and_a_new_name() {
    alone("a_guard_needs_a_place_and_a_new_name", || {
        let parent = Parent::new();
        let guard = parent.guard(1);
        let again = Guard::establish(&parent.0, "guard-1", None);
        assert!(matches!(again, Err(GuardError::Directory { .. })), "{again:?}");
        assert!(guard.cgroup().exists());
        let elsewhere = Guard::establish(&std::env::temp_dir(), "guard-1", None);
        assert!(matches!(elsewhere, Err(GuardError::NoCgroup2 { .. })), "{elsewhere:?}");
    });
}
