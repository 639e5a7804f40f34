//! The picture in characters: boxes within boxes that use the columns there are. Large machines get one line per few
//! cores instead of a box for each, and neighbours that look the same are drawn once.

use super::{
    TextStyle,
    area::{Area, CoreArea, Picture, Use},
    palette,
};
use crate::model::{CpuSet, Level};

/// Machines with more cores than this get tokens instead of boxes for cores.
const MAX_CORE_BOXES: usize = 32;
/// Areas are drawn beside each other up to this many.
const MAX_BESIDE: usize = 4;

pub(super) fn draw(picture: &Picture<'_>, style: TextStyle) -> String {
    let width = style.width.max(40);
    let canvas = Canvas::new(picture);
    let bold = |line: String| vec![Span::new(&line, Paint::Bold)];
    let mut lines: Vec<Line> = wrap(&picture.title(), width).into_iter().map(bold).collect();
    lines.extend(canvas.content(&picture.root, width));
    let plain = |text: &str, paint| wrap(text, width).into_iter().map(move |line| vec![Span::new(&line, paint)]);
    for (group, text) in picture.groups.iter().enumerate() {
        let (letter, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut rows = wrap(rest, width - letter.len() - 3).into_iter();
        let mut first = vec![Span::new(&format!(" {letter} "), Paint::Group(group)), Span::new(" ", Paint::Plain)];
        first.extend(rows.next().map(|row| Span::new(&row, Paint::Plain)));
        lines.push(first);
        lines.extend(rows.map(|row| vec![Span::new(&format!("    {row}"), Paint::Plain)]));
    }
    for note in picture.footnotes() {
        lines.extend(plain(&note, Paint::Dim));
    }
    for span in lines.iter_mut().flatten() {
        // Names come from files: none of them may move the cursor.
        span.text.retain(|letter| !letter.is_control());
    }
    lines.iter().map(|line| render(line, style.color) + "\n").collect()
}

/// How a piece of text is painted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Paint {
    Plain,
    Dim,
    Bold,
    Group(usize),
}

#[derive(Clone)]
struct Span {
    text: String,
    paint: Paint,
}

type Line = Vec<Span>;

/// A rectangle of lines, all as wide as `width`.
struct Block {
    lines: Vec<Line>,
    width: usize,
}

impl Span {
    fn new(text: &str, paint: Paint) -> Self {
        Self { text: text.to_owned(), paint }
    }
}

impl Block {
    fn new(mut lines: Vec<Line>) -> Self {
        let width = lines.iter().map(columns).max().unwrap_or(0);
        for line in &mut lines {
            pad(line, width);
        }
        Self { lines, width }
    }

    /// A frame around the block, with a title in its upper edge.
    fn framed(self, title: &str, frame: [&str; 6], paint: Paint) -> Self {
        let inner = self.width.max(columns_of(title) + 1);
        let [left_top, right_top, left_bottom, right_bottom, across, down] = frame;
        let head = if title.is_empty() { String::new() } else { format!(" {title} ") };
        let edge = |text: String| vec![Span { text, paint }];
        let rest = (inner + 1).saturating_sub(columns_of(&head));
        let bold = if paint == Paint::Dim { Paint::Dim } else { Paint::Bold };
        let mut lines = vec![vec![
            Span { text: format!("{left_top}{across}"), paint },
            Span { text: head, paint: bold },
            Span { text: format!("{}{right_top}", across.repeat(rest)), paint },
        ]];
        for mut line in self.lines {
            pad(&mut line, inner);
            line.insert(0, Span { text: format!("{down} "), paint });
            line.push(Span { text: format!(" {down}"), paint });
            lines.push(line);
        }
        lines.extend([edge(format!("{left_bottom}{}{right_bottom}", across.repeat(inner + 2)))]);
        Self { lines, width: inner + 4 }
    }
}

struct Canvas<'a> {
    picture: &'a Picture<'a>,
    /// Columns of a CPU's number or label.
    cell: usize,
    /// Columns of a core's token.
    token: usize,
    boxes: bool,
}

const HEAVY: [&str; 6] = ["┏", "┓", "┗", "┛", "━", "┃"];
const LIGHT: [&str; 6] = ["┌", "┐", "└", "┘", "─", "│"];
const ROUND: [&str; 6] = ["╭", "╮", "╰", "╯", "─", "│"];

impl<'a> Canvas<'a> {
    fn new(picture: &'a Picture<'a>) -> Self {
        let pus = &picture.host.parts().pus;
        let label = |cpu| if picture.has_slots { columns_of(&picture.use_of(cpu).label()) } else { 0 };
        let cell = pus.iter().map(|cpu| label(*cpu).max(cpu.to_string().len())).max().unwrap_or(1);
        let boxes = picture.host.parts_at(Level::Core).len() <= MAX_CORE_BOXES;
        let mut canvas = Self { picture, cell, token: 0, boxes };
        canvas.token = canvas.widest_token(&picture.root);
        canvas
    }

