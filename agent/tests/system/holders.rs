//! The holder is replaced while the agent runs, as by an upgrade: it gets everything again, and the next agent finds it.

use std::time::Duration;

use nix::sys::signal::Signal;
use sherd_lb::holder::HolderClient;
use sherd_testkit::{eventually, in_new_netns};

use crate::{
    adopting::holder,
    containers::{cpus, is_there},
    start_first::{ENGINE, Stage, at, check_nothing_failed},
    traffic::Load,
    world::{World, scaled, signal},
};

fn pid_of_holder(world: &World) -> Option<u32> {
    world.processes().into_iter().find(|(_, command)| command.contains(" holder ")).map(|(pid, _)| pid)
}

#[test]
fn a_holder_can_be_replaced_while_the_agent_runs() {
    let test = "a_holder_can_be_replaced_while_the_agent_runs";
    if !is_there(test, ENGINE) {
        return;
    }
    in_new_netns(move || {
        let mut stage = Stage::new(test, "direct", cpus());
        let pids = |stage: &Stage| stage.world.slots("web").iter().map(|slot| slot["pid"].clone()).collect::<Vec<_>>();
        let before = pids(&stage);
        let load = Load::start(at(8080), 3, usize::MAX);
        for _ in 0..scaled(2, 20) {
            let had = holder(&stage.world).list().expect("it answers");
            let former = pid_of_holder(&stage.world).expect("it runs");
            signal(former, Signal::SIGKILL);
            eventually("another one has everything", Duration::from_secs(20), || {
                let present = pid_of_holder(&stage.world).filter(|pid| *pid != former)?;
                let socket = stage.world.dir().join("run/holder.sock");
                let has = HolderClient::connect(&socket).ok()?.list().ok()?;
                (present != former && had.iter().all(|name| has.contains(name))).then_some(())
            });
            stage.world.kill_agent();
            stage.world.start(&[]);
            stage.world.wait_for_api();
            let slots = stage.world.wait_ready("web", cpus());
            assert!(slots.iter().all(|slot| slot["path"] == "direct"), "{slots:?}");
            assert_eq!(pids(&stage), before, "a shard was replaced");
        }
        check_nothing_failed(&stage, load);
        stage.finish();
    });
}
