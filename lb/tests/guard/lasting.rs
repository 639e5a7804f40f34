//! A guarded socket stays so when all that made it is gone, and then nothing is left behind.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use sherd_lb::guard::Guard;
use sherd_testkit::eventually;

use super::{
    refused::{check_connection, check_listener},
    rig::{PREFIX, Parent, SOON, World, alone, connection, is_role, loopbacks, start_maker, this_program},
};

#[test]
fn sockets_stay_guarded_when_maker_programs_and_cgroup_are_gone() {
    alone("sockets_stay_guarded_when_maker_programs_and_cgroup_are_gone", || {
        for address in loopbacks() {
            let world = World::new();
            let (listener, _) = world.listener(address);
            let (_early_client, early) = connection(listener.as_fd());
            // The programs have no descriptor any more since `establish`; now goes the rest.
            let World { maker, guard, parent } = world;
            drop(maker);
            fs::remove_dir(guard.borrow().cgroup()).expect("nobody is in it");
            let (_late_client, late) = connection(listener.as_fd());
            check_connection(early.as_fd());
            check_connection(late.as_fd());
            check_listener(listener.as_fd());
            drop(parent);
        }
    });
}

#[test]
fn a_start_removes_the_guards_of_former_ones() {
    alone("a_start_removes_the_guards_of_former_ones", || {
        let parent = Parent::new();
        let (dead, running, new) = (parent.guard(1), parent.guard(2), parent.guard(3));
        fs::create_dir(parent.0.join("other")).expect("a cgroup");
        let maker = start_maker(running.cgroup());
        let in_use = Guard::remove_former(&parent.0, PREFIX, Some(new.cgroup())).expect("it is there");
        assert_eq!(in_use, [running.cgroup()]);
        assert!(!dead.cgroup().exists() && new.cgroup().exists());
        drop(maker);
        assert!(Guard::remove_former(&parent.0, PREFIX, Some(new.cgroup())).expect("it is there").is_empty());
        assert!(!running.cgroup().exists() && new.cgroup().exists());
        fs::remove_dir(parent.0.join("other")).expect("it was left alone");
    });
}

#[test]
fn a_thousand_listeners_leave_nothing() {
    alone("a_thousand_listeners_leave_nothing", || {
        // Counts what a whole process has, so it needs one.
        let status = this_program("lasting::thousand_process", "thousand").status();
        assert!(status.expect("it starts").success());
    });
}

fn descriptors(process: &str) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).expect("it runs").count()
}

fn dying_cgroups(parent: &Path) -> Option<u32> {
    let stat = fs::read_to_string(parent.join("cgroup.stat")).expect("cgroup v2 has it");
    stat.lines().find_map(|line| line.strip_prefix("nr_dying_descendants ")?.parse().ok())
}

#[test]
fn thousand_process() {
    if !is_role("thousand") {
        return;
    }
    let before = descriptors("self");
    let World { maker, guard, parent } = World::new();
    let (ours, theirs) = (descriptors("self"), descriptors(&maker.pid().to_string()));
    for round in 0..10 {
        let made: Vec<OwnedFd> =
            (0..100).map(|i| maker.listener(loopbacks()[i % 2], true).expect("the kernel chooses the port")).collect();
        assert_eq!(descriptors("self"), ours + made.len(), "round {round}");
    }
    let one = maker.listener(loopbacks()[0], true).expect("the kernel chooses the port");
    assert_eq!(descriptors("self"), ours + 1);
    // It closes its own after it has sent it.
    let maker_pid = maker.pid().to_string();
    eventually("the maker keeps none", SOON, || (descriptors(&maker_pid) == theirs).then_some(()));
    let pid = maker.pid();
    drop(maker);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the maker was waited for");
    fs::remove_dir(guard.borrow().cgroup()).expect("nobody is in it");
    drop(guard);
    assert_eq!(dying_cgroups(&parent.0), Some(1), "a socket keeps it");
    drop(one);
    eventually("the last socket takes its cgroup along", SOON, || (dying_cgroups(&parent.0)? == 0).then_some(()));
    drop(parent);
    assert_eq!(descriptors("self"), before);
}
