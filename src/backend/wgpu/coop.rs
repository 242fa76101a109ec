//! When and how products run on cooperative matrices: `shaders/fast/matmul_coop.wgsl`.
use super::adapter::MatrixUnit;
use super::exponents::Matrix;
use super::plan::{Fast, Plan, SCRATCH};
use crate::backend::kernel_text::Names;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Op;
use wgpu::Limits;

pub const FILE: Fast =
    Fast { file: "matmul_coop", name: "matmul_coop", text: include_str!("../../../shaders/fast/matmul_coop.wgsl") };

/// What runs products of 16-bit operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// Cooperative matrices where the device has them and the product is big enough to pay.
    #[default]
    Auto,
    /// `shaders/matmul.wgsl` alone.
    Plain,
    /// Cooperative matrices whatever the size, with this one of [`TILES`]: for tests and timings.
    Tile(usize, Operands),
}

/// How operands reach the tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// As they are stored; every tile converts what it stages.
    Stored,
    /// Written anew before, as f16 in the order in which the tiles stage them.
    Packed,
}

impl Products {
    /// From `LUTHIER_WGPU_PRODUCTS`: auto, plain, or the place of a tile, with `packed` behind it or not.
    pub fn named(name: &str) -> Result<Products> {
        let (place, operands) = match name.strip_suffix("packed") {
            Some(place) => (place, Operands::Packed),
            None => (name, Operands::Stored),
        };
        match (name, place.parse()) {
            ("auto", _) => Ok(Products::Auto),
            ("plain", _) => Ok(Products::Plain),
            (_, Ok(tile)) if tile < TILES.len() => Ok(Products::Tile(tile, operands)),
            _ => {
                let last = TILES.len() - 1;
                let wanted = format!("auto, plain or a tile (0 to {last}, 0packed to {last}packed)");
                Err(Error::device("wgpu", format!("LUTHIER_WGPU_PRODUCTS: wanted {wanted}, got `{name}`")))
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
    /// Channels of inner length per step.
    pub bk: u32,
    pub prefetch: bool,
}

const fn tile([gm, gn]: [u32; 2], [rm, rn]: [u32; 2], bk: u32, prefetch: bool) -> Tile {
    Tile { gm, gn, rm, rn, bk, prefetch }
}

/// The candidates. With fragments of 16: 64x64, 128x128 of four subgroups and of eight, 128x256; 64x32 for thin products.
pub const TILES: [Tile; 5] = [
    tile([2, 2], [2, 2], 32, true),
    tile([2, 2], [4, 4], 32, true),
    tile([2, 4], [4, 2], 64, true),
    tile([2, 4], [4, 4], 32, true),
    tile([4, 1], [1, 2], 32, true),
];
const SMALL: usize = 0;
/// For large products, the one that suits most devices first: what runs there is chosen by `tune`.
pub const LARGE: [usize; 3] = [1, 2, 3];
const THIN: usize = 4;

/// Multiply-adds from which a product pays for the maxima of its operands; without those, from a sixteenth of it.
const WORTH: f64 = 2.7e8;
/// Workgroups that keep a GPU busy; below it, inner lengths are split.
const BUSY: u64 = 256;
/// The same where a side is at most this long: such products are as fast as their other operand comes.
const BUSY_THIN: u64 = 1024;
const SIDE: u64 = 64;
/// Shortest part of a split inner length.
const PART: u64 = 512;
/// The most channels of inner length per step of a tile.
const BK_MOST: u64 = 64;
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
        let staged = |side: u64| 2 * (side * (self.bk as u64 + 8)).max(self.bk as u64 * (side + 8));
        let patches = 4 * (self.subgroups(unit) * unit.size * unit.size) as u64;
        let whole = |side: u64| (side * self.bk as u64).is_multiple_of(4 * threads as u64);
        threads <= limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x)
            && staged(bm) + staged(bn) + patches <= limits.max_compute_workgroup_storage_size as u64
            && whole(bm)
            && whole(bn)
    }

