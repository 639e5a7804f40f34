//! The maker: what it makes, and what one hears when it can't.

use std::{
    net::SocketAddr,
    os::fd::AsFd,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use sherd_lb::guard::{
    Maker,
    maker::{MakeError, StartError},
};
use sherd_testkit::eventually;
use socket2::SockRef;

use super::rig::{Parent, SOON, World, alone, local_address, loopbacks, this_program};

#[test]
fn a_listener_is_as_the_front_makes_them() {
    alone("a_listener_is_as_the_front_makes_them", || {
        let world = World::new();
        for (address, v6only) in [("127.0.0.1:0", true), ("[::1]:0", true), ("[::]:0", true), ("[::]:0", false)] {
            let address: SocketAddr = address.parse().expect("an address");
            let made = world.maker.listener(address, v6only).expect("the kernel chooses the port");
            let socket = SockRef::from(&made);
            let (flags, fd_flags) = (fcntl(&made, FcntlArg::F_GETFL), fcntl(&made, FcntlArg::F_GETFD));
            assert!(OFlag::from_bits_retain(flags.expect("flags")).contains(OFlag::O_NONBLOCK));
            assert!(FdFlag::from_bits_retain(fd_flags.expect("flags")).contains(FdFlag::FD_CLOEXEC));
            assert!(socket.reuse_address().expect("an option") && socket.reuse_port().expect("an option"));
            assert!(!socket.is_listener().expect("an option"));
            assert_eq!(socket.protocol().expect("an option"), Some(socket2::Protocol::TCP));
            let bound = local_address(made.as_fd());
            assert!(bound.ip() == address.ip() && bound.port() != 0, "{bound}");
            if address.is_ipv6() {
                assert_eq!(socket.only_v6().expect("an option"), v6only);
            }
            let second = world.maker.listener(bound, v6only).expect("they share by SO_REUSEPORT");
            assert_eq!(local_address(second.as_fd()), bound);
        }
    });
}

#[test]
fn an_address_that_cannot_be_had_is_an_error_with_its_reason() {
    alone("an_address_that_cannot_be_had_is_an_error_with_its_reason", || {
        let world = World::new();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let check = |address: SocketAddr, errno: i32| {
            let made = world.maker.listener(address, true);
            let Err(MakeError::Refused { step, source, .. }) = made else { panic!("{address}: {made:?}") };
            assert_eq!((&*step, source.raw_os_error()), ("bind", Some(errno)), "{address}");
        };
        check(taken.local_addr().expect("it is bound"), libc::EADDRINUSE);
        check("192.0.2.1:80".parse().expect("an address"), libc::EADDRNOTAVAIL);
        check("[2001:db8::1]:80".parse().expect("an address"), libc::EADDRNOTAVAIL);
        world.maker.listener(loopbacks()[0], true).expect("it goes on");
    });
}

#[test]
fn a_dead_maker_is_told_at_once() {
    alone("a_dead_maker_is_told_at_once", || {
        let world = World::new();
        let pid = Pid::from_raw(i32::try_from(world.maker.pid()).expect("a pid"));
        kill(pid, Signal::SIGKILL).expect("it runs");
        let begin = Instant::now();
        // The first may still find its socket open.
        let ended = eventually("it is told", SOON, || world.maker.listener(loopbacks()[0], true).err());
        assert!(matches!(ended, MakeError::Ended(_)), "{ended}");
        let again = world.maker.listener(loopbacks()[0], true);
        assert!(matches!(again, Err(MakeError::Ended(_))), "{again:?}");
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    });
}

#[test]
fn a_maker_that_hangs_is_waited_for_a_while_and_recovers() {
    alone("a_maker_that_hangs_is_waited_for_a_while_and_recovers", || {
        let world = World::new();
        let pid = Pid::from_raw(i32::try_from(world.maker.pid()).expect("a pid"));
        kill(pid, Signal::SIGSTOP).expect("it runs");
        // Until its last thread has.
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("it stops");
        let begin = Instant::now();
        let late: SocketAddr = "127.0.0.1:7001".parse().expect("an address");
        let silent = world.maker.listener(late, true);
        assert!(matches!(silent, Err(MakeError::Silent(_))), "{silent:?}");
        assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
        kill(pid, Signal::SIGCONT).expect("it runs");
        let next: SocketAddr = "127.0.0.1:7002".parse().expect("an address");
        let made = world.maker.listener(next, true).expect("it goes on");
        assert_eq!(local_address(made.as_fd()), next, "the late answer is thrown away");
    });
}

#[test]
fn a_maker_that_does_not_start_is_an_error_with_its_reason() {
    alone("a_maker_that_does_not_start_is_an_error_with_its_reason", || {
        let parent = Parent::new();
        let guard = parent.guard(1);
        let absent = Maker::start(Command::new("/nonexistent"), guard.cgroup());
        assert!(matches!(absent, Err(StartError::Spawn { .. })), "{absent:?}");
        let ended = Maker::start(Command::new("false"), guard.cgroup());
        assert!(matches!(ended, Err(StartError::Ended { .. })), "{ended:?}");
        let mut maker = this_program("rig::maker_process", "maker");
        maker.stderr(std::process::Stdio::null());
        let outside = Maker::start(maker, Path::new("/nonexistent"));
        assert!(matches!(outside, Err(StartError::Join { .. })), "{outside:?}");
    });
}

#[test]
fn threads_may_ask_at_once() {
    alone("threads_may_ask_at_once", || {
        let world = World::new();
        let maker = &world.maker;
        std::thread::scope(|scope| {
            for thread in 0..8u16 {
                scope.spawn(move || {
                    for i in 0..25 {
                        let address: SocketAddr = ([127, 0, 0, 1], 7000 + thread * 25 + i).into();
                        let made = maker.listener(address, true).expect("the address is free");
                        assert_eq!(local_address(made.as_fd()), address);
                    }
                });
            }
        });
    });
}
