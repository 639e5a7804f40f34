//! The picture as SVG: cards within cards, a tile per CPU in the colour of its group. Colours are its own, with a
//! dark set for pages that ask for one; nothing is loaded from elsewhere.

mod layout;

use std::fmt::Write as _;

use self::layout::{Laid, Tile, Tiles};
use super::{
    area::{Picture, Use},
    palette,
};

/// Pixels that the picture may be wide, without its margin; more where so many CPUs would make it a tower.
const WIDTH: f64 = 1240.0;
/// Pixels of a picture per CPU, frames and gaps included.
const CPU_AREA: f64 = 4200.0;
const MARGIN: f64 = 24.0;
const LEGEND_LINE: f64 = 24.0;
/// Pixels of a letter of 13 px text, rather too many than too few.
const LETTER: f64 = 7.4;

pub(super) fn draw(picture: &Picture<'_>) -> String {
    let tiles = Tiles::new(picture);
    let pus = picture.host.parts().pus.len() as f64;
    let machine = layout::lay(&picture.root, &tiles, WIDTH.max((pus * CPU_AREA).sqrt()));
    let width = (machine.width - 2.0 * machine.inset()).max(720.0) + 2.0 * MARGIN;
    let mut body = String::new();
    let mut y = heading(&mut body, picture, width);
    cards(&mut body, &machine, MARGIN - machine.inset(), y, 0, picture);
    y += machine.height + 16.0;
    y = legend(&mut body, picture, y, width);
    let height = y + MARGIN - 8.0;
    let mut colors = String::new();
    for group in 0..picture.groups.len().min(12) {
        let color = palette::color(group);
        let _ = writeln!(colors, ".g{group}{{fill:{}}}.i{group}{{fill:{}}}", color.fill, color.ink);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\">\n<title>{}</title>\n<style>\n{STYLE}{colors}</style>\n\
         <rect class=\"page\" width=\"{width:.0}\" height=\"{height:.0}\" rx=\"14\"/>\n{body}</svg>\n",
        escape(&picture.title())
    )
}

