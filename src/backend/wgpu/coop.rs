//! When and how products run on cooperative matrices: `shaders/fast/matmul_coop.wgsl`.
use super::adapter::MatrixUnit;
use super::plan::{Fast, Plan, SCRATCH};
use crate::backend::kernel_text::Names;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Op;
use wgpu::Limits;

pub const FILE: Fast = Fast { name: "matmul_coop", text: include_str!("../../../shaders/fast/matmul_coop.wgsl") };

/// What runs products of 16-bit operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// Cooperative matrices where the device has them and the product is big enough to pay.
    #[default]
    Auto,
    /// `shaders/matmul.wgsl` alone.
    Plain,
    /// Cooperative matrices whatever the size, with this one of [`TILES`]: for tests and timings.
    Tile(usize),
}

impl Products {
    /// From `LUTHIER_WGPU_PRODUCTS`: auto, plain, or the place of a tile.
    pub fn named(name: &str) -> Result<Products> {
        match (name, name.parse()) {
            ("auto", _) => Ok(Products::Auto),
            ("plain", _) => Ok(Products::Plain),
            (_, Ok(tile)) if tile < TILES.len() => Ok(Products::Tile(tile)),
            _ => {
                let what = format!(
                    "LUTHIER_WGPU_PRODUCTS: wanted auto, plain or a tile (0 to {}), got `{name}`",
                    TILES.len() - 1
                );
                Err(Error::device("wgpu", what))
            }
        }
    }
}

/// A workgroup of GM x GN subgroups, each with RM x RN fragments; with `prefetch` the next step's operands are loaded into
/// registers behind the products of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub gm: u32,
    pub gn: u32,
    pub rm: u32,
    pub rn: u32,
    pub prefetch: bool,
}

const fn tile([gm, gn]: [u32; 2], [rm, rn]: [u32; 2], prefetch: bool) -> Tile {
    Tile { gm, gn, rm, rn, prefetch }
}

/// The candidates. With fragments of 16: 64x64, 128x64, 128x128 (four subgroups or eight), 128x256; 64x32 for thin products.
pub const TILES: [Tile; 9] = [
    tile([2, 2], [2, 2], false),
    tile([2, 2], [2, 2], true),
    tile([2, 2], [4, 2], true),
    tile([2, 2], [4, 4], false),
    tile([2, 4], [4, 2], false),
    tile([2, 4], [4, 2], true),
    tile([2, 4], [4, 4], false),
    tile([2, 4], [4, 4], true),
    tile([4, 1], [1, 2], true),
];
const LARGE: usize = 5;
const SMALL: usize = 1;
const THIN: usize = 8;

/// Channels of inner length per step.
const BK: u32 = 32;
/// Multiply-adds from which a product pays for the maxima of its operands; without those, from a sixteenth of it.
const WORTH: f64 = 2.7e8;
/// Workgroups that keep a GPU busy; below it, inner lengths are split.
const BUSY: u64 = 256;
/// Shortest part of a split inner length.
const PART: u64 = 512;
/// Most parts whose maxima are taken at a time, and the elements from which there is another part.
const PARTS: u64 = 512;
const ELEMENTS_PER_PART: u64 = 16 * 1024;

impl Tile {
    pub fn size(&self, unit: MatrixUnit) -> (u64, u64) {
        ((self.gm * self.rm * unit.size).into(), (self.gn * self.rn * unit.size).into())
    }
    fn threads(&self, unit: MatrixUnit) -> u32 {
        self.gm * self.gn * unit.lanes
    }
    /// The most there can be, where the device chooses their size.
    fn subgroups(&self, unit: MatrixUnit) -> u32 {
        self.threads(unit) / unit.least_lanes
    }
    fn count(&self, unit: MatrixUnit, i: u64, j: u64) -> u64 {
        let (bm, bn) = self.size(unit);
        i.div_ceil(bm) * j.div_ceil(bn)
    }

