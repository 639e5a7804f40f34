//! Where everything of the SVG goes: cores in rows, areas in the columns that make the picture lowest. Owns sizes in
//! pixels; draws nothing.

use crate::{
    draw::area::{Area, CoreArea, Picture},
    model::CpuId,
};

pub(super) const PAD: f64 = 10.0;
pub(super) const CORE_PAD: f64 = 4.0;
pub(super) const DEVICE_LINE: f64 = 18.0;
const TITLE: f64 = 28.0;
const GAP: f64 = 8.0;
const CORE_GAP: f64 = 5.0;
const PU_GAP: f64 = 3.0;
/// Areas are laid beside each other up to this many.
const MAX_BESIDE: usize = 8;

/// Sizes of a CPU's tile.
pub(super) struct Tiles {
    pu_width: f64,
    pu_height: f64,
    core_head: f64,
}

/// An area with a place for everything in it, relative to its corner.
pub(super) struct Laid<'a> {
    pub(super) area: &'a Area,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) tiles: Vec<Tile<'a>>,
    pub(super) areas: Vec<(Laid<'a>, f64, f64)>,
    pub(super) devices: Vec<String>,
    pub(super) devices_y: f64,
}

/// A core and its CPUs; the CPUs are relative to the core's corner.
pub(super) struct Tile<'a> {
    pub(super) core: &'a CoreArea,
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) pus: Vec<(CpuId, [f64; 4])>,
}

impl Tiles {
    pub(super) fn new(picture: &Picture<'_>) -> Self {
        let pus = &picture.host.parts().pus;
        let letters = |cpu: &CpuId| {
            let label = if picture.has_slots { picture.use_of(*cpu).label().chars().count() } else { 0 };
            label.max(cpu.to_string().len())
        };
        let widest = pus.iter().map(letters).max().unwrap_or(1) as f64;
        let hybrid = picture.root.is_hybrid();
        Self {
            pu_width: (widest * 7.6 + 8.0).max(28.0),
            pu_height: if picture.has_slots { 31.0 } else { 24.0 },
            core_head: if hybrid { 12.0 } else { 0.0 },
        }
    }

    fn core_width(&self, core: &CoreArea) -> f64 {
        let pus = core.pus.len() as f64;
        pus * self.pu_width + (pus - 1.0) * PU_GAP + 2.0 * CORE_PAD
    }

    fn core_height(&self) -> f64 {
        self.pu_height + self.core_head + 2.0 * CORE_PAD
    }
}

/// Lays an area out in at most `width` pixels, where its widest core allows.
pub(super) fn lay<'a>(area: &'a Area, tiles: &Tiles, width: f64) -> Laid<'a> {
    let head = if area.names.is_empty() { 0.0 } else { TITLE };
    let inner = width - 2.0 * PAD;
    let mut laid = Laid {
        area,
        width: title_width(area).min(width),
        height: head,
        tiles: Vec::new(),
        areas: Vec::new(),
        devices: Vec::new(),
        devices_y: 0.0,
    };
    if area.cores_first {
        laid.add_cores(tiles, inner);
        laid.add_areas(tiles, inner);
    } else {
        laid.add_areas(tiles, inner);
        laid.add_cores(tiles, inner);
    }
    laid.add_devices(inner);
    laid.height += PAD - if laid.devices.is_empty() { GAP } else { 4.0 };
    laid
}

fn title_width(area: &Area) -> f64 {
    let letters = |texts: &[String]| texts.iter().map(|text| text.chars().count()).sum::<usize>() as f64;
    letters(&area.names) * 8.3 + letters(&area.details) * 7.4 + area.names.len() as f64 * 19.0 + 2.0 * PAD
}

impl<'a> Laid<'a> {
    /// How far its content is from its edge where no card is drawn around it.
    pub(super) fn inset(&self) -> f64 {
        if self.area.names.is_empty() { PAD } else { 0.0 }
    }

    fn add_cores(&mut self, tiles: &Tiles, inner: f64) {
        let Some(widest) = self.area.cores.iter().map(|core| tiles.core_width(core)).reduce(f64::max) else { return };
        let fits = (((inner + CORE_GAP) / (widest + CORE_GAP)) as usize).max(1);
        // Rows of the same length where one would be left with a few.
        let rows = self.area.cores.len().div_ceil(fits);
        let columns = self.area.cores.len().div_ceil(rows);
        let height = tiles.core_height();
        let mut x = PAD;
        for (at, core) in self.area.cores.iter().enumerate() {
            if at > 0 && at % columns == 0 {
                x = PAD;
                self.height += height + CORE_GAP;
            }
            let width = tiles.core_width(core);
            let pu = |(at, cpu): (usize, &CpuId)| {
                let x = CORE_PAD + at as f64 * (tiles.pu_width + PU_GAP);
                (*cpu, [x, CORE_PAD + tiles.core_head, tiles.pu_width, tiles.pu_height])
            };
            let pus = core.pus.iter().enumerate().map(pu).collect();
            self.tiles.push(Tile { core, x, y: self.height, width, height, pus });
            x += width + CORE_GAP;
            self.width = self.width.max(x - CORE_GAP + PAD);
        }
        self.height += height + GAP;
    }

    /// The number of columns that gives the lowest picture, of the widths that fit.
    fn add_areas(&mut self, tiles: &Tiles, inner: f64) {
        let areas = &self.area.areas;
        let mut best: Option<(f64, f64, Vec<Vec<Laid<'a>>>)> = None;
        for columns in 1..=areas.len().min(MAX_BESIDE) {
            let share = (inner - (columns - 1) as f64 * GAP) / columns as f64;
            let laid = areas.iter().map(|area| lay(area, tiles, share)).collect::<Vec<_>>();
            let column = laid.iter().map(|laid| laid.width).fold(0.0, f64::max);
            let width = columns as f64 * (column + GAP) - GAP;
            let rows = rows(laid, columns);
            let height: f64 = rows.iter().map(|row| row[0].height + GAP).sum();
            let better = best.as_ref().is_none_or(|best| width <= inner + 0.5 && (height, width) < (best.0, best.1));
            if better {
                best = Some((height, width, rows));
            }
        }
        let Some((_, width, rows)) = best else { return };
        let columns = rows[0].len() as f64;
        let column = (width + GAP) / columns - GAP;
        for row in rows {
            let height = row[0].height;
            for (at, mut laid) in row.into_iter().enumerate() {
                laid.width = column;
                self.areas.push((laid, PAD + at as f64 * (column + GAP), self.height));
            }
            self.height += height + GAP;
        }
        self.width = self.width.max(width + 2.0 * PAD);
    }

    fn add_devices(&mut self, inner: f64) {
        let width = inner.min(self.width - 2.0 * PAD).max(150.0);
        self.devices = crate::draw::text::wrap(&self.area.devices.join(", "), (width / 6.4) as usize);
        self.devices_y = self.height - 4.0;
        self.height += self.devices.len() as f64 * DEVICE_LINE;
    }
}

/// Rows of so many areas, each as high as its highest.
fn rows(areas: Vec<Laid<'_>>, columns: usize) -> Vec<Vec<Laid<'_>>> {
    let mut rows: Vec<Vec<Laid<'_>>> = Vec::new();
    for area in areas {
        match rows.last_mut() {
            Some(row) if row.len() < columns => row.push(area),
            _ => rows.push(vec![area]),
        }
    }
    for row in &mut rows {
        let height = row.iter().map(|laid| laid.height).fold(0.0, f64::max);
        row.iter_mut().for_each(|laid| laid.height = height);
    }
    rows
}