    fn widest_token(&self, area: &Area) -> usize {
        let own = area.cores.iter().map(|core| columns(&self.token_spans(core)));
        own.chain(area.areas.iter().map(|area| self.widest_token(area))).max().unwrap_or(0)
    }

    /// What lies in an area, in at most `width` columns; in logical order, so that a machine's first core comes first.
    fn content(&self, area: &Area, width: usize) -> Vec<Line> {
        let cores: Vec<Block> = area.cores.iter().map(|core| self.core(core)).collect();
        let cores = flow(cores, width, if self.boxes { 0 } else { 2 });
        let areas = self.areas(&area.areas, width);
        let mut lines = if area.cores_first { [cores, areas].concat() } else { [areas, cores].concat() };
        let devices = area.devices.join(", ");
        lines.extend(wrap(&devices, width).into_iter().map(|line| vec![Span::new(&line, Paint::Dim)]));
        lines
    }

    /// Areas beside and below each other: as many beside each other as make the picture lowest.
    fn areas(&self, areas: &[Area], width: usize) -> Vec<Line> {
        let most = areas.len().clamp(1, MAX_BESIDE);
        let ways = (1..=most).map(|beside| self.columns_of_areas(areas, width, beside));
        let fitting = |(_, lines): &(usize, Vec<Line>)| lines.iter().all(|line| columns(line) <= width);
        let ways: Vec<_> = ways.enumerate().filter(|way| way.0 == 0 || fitting(way)).collect();
        ways.into_iter().min_by_key(|(beside, lines)| (lines.len(), *beside)).map_or_else(Vec::new, |(_, lines)| lines)
    }

    fn columns_of_areas(&self, areas: &[Area], width: usize, beside: usize) -> Vec<Line> {
        let inner = ((width + 1) / beside).saturating_sub(5);
        let mut lines = Vec::new();
        let mut blocks = Vec::new();
        let mut at = 0;
        while at < areas.len() {
            let same = self.alike(&areas[at..]);
            let area = &areas[at];
            let frame = if area.is_package { HEAVY } else { LIGHT };
            let title = if beside == 1 { fit(&area.title(), inner.saturating_sub(1)) } else { area.title() };
            blocks.push(Block::new(self.content(area, inner)).framed(&title, frame, Paint::Plain));
            if same > 1 {
                lines.extend(flow(std::mem::take(&mut blocks), width, 1));
                lines.extend(more(&areas[at + 1..at + same], width));
            }
            at += same;
        }
        lines.extend(flow(blocks, width, 1));
        lines
    }

    /// How many areas from the first on look the same and have nothing on them: drawn once. 1 where boxes have room.
    fn alike(&self, areas: &[Area]) -> usize {
        let blank = |area: &Area| area.cpus.iter().all(|cpu| *self.picture.use_of(cpu) == Use::Free);
        if self.boxes || !blank(&areas[0]) {
            return 1;
        }
        let shape = areas[0].shape();
        let count = areas.iter().take_while(|area| blank(area) && area.shape() == shape).count();
        if count > 2 { count } else { 1 }
    }

    fn core(&self, core: &CoreArea) -> Block {
        if !self.boxes {
            let mut spans = self.token_spans(core);
            pad(&mut spans, self.token);
            return Block::new(vec![spans]);
        }
        let mut numbers = Line::new();
        let mut labels = Line::new();
        for (at, cpu) in core.pus.iter().enumerate() {
            let state = self.picture.use_of(*cpu);
            let gap = if at > 0 { 1 } else { 0 };
            numbers.push(Span { text: format!("{:gap$}{:>cell$}", "", cpu.0, cell = self.cell), paint: Paint::Plain });
            labels.push(Span { text: " ".repeat(gap), paint: Paint::Plain });
            labels.push(Span { text: format!("{:>cell$}", state.label(), cell = self.cell), paint: paint(state) });
        }
        let rows = if self.picture.has_slots { vec![numbers, labels] } else { vec![numbers] };
        let title = core.kind.map(String::from).unwrap_or_default();
        Block::new(rows).framed(&title, ROUND, Paint::Dim)
    }

    /// A core in one line: its CPUs and what they are used for, neighbours of the same use together.
    fn token_spans(&self, core: &CoreArea) -> Line {
        let mut line =
            vec![Span { text: core.kind.map_or_else(String::new, |kind| format!("{kind} ")), paint: Paint::Plain }];
        let runs = core.pus.chunk_by(|a, b| self.picture.use_of(*a) == self.picture.use_of(*b));
        for (at, run) in runs.enumerate() {
            let cpus: CpuSet = run.iter().copied().collect();
            let gap = if at > 0 { " " } else { "" };
            line.push(Span { text: format!("{gap}{cpus}"), paint: Paint::Plain });
            if self.picture.has_slots {
                let state = self.picture.use_of(run[0]);
                line.push(Span::new(" ", Paint::Plain));
                line.push(Span { text: state.label(), paint: paint(state) });
            }
        }
        line
    }
}

