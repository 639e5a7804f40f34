//! Groups grow and shrink under load, on either path: whoever connects doesn't notice.

use std::time::Duration;

use serde_json::Value;
use sherd_testkit::{eventually, in_new_netns};

use crate::{
    containers::{cpus, is_there},
    start_first::{ENGINE, Stage, at, check_nothing_failed},
    traffic::Load,
    world::scaled,
};

fn check_scaled(test: &str, path: &'static str) {
    let stage = Stage::new(test, path, cpus());
    let (load, kept) = (Load::start(at(8080), 3, usize::MAX), Load::keeping(at(8080), 3, Duration::from_millis(700)));
    let all = stage.spec("1");
    let of = |count: usize| all.replace(&format!("shards = {}", cpus()), &format!("shards = {count}"));
    let stays = stage.world.slots("web")[0]["pid"].clone();
    for _ in 0..scaled(3, 20) {
        for count in [1, cpus()] {
            stage.world.apply("web", &of(count));
            eventually(&format!("{count} shards serve"), Duration::from_secs(60), || {
                let slots = stage.world.slots("web");
                let serves = |slot: &Value| slot["ready"] == true && slot["path"] == path;
                (slots.len() == count && slots.iter().all(serves)).then_some(())
            });
        }
    }
    assert_eq!(stage.world.slots("web")[0]["pid"], stays, "a shard that stays was replaced");
    check_nothing_failed(&stage, load);
    check_nothing_failed(&stage, kept);
    stage.finish();
}

#[test]
fn groups_grow_and_shrink_under_load() {
    let test = "groups_grow_and_shrink_under_load";
    if is_there(test, ENGINE) {
        in_new_netns(move || check_scaled(test, "direct"));
        in_new_netns(move || check_scaled(test, "relay"));
    }
}