    /// Whether a workgroup of it is within the device's limits, and stages whole quads per thread.
    pub fn fits(&self, unit: MatrixUnit, limits: &Limits) -> bool {
        let ((bm, bn), threads) = (self.size(unit), self.threads(unit));
        // f16 rows or columns, each padded by 8; the other way round is never more
        let staged = |side: u64| 2 * (side * (BK as u64 + 8)).max(BK as u64 * (side + 8));
        let patches = 4 * (self.subgroups(unit) * unit.size * unit.size) as u64;
        let whole = |side: u64| (side * BK as u64).is_multiple_of(4 * threads as u64);
        threads <= limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x)
            && staged(bm) + staged(bn) + patches <= limits.max_compute_workgroup_storage_size as u64
            && whole(bm)
            && whole(bn)
    }

    /// The constants of the shader for the row `op`.
    pub fn consts(&self, unit: MatrixUnit, op: Op, scaled: bool, split: bool) -> Vec<(&'static str, u64)> {
        let name = op.spec().name;
        let (bm, bn) = self.size(unit);
        let small = [
            ("S", unit.size),
            ("VEC", unit.vec),
            ("BK", BK),
            ("GM", self.gm),
            ("GN", self.gn),
            ("RM", self.rm),
            ("RN", self.rn),
            ("SUBGROUPS", self.subgroups(unit)),
            ("THREADS", self.threads(unit)),
            ("PREFETCH", self.prefetch.into()),
            ("A_ROWS", !name.starts_with("matmul_tn") as u32),
            ("B_ROWS", name.starts_with("matmul_nt") as u32),
            ("ADD", name.ends_with("_add") as u32),
            ("SCALED", scaled.into()),
            ("SPLIT", split.into()),
        ];
        small.map(|(name, v)| (name, v as u64)).into_iter().chain([("BM", bm), ("BN", bn)]).collect()
    }
}

/// The u32 params behind the row's own.
pub const EXTRA: [&str; 4] = ["splits", "part", "parts", "sums"];

/// The place in [`TILES`] for an I x J product; none where no tile is possible.
fn choose(unit: MatrixUnit, limits: &Limits, i: u64, j: u64) -> Option<usize> {
    let wanted = match () {
        _ if j <= 2 * unit.size as u64 => THIN,
        _ if TILES[LARGE].count(unit, i, j) >= BUSY / 2 => LARGE,
        _ => SMALL,
    };
    [wanted, SMALL, THIN].into_iter().find(|t| TILES[*t].fits(unit, limits))
}

/// How to run a product on cooperative matrices, or none where the plain shader is better or has to.
/// `dtypes`: of out, a, b.
pub fn plan(
    op: Op,
    names: &Names,
    dtypes: [DType; 3],
    unit: MatrixUnit,
    limits: &Limits,
    products: Products,
) -> Option<Plan> {
    let [i, j, q] = ["I", "J", "Q"].map(|d| names[d]);
    let half = |dtype: &DType| matches!(dtype, DType::F16 | DType::Bf16);
    if op.spec().file != "matmul" || !dtypes[1..].iter().all(half) || i * j * q == 0 {
        return None;
    }
    let scaled = dtypes[1..].contains(&DType::Bf16);
    let work = (i * j * q) as f64;
    let place = match products {
        Products::Plain => return None,
        Products::Auto if work < if scaled { WORTH } else { WORTH / 16.0 } => return None,
        Products::Auto => choose(unit, limits, i, j)?,
        Products::Tile(place) => Some(place).filter(|t| TILES[*t].fits(unit, limits))?,
    };
    let tile = TILES[place];

    let row = j.next_multiple_of(4);
    let most = (q / PART).min(SCRATCH / (i * row));
    let splits = (BUSY / tile.count(unit, i, j)).min(most).max(1);
    // whole steps of BK, so that no step belongs to two parts
    let part = q.div_ceil(splits).next_multiple_of(BK as u64);
    let splits = q.div_ceil(part);
    let parts = if scaled { (q * i.max(j)).div_ceil(ELEMENTS_PER_PART).min(PARTS) } else { 0 };
    let sums = if scaled { (2 * parts + 2).next_multiple_of(4) } else { 0 };
    let split = splits > 1;
    let mut skip = Vec::new();
    if !split {
        skip.push("join");
    }
    if !scaled {
        skip.extend(["amax", "scale"]);
    }
    Some(Plan {
        consts: tile.consts(unit, op, scaled, split),
        extra: EXTRA.into_iter().zip([splits, part, parts, sums].map(|v| v as u32)).collect(),
        scratch: (sums + if split { splits * i * row } else { 0 }) as usize,
        skip,
        // a batch of commands counts in the time of the plain products
        work: work / 4.0,
        fast: Some(FILE),
    })
}

/// What a test of all shader texts has to try for `op`, for a device with `unit`.
pub fn variants(op: Op, unit: MatrixUnit) -> Vec<Plan> {
    let flags = [(false, false), (false, true), (true, false), (true, true)];
    let plan = |tile: &Tile, (scaled, split)| Plan {
        consts: tile.consts(unit, op, scaled, split),
        extra: EXTRA.map(|name| (name, 1)).into(),
        scratch: (scaled || split) as usize,
        skip: if split { Vec::new() } else { vec!["join"] },
        fast: Some(FILE),
        ..Plan::default()
    };
    // every tile, and every way of one tile
    let tiles = TILES.iter().map(|tile| plan(tile, (true, false)));
    let ways = flags.into_iter().map(|flags| plan(&TILES[SMALL], flags));
    if op.spec().file == "matmul" { tiles.chain(ways).collect() } else { Vec::new() }
}