/// "… and 7 more like it: NUMA 1, 4, 5".
fn more(areas: &[Area], width: usize) -> Vec<Line> {
    let names: Vec<&str> = areas.iter().filter_map(|area| area.names.first()).map(String::as_str).collect();
    let cpus = areas.iter().fold(CpuSet::new(), |all, area| all.union(&area.cpus));
    let kind = names.first().and_then(|name| name.split_once(' ')).map_or("", |(kind, _)| kind);
    let numbers: Vec<&str> = names.iter().filter_map(|name| name.split_once(' ')).map(|(_, number)| number).collect();
    let named = if numbers.is_empty() { String::new() } else { format!("{kind} {}; ", numbers.join(", ")) };
    let text = format!("… and {} more like it: {named}CPUs {cpus}", areas.len());
    wrap(&text, width).into_iter().map(|line| vec![Span::new(&line, Paint::Dim)]).collect()
}

/// Blocks beside each other, with `gap` columns between, in as many rows as `width` needs. Rows are filled evenly.
fn flow(blocks: Vec<Block>, width: usize, gap: usize) -> Vec<Line> {
    let Some(widest) = blocks.iter().map(|block| block.width).max() else { return Vec::new() };
    let fits = ((width + gap) / (widest + gap)).max(1);
    let rows = blocks.len().div_ceil(fits);
    let per_row = blocks.len().div_ceil(rows);
    let even = blocks.iter().all(|block| block.width == widest);
    let mut lines: Vec<Line> = Vec::new();
    let mut row: Vec<Block> = Vec::new();
    for block in blocks {
        let used: usize = row.iter().map(|block| block.width + gap).sum();
        let full = if even { row.len() == per_row } else { used + block.width > width };
        if full && !row.is_empty() {
            lines.extend(beside(std::mem::take(&mut row), gap));
        }
        row.push(block);
    }
    lines.extend(beside(row, gap));
    lines
}

fn beside(blocks: Vec<Block>, gap: usize) -> Vec<Line> {
    let height = blocks.iter().map(|block| block.lines.len()).max().unwrap_or(0);
    let mut lines = vec![Line::new(); height];
    for (at, block) in blocks.into_iter().enumerate() {
        let blank = vec![Span { text: " ".repeat(block.width), paint: Paint::Plain }];
        let mut rows = block.lines.into_iter();
        for line in &mut lines {
            if at > 0 && gap > 0 {
                line.push(Span { text: " ".repeat(gap), paint: Paint::Plain });
            }
            line.extend(rows.next().unwrap_or_else(|| blank.clone()));
        }
    }
    lines
}

fn paint(state: &Use) -> Paint {
    match state {
        Use::Slot { group, .. } => Paint::Group(*group),
        Use::Free => Paint::Plain,
        Use::Reserved | Use::NotAllowed | Use::Isolated => Paint::Dim,
    }
}

fn columns(line: &Line) -> usize {
    line.iter().map(|span| columns_of(&span.text)).sum()
}

/// Every character that is drawn here is one column wide.
fn columns_of(text: &str) -> usize {
    text.chars().count()
}

fn pad(line: &mut Line, width: usize) {
    let missing = width.saturating_sub(columns(line));
    if missing > 0 {
        line.push(Span { text: " ".repeat(missing), paint: Paint::Plain });
    }
}

/// Cuts what does not fit.
fn fit(text: &str, width: usize) -> String {
    if columns_of(text) <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Breaks at spaces, and after commas of words that are wider than a line.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if columns_of(line) + 1 + columns_of(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.extend(pieces(word, width)),
        }
    }
    lines
}

fn pieces(word: &str, width: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for part in word.split_inclusive(',') {
        for part in part.chars().collect::<Vec<_>>().chunks(width) {
            let last = pieces.len() - 1;
            if !pieces[last].is_empty() && columns_of(&pieces[last]) + part.len() > width {
                pieces.push(String::new());
            }
            pieces.last_mut().expect("one piece at least").extend(part);
        }
    }
    pieces
}

fn render(line: &Line, color: bool) -> String {
    let span = |span: &Span| match span.paint {
        _ if !color || span.text.is_empty() => span.text.clone(),
        Paint::Plain => span.text.clone(),
        Paint::Dim => format!("\x1b[2m{}\x1b[0m", span.text),
        Paint::Bold => format!("\x1b[1m{}\x1b[0m", span.text),
        Paint::Group(group) => {
            let (back, fore) = palette::color(group).ansi;
            format!("\x1b[48;5;{back};38;5;{fore}m{}\x1b[0m", span.text)
        }
    };
    line.iter().map(span).collect::<String>().trim_end().to_owned()
}