const STYLE: &str = "\
text{font-family:ui-sans-serif,system-ui,'Segoe UI','Noto Sans','DejaVu Sans',sans-serif;fill:#1d2733}
.page{fill:#f4f6f9}.d0{fill:#ffffff;stroke:#c3ccd8}.d1{fill:#f7f9fc;stroke:#cbd4df}.d2{fill:#eef2f7;stroke:#cbd4df}
.d3{fill:#e6ebf2;stroke:#bfc9d6}.package{stroke:#5c6b7e;stroke-width:1.6}.core{fill:#ffffff;stroke:#b7c2cf}
.free{fill:#e9edf2}.off{fill:#d7dde5}.h1{font-size:19px;font-weight:650}.h2{font-size:13px;fill:#526071}
.name{font-size:13px;font-weight:600}.detail{font-size:12px;font-weight:400;fill:#526071}.id{font-size:9.5px;opacity:.82}
.label{font-size:12px;font-weight:650}.mute{fill:#5d6b7b}.kind{font-size:9.5px;font-weight:700;fill:#7a8797}
.legend{font-size:13px}.dash{stroke-dasharray:3 2}
@media (prefers-color-scheme:dark){text{fill:#e4eaf1}.page{fill:#12171d}.d0{fill:#1a212a;stroke:#36424f}
.d1{fill:#1f2832;stroke:#3a4756}.d2{fill:#25303c;stroke:#3f4d5d}.d3{fill:#2b3744;stroke:#475669}.package{stroke:#8494a7}
.core{fill:#161c23;stroke:#465466}.free{fill:#2b3541}.off{fill:#3a4653}.h2,.detail,.mute,.kind{fill:#9fb0c2}}
";

fn heading(out: &mut String, picture: &Picture<'_>, width: f64) -> f64 {
    let (mut names, counts) = picture.headline();
    let title = if names.is_empty() { "Machine".to_owned() } else { names.remove(0) };
    names.push(counts);
    text(out, MARGIN, MARGIN + 18.0, "h1", &cut(&title, ((width - 2.0 * MARGIN) / 12.0) as usize));
    let mut y = MARGIN + 40.0;
    for line in super::text::wrap(&names.join(" · "), ((width - 2.0 * MARGIN) / LETTER) as usize) {
        text(out, MARGIN, y, "h2", &line);
        y += 18.0;
    }
    y
}

/// An area's card, and what lies on it.
fn cards(out: &mut String, laid: &Laid<'_>, x: f64, y: f64, depth: usize, picture: &Picture<'_>) {
    let package = if laid.area.is_package { " package" } else { "" };
    if !laid.area.names.is_empty() {
        rect(out, [x, y, laid.width, laid.height], 9.0, &format!("d{}{package}", depth.min(3)));
        // Steps to the side instead of spaces: renderers differ in what they do with spaces at a tspan's edge.
        let titled = laid.area.names.iter().zip(&laid.area.details).enumerate().map(|(at, (name, detail))| {
            let step = if at == 0 { 0 } else { 14 };
            let name = format!("<tspan dx=\"{step}\">{}</tspan>", escape(name));
            if detail.is_empty() {
                name
            } else {
                format!("{name}<tspan class=\"detail\" dx=\"5\">{}</tspan>", escape(detail))
            }
        });
        let titled = titled.collect::<String>();
        let (x, y) = (x + layout::PAD, y + 19.0);
        let _ = writeln!(out, "<text class=\"name\" x=\"{x:.1}\" y=\"{y:.1}\">{titled}</text>");
    }
    for tile in &laid.tiles {
        core(out, tile, x, y, picture);
    }
    for (inner, dx, dy) in &laid.areas {
        let inner_depth = if laid.area.names.is_empty() { depth } else { depth + 1 };
        cards(out, inner, x + dx, y + dy, inner_depth, picture);
    }
    for (row, line) in laid.devices.iter().enumerate() {
        text(out, x + layout::PAD, y + laid.devices_y + 14.0 + row as f64 * layout::DEVICE_LINE, "detail", line);
    }
}

fn core(out: &mut String, tile: &Tile<'_>, x: f64, y: f64, picture: &Picture<'_>) {
    let (x, y) = (x + tile.x, y + tile.y);
    rect(out, [x, y, tile.width, tile.height], 6.0, "core");
    if let Some(kind) = tile.core.kind {
        text(out, x + layout::CORE_PAD + 1.0, y + 12.0, "kind", &kind.to_string());
    }
    for (cpu, [dx, dy, width, height]) in &tile.pus {
        let state = picture.use_of(*cpu);
        let (fill, ink) = match state {
            Use::Slot { group, .. } => (format!("g{}", group % 12), format!("i{}", group % 12)),
            Use::Free => ("free".to_owned(), "mute".to_owned()),
            Use::Reserved | Use::NotAllowed => ("off".to_owned(), "mute".to_owned()),
            Use::Isolated => ("free dash core".to_owned(), "mute".to_owned()),
        };
        let (x, y) = (x + dx, y + dy);
        let _ = write!(out, "<g><title>CPU {cpu}: {}</title>", escape(&picture.describe(*cpu)));
        rect(out, [x, y, *width, *height], 4.0, &fill);
        let center = x + width / 2.0;
        if picture.has_slots {
            middle(out, center, y + 11.5, &format!("id {ink}"), &cpu.to_string());
            middle(out, center, y + 25.0, &format!("label {ink}"), &state.label());
        } else {
            middle(out, center, y + height / 2.0 + 4.0, &format!("label {ink}"), &cpu.to_string());
        }
        out.push_str("</g>\n");
    }
}

/// Groups, footnotes, faults and notes, one below the other; gives the end of the last.
fn legend(out: &mut String, picture: &Picture<'_>, mut y: f64, width: f64) -> f64 {
    let letters = ((width - 2.0 * MARGIN - 44.0) / LETTER) as usize;
    for (group, entry) in picture.groups.iter().enumerate() {
        let (letter, rest) = entry.split_once(' ').unwrap_or((entry, ""));
        rect(out, [MARGIN, y, 30.0, 19.0], 4.0, &format!("g{}", group % 12));
        middle(out, MARGIN + 15.0, y + 14.0, &format!("label i{}", group % 12), letter);
        for line in super::text::wrap(rest, letters) {
            text(out, MARGIN + 40.0, y + 14.5, "legend", &line);
            y += LEGEND_LINE;
        }
    }
    let letters = ((width - 2.0 * MARGIN) / LETTER) as usize;
    for (note, class) in
        picture.footnotes().iter().map(|note| (note, "h2")).chain(picture.remarks.iter().map(|r| (r, "legend")))
    {
        for line in super::text::wrap(note, letters) {
            text(out, MARGIN, y + 14.5, class, &line);
            y += LEGEND_LINE - 4.0;
        }
    }
    y
}

fn rect(out: &mut String, [x, y, width, height]: [f64; 4], radius: f64, class: &str) {
    let _ = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"{radius}\"/>"
    );
}

fn text(out: &mut String, x: f64, y: f64, class: &str, text: &str) {
    if !text.is_empty() {
        let _ = writeln!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(text));
    }
}

fn middle(out: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let text = escape(text);
    let _ = writeln!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{text}</text>");
}

fn cut(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    text.chars().take(letters.saturating_sub(1)).chain(['…']).collect()
}

/// Names in a picture come from files and specifications: nothing of them may end a tag or an attribute, and what XML
/// can't carry is left out.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            control if control.is_control() => {}
            letter => out.push(letter),
        }
    }
    out
}