    /// The constants of the shader for the row `op`.
    pub fn consts(&self, unit: MatrixUnit, op: Op, way: Way) -> Vec<(&'static str, u64)> {
        let name = op.spec().name;
        let (bm, bn) = self.size(unit);
        let small = [
            ("S", unit.size),
            ("VEC", unit.vec),
            ("BK", self.bk),
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
            ("SCALED", way.scaled.into()),
            ("SPLIT", way.split.into()),
            ("PACKED", way.packed.into()),
        ];
        small.map(|(name, v)| (name, v as u64)).into_iter().chain([("BM", bm), ("BN", bn)]).collect()
    }
}

/// The u32 params behind the row's own.
pub const EXTRA: [&str; 12] =
    ["splits", "part", "parts", "sums", "a_len", "b_len", "jfirst", "jcount", "e_a", "e_b", "unknown", "unknown_from"];

/// The operands with rows, columns and stride.
fn matrices(op: Op, names: &Names) -> [(&'static str, Matrix); 2] {
    let [i, j, q, ld_a, ld_b] = ["I", "J", "Q", "ld_a", "ld_b"].map(|name| names[name]);
    let a = if op.spec().name.starts_with("matmul_tn") { [q, i, ld_a] } else { [i, q, ld_a] };
    let b = if op.spec().name.starts_with("matmul_nt") { [j, q, ld_b] } else { [q, j, ld_b] };
    [("a", a), ("b", b)]
}

/// The variants of one tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// An operand is bf16.
    pub scaled: bool,
    pub split: bool,
    pub packed: bool,
}

/// What the choice of a way depends on, besides the product.
#[derive(Clone, Copy)]
pub struct Device<'a> {
    pub unit: MatrixUnit,
    pub limits: &'a Limits,
    /// Elements that may be packed at a time.
    pub room: u64,
    /// The place of the tile for large products.
    pub large: usize,
}

impl Device<'_> {
    /// Of a device with so many bytes, if it says; a thirtieth of them, within a binding, may hold packed operands.
    pub fn new(unit: MatrixUnit, limits: &Limits, memory: Option<u64>, large: usize) -> Device<'_> {
        let bytes = (memory.unwrap_or(0) / 30).max(LEAST_PACKED).min(limits.max_storage_buffer_binding_size);
        Device { unit, limits, room: bytes / 2, large }
    }
}

/// Bytes of packed operands that any device has room for, where a binding reaches so far.
const LEAST_PACKED: u64 = 128 << 20;
/// I·J/(I + J) from which it pays to pack: as many multiply-adds for each element that is written anew.
const REUSE: u64 = 100;

/// The place in [`TILES`] for an I x J product; none where no tile is possible.
fn choose(d: Device, i: u64, j: u64) -> Option<usize> {
    let wanted = match () {
        _ if j <= 2 * d.unit.size as u64 => THIN,
        _ if TILES[LARGE[0]].count(d.unit, i, j) >= BUSY / 2 => d.large,
        _ => SMALL,
    };
    [wanted, LARGE[0].min(wanted), SMALL, THIN].into_iter().find(|t| TILES[*t].fits(d.unit, d.limits))
}

/// Elements of a, and the columns of b that are packed at a time; none where there is no room for the one and some of the other.
fn pack(tile: Tile, d: Device, [i, j, q]: [u64; 3]) -> Option<(u64, u64)> {
    let (bm, bn) = tile.size(d.unit);
    let depth = q.next_multiple_of(tile.bk.into());
    let a = i.next_multiple_of(bm) * depth;
    let columns = d.room.checked_sub(a)? / depth / bn * bn;
    (columns > 0).then_some((a, columns.min(j)))
}

