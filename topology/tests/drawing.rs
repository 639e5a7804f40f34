//! What pictures look like: small ones to the letter, large ones by what they leave out.

use sherd_topology::{
    discover,
    draw::{self, TextStyle},
    model::{CpuSet, Host, HostParts},
    plan::{LayoutRequest, Plan, Unit, plan},
};

fn web(host: &Host, unit: Unit) -> Plan {
    let request = LayoutRequest { unit, ..LayoutRequest::new("web".parse().unwrap()) };
    plan(host, &"0".parse::<CpuSet>().unwrap(), &[request], &[])
}

fn picture(description: &str, width: usize) -> String {
    let host = discover::synthetic(description).unwrap();
    draw::text(&host, &Plan::default(), TextStyle { width, color: false })
}

#[test]
fn a_small_machine_has_a_box_per_core() {
    let host = discover::synthetic("package:2 [numa(memory=8589934592)] core:2 pu:2").unwrap();
    let expected = "\
2 packages · 2 NUMA nodes · 4 cores · 8 CPUs
┏━ Package 0 · NUMA 0 8 GiB ┓ ┏━ Package 1 · NUMA 1 8 GiB ┓
┃ ╭─────────╮╭─────────╮    ┃ ┃ ╭─────────╮╭─────────╮    ┃
┃ │   0   1 ││   2   3 │    ┃ ┃ │   4   5 ││   6   7 │    ┃
┃ │ res  A0 ││  A1  A1 │    ┃ ┃ │  A2  A2 ││  A3  A3 │    ┃
┃ ╰─────────╯╰─────────╯    ┃ ┃ ╰─────────╯╰─────────╯    ┃
┗━━━━━━━━━━━━━━━━━━━━━━━━━━━┛ ┗━━━━━━━━━━━━━━━━━━━━━━━━━━━┛
 A  web · 4 slots · CPUs 1-7 · memory from node 0-1 (bind)
reserved (res): CPUs 0
";
    assert_eq!(draw::text(&host, &web(&host, Unit::Core), TextStyle { width: 80, color: false }), expected);
}

#[test]
fn parts_that_look_the_same_are_drawn_once() {
    let expected = "\
4 packages · 4 NUMA nodes · 64 cores · 128 CPUs
┏━ Package 0 · NUMA 0 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ 0-1      2-3      4-5      6-7      8-9      10-11   ┃
┃ 12-13    14-15    16-17    18-19    20-21    22-23   ┃
┃ 24-25    26-27    28-29    30-31                     ┃
┗━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┛
… and 3 more like it: Package 1, 2, 3; CPUs 32-127
";
    assert_eq!(picture("package:4 [numa] core:16 pu:2", 60), expected);
}

#[test]
fn a_machine_of_a_thousand_cores_fits_a_screen_when_empty() {
    let lines = picture("package:8 [numa] die:2 l3:4 core:16 pu:2", 100).lines().count();
    assert!(lines < 24, "{lines} lines");
}

#[test]
fn colour_is_only_where_asked_for() {
    let host = discover::synthetic("package:1 core:2 pu:1").unwrap();
    let plan = web(&host, Unit::Core);
    let colored = draw::text(&host, &plan, TextStyle { width: 80, color: true });
    let plain = draw::text(&host, &plan, TextStyle { width: 80, color: false });
    assert!(colored.contains("\u{1b}[48;5;26;38;5;231m") && !plain.contains('\u{1b}'));
}

#[test]
fn the_svg_stands_alone_and_shows_every_slot() {
    let host = discover::synthetic("package:2 [numa] l3:2 core:4 pu:2").unwrap();
    let plan = web(&host, Unit::Pu);
    let svg = draw::svg(&host, &plan);
    for slot in &plan.layouts[0].slots {
        assert_eq!(svg.matches(&format!(">A{}<", slot.id)).count(), 1, "slot {}", slot.id);
    }
    for outside in ["<script", "href", "url(", "@import", "<foreignObject", "<image"] {
        assert!(!svg.contains(outside), "{outside}");
    }
    assert_eq!(svg.matches("http").count(), 1, "the name space alone");
    let opened = svg.matches("<g>").count();
    assert_eq!((opened, svg.matches("</g>").count()), (32, 32));
}

/// Names from files and specifications can't end a tag or move a terminal's cursor.
#[test]
fn hostile_names_stay_text() {
    let mut parts: HostParts = discover::synthetic("package:1 core:2 pu:1").unwrap().into();
    parts.name = Some("<script>alert('x')</script>&\u{1b}[31m\"".to_owned());
    let host = Host::new(parts).unwrap();
    let svg = draw::svg(&host, &Plan::default());
    assert!(!svg.contains("<script") && svg.contains("&lt;script&gt;") && !svg.contains('\u{1b}'));
    assert!(!draw::text(&host, &Plan::default(), TextStyle::default()).contains('\u{1b}'));
}
