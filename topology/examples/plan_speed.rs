//! Times `plan` on 1,024 cores x 64 groups: `cargo run --release -p sherd-topology --example plan_speed`.

use std::time::{Duration, Instant};

use sherd_topology::{
    discover,
    model::{CpuSet, Host},
    plan::{Layout, LayoutRequest, Placement, ShardCount, Unit, plan},
};

const GROUPS: u32 = 64;
const RUNS: usize = 101;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host = discover::synthetic("package:8 [numa] die:2 l3:4 l2:16 core:1 pu:2")?;
    let reserved: CpuSet = "0-1".parse()?;
    let all = |number: u32| ShardCount::Exactly(number.try_into().unwrap_or(std::num::NonZeroU32::MIN));
    let cores = requests(|_, request| LayoutRequest { shards: all(15), ..request })?;
    let mixed = requests(|at, request| LayoutRequest {
        shards: all(if at % 8 == 7 { 1 } else { 12 }),
        unit: [Unit::Core, Unit::Pu, Unit::Core, Unit::L2, Unit::Core, Unit::Core, Unit::Core, Unit::L3]
            [at as usize % 8],
        placement: if at % 2 == 0 { Placement::Spread } else { Placement::Pack },
        cpus: (at % 3 == 0).then(|| host.usable()),
        ..request
    })?;
    let short = requests(|_, request| LayoutRequest { shards: all(40), ..request })?;
    for (name, requests) in [("cores, spread", &cores), ("mixed units", &mixed), ("too much asked", &short)] {
        let fresh = plan(&host, &reserved, requests, &[]);
        println!(
            "{name}: {} cores, {} groups, {} slots, {} faults",
            host.parts().cores.len(),
            requests.len(),
            fresh.layouts.iter().map(|layout| layout.slots.len()).sum::<usize>(),
            fresh.faults.len()
        );
        for fault in fresh.faults.iter().take(2) {
            println!("  {fault}");
        }
        println!("  fresh plan: median {:?} of {RUNS}", median(&host, &reserved, requests, &[]));
        println!("  replan:     median {:?} of {RUNS}", median(&host, &reserved, requests, &fresh.layouts));
    }
    Ok(())
}

fn requests(
    shape: impl Fn(u32, LayoutRequest) -> LayoutRequest,
) -> Result<Vec<LayoutRequest>, Box<dyn std::error::Error>> {
    (0..GROUPS).map(|at| Ok(shape(at, LayoutRequest::new(format!("group-{at:02}").parse()?)))).collect()
}

fn median(host: &Host, reserved: &CpuSet, requests: &[LayoutRequest], current: &[Layout]) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(plan(host, reserved, requests, current));
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[RUNS / 2]
}