/// How to run a product on cooperative matrices, or none where the plain shader is better or has to.
/// `dtypes`: of out, a, b.
pub fn plan(op: Op, names: &Names, dtypes: [DType; 3], d: Device, products: Products) -> Option<Plan> {
    let [i, j, q] = ["I", "J", "Q"].map(|dim| names[dim]);
    let half = |dtype: &DType| matches!(dtype, DType::F16 | DType::Bf16);
    if op.spec().file != "matmul" || !dtypes[1..].iter().all(half) || i * j * q == 0 {
        return None;
    }
    let scaled = dtypes[1..].contains(&DType::Bf16);
    let work = (i * j * q) as f64;
    let (place, operands) = match products {
        Products::Plain => return None,
        Products::Auto if work < if scaled { WORTH } else { WORTH / 16.0 } => return None,
        Products::Auto if i * j < REUSE * (i + j) => (choose(d, i, j)?, Operands::Stored),
        Products::Auto => (choose(d, i, j)?, Operands::Packed),
        Products::Tile(place, operands) => (Some(place).filter(|t| TILES[*t].fits(d.unit, d.limits))?, operands),
    };
    let tile = TILES[place];
    let (_, bn) = tile.size(d.unit);
    let packed = if operands == Operands::Packed { pack(tile, d, [i, j, q]) } else { None };
    let (a_len, columns) = packed.unwrap_or((0, j));
    let depth = q.next_multiple_of(tile.bk.into());
    let b_len = |columns: u64| if packed.is_some() { columns.next_multiple_of(bn) * depth } else { 0 };

    let row = columns.next_multiple_of(4);
    let most = (q / PART).min(SCRATCH / (i * row));
    let busy = if i.min(j) <= SIDE { BUSY_THIN } else { BUSY };
    // the same for all tiles of large products, so that they add in the same order
    let measure = if LARGE.contains(&place) { TILES[LARGE[0]] } else { tile };
    let splits = (busy / measure.count(d.unit, i, columns)).min(most).max(1);
    // whole steps of any tile, so that no step belongs to two parts
    let part = q.div_ceil(splits).next_multiple_of(BK_MOST);
    let splits = q.div_ceil(part);
    let parts = if scaled { (q * i.max(j)).div_ceil(ELEMENTS_PER_PART).min(PARTS) } else { 0 };
    let sums = if scaled { (2 * parts).next_multiple_of(4) } else { 0 };
    let way = Way { scaled, split: splits > 1, packed: packed.is_some() };
    let pass = |first: u64| {
        let count = columns.min(j - first);
        [("b_len", b_len(count)), ("jfirst", first), ("jcount", count)].map(|(name, v)| (name, v as u32)).into()
    };
    Some(Plan {
        consts: tile.consts(d.unit, op, way),
        extra: EXTRA
            .into_iter()
            .zip([splits, part, parts, sums, a_len, 0, 0, 0, 0, 0, 0, 0].map(|v| v as u32))
            .collect(),
        scratch: (sums + if way.split { splits * i * row } else { 0 }) as usize,
        packed: (a_len + b_len(columns)) as usize,
        scaled: if scaled { matrices(op, names).into() } else { Vec::new() },
        passes: (0..j).step_by(columns as usize).map(pass).collect(),
        once: vec!["amax", "scale", "packa"],
        skip: way.skipped(),
        // a batch of commands counts in the time of the plain products
        work: work / 4.0,
        fast: Some(FILE),
    })
}

impl Way {
    /// The stages that it leaves out.
    fn skipped(self) -> Vec<&'static str> {
        let stages =
            [(self.split, ["join"].as_slice()), (self.scaled, &["amax", "scale"]), (self.packed, &["packa", "packb"])];
        stages.into_iter().filter(|(runs, _)| !runs).flat_map(|(_, names)| names.iter().copied()).collect()
    }
}

/// What a test of all shader texts has to try for `op`, for a device with `unit`.
pub fn variants(op: Op, unit: MatrixUnit) -> Vec<Plan> {
    let plan = |tile: &Tile, way: Way| Plan {
        consts: tile.consts(unit, op, way),
        extra: EXTRA.map(|name| (name, 1)).into(),
        scratch: (way.scaled || way.split) as usize,
        packed: way.packed as usize,
        scaled: if way.scaled { vec![("a", [1; 3]), ("b", [1; 3])] } else { Vec::new() },
        skip: way.skipped(),
        fast: Some(FILE),
        ..Plan::default()
    };
    let on_off = [false, true];
    let ways = on_off.into_iter().flat_map(|scaled| on_off.map(|split| (scaled, split)));
    let ways = ways.flat_map(|(scaled, split)| on_off.map(|packed| Way { scaled, split, packed }));
    // every tile, and every way of one tile
    let tiles = TILES.iter().map(|tile| plan(tile, Way { scaled: true, split: false, packed: true }));
    let ways = ways.map(|way| plan(&TILES[SMALL], way));
    if op.spec().file == "matmul" { tiles.chain(ways).collect() } else { Vec::new() }
}
