//! How an op is run at its sizes: the constants of its shader, the stages to run, scratch.
use super::exponents::Matrix;
use crate::backend::kernel_text::Names;
use crate::ops::Op;

/// One way to run an op.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Constants of the module, known to the text and to the grid.
    pub consts: Vec<(&'static str, u64)>,
    /// u32 params behind the row's own, known to the grid.
    pub extra: Vec<(&'static str, u32)>,
    /// f32 values that the stages hand to each other, as argument `scratch`.
    pub scratch: usize,
    /// f16 values that they do, as argument `packed`.
    pub packed: usize,
    /// Arguments a and b, if the stages use their exponents (argument `exponents` at `e_a`, `e_b`). What finds those that are not
    /// known has `unknown` workgroups in y, the first for the argument at `unknown_from` of these.
    pub scaled: Vec<(&'static str, Matrix)>,
    /// Where not empty: the stages run once for each of these, which replace some of `extra`; those of `once` for the first only.
    pub passes: Vec<Vec<(&'static str, u32)>>,
    pub once: Vec<&'static str>,
    /// Stages that this plan leaves out.
    pub skip: Vec<&'static str>,
    /// The file of a fast path, in place of the row's own.
    pub fast: Option<Fast>,
    /// Multiply-adds, roughly; 0 for what is over quickly.
    pub work: f64,
}

/// A file that serves several rows, told apart by constants; its entry points bear `name`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fast {
    pub file: &'static str,
    pub name: &'static str,
    pub text: &'static str,
}

/// A tile of a product: BM x BN outputs per workgroup, RM x RN blocks of 4x4 per thread.
#[derive(Debug)]
pub struct Tile {
    bm: u64,
    bn: u64,
    rm: u64,
    rn: u64,
    /// Channels of inner length per step.
    bk: u64,
    /// Channels that follow each other without a turn of a loop, in fours.
    unroll4: u64,
}
const fn tile([bm, bn]: [u64; 2], [rm, rn]: [u64; 2], bk: u64, unroll4: u64) -> Tile {
    Tile { bm, bn, rm, rn, bk, unroll4 }
}
/// For large products, the one that suits most devices first: what runs there is chosen by `tune`.
pub const LARGE: [Tile; 5] = [
    tile([128, 128], [2, 2], 16, 1),
    tile([128, 128], [2, 2], 16, 4),
    tile([128, 128], [2, 2], 32, 2),
    tile([64, 128], [2, 2], 16, 4),
    tile([64, 64], [2, 2], 16, 4),
];
const MIDDLE: Tile = tile([64, 64], [1, 1], 16, 1);
const SMALL: Tile = tile([32, 32], [1, 1], 16, 1);
const TALL: Tile = tile([128, 32], [1, 1], 16, 1);
const WIDE: Tile = tile([32, 128], [1, 1], 16, 1);
/// The most channels of inner length per step of a tile.
const BK_MOST: u64 = 32;

/// Workgroups that keep a GPU busy; below it, inner lengths are split.
const BUSY: u64 = 256;
/// Shortest part of a split inner length.
const PART: u64 = 256;
/// Most f32 values of split sums: 16 MiB.
pub const SCRATCH: u64 = 4 << 20;

impl Tile {
    fn count(&self, i: u64, j: u64) -> u64 {
        i.div_ceil(self.bm) * j.div_ceil(self.bn)
    }
    /// The tile for an I x J product: the largest that still gives the device enough to do, thin ones for thin products.
    fn choose(i: u64, j: u64, large: usize) -> &'static Tile {
        match (i, j) {
            (..=32, ..=32) => &SMALL,
            (_, ..=32) => &TALL,
            (..=32, _) => &WIDE,
            _ if LARGE[0].count(i, j) >= BUSY / 2 => &LARGE[large],
            _ if MIDDLE.count(i, j) >= 16 => &MIDDLE,
            _ => &SMALL,
        }
    }
    fn threads(&self) -> u64 {
        self.bm * self.bn / (16 * self.rm * self.rn)
    }
    /// Whether a workgroup of it is within a device's limits.
    pub fn fits(&self, limits: &wgpu::Limits) -> bool {
        let padded = |side: u64| 4 * self.bk * side + 16 * 8;
        padded(self.bm) + padded(self.bn) <= limits.max_compute_workgroup_storage_size as u64
            && self.threads() <= limits.max_compute_invocations_per_workgroup as u64
    }
    /// For products by group, whose inner length is never split.
    fn by_group(&self) -> Plan {
        let sides = [("BM", self.bm), ("BN", self.bn), ("BK", self.bk), ("RM", self.rm), ("RN", self.rn)];
        let turns = [("UNROLL4", self.unroll4), ("THREADS", self.threads())];
        Plan { consts: sides.into_iter().chain(turns).collect(), ..Plan::default() }
    }
    fn plan(&self, split: bool) -> Plan {
        let mut plan = self.by_group();
        plan.consts.push(("SPLIT", split as u64));
        plan
    }
}

fn matmul(names: &Names, large: usize) -> Plan {
    let [i, j, q] = ["I", "J", "Q"].map(|d| names[d]);
    let tile = Tile::choose(i, j, large);
    // as if by the first of the large ones, so that the choice among them changes no sum
    let tiles = Tile::choose(i, j, 0).count(i, j).max(1);
    let row = j.next_multiple_of(4);
    let most = (q / PART).min(SCRATCH / (i * row).max(1));
    let splits = (BUSY / tiles).min(most).max(1);
    // whole steps, so that no step belongs to two parts
    let part = q.div_ceil(splits).next_multiple_of(BK_MOST);
    let splits = q.div_ceil(part.max(1)).max(1);
    Plan {
        extra: vec![("splits", splits as u32), ("part", part as u32)],
        scratch: if splits > 1 { (splits * i * row) as usize } else { 0 },
        skip: if splits == 1 { vec!["join"] } else { Vec::new() },
        work: (i * j * q) as f64,
        ..tile.plan(splits > 1)
    }
}

/// An expert's product: its rows are few where experts are many.
fn grouped(op: Op, names: &Names) -> Plan {
    let [m, e, j, q] = ["M", "E", "J", "Q"].map(|d| names[d]);
    let own = m.div_ceil(e.max(1)).max(1);
    let tile = match op {
        Op::grouped_tn_add if j.min(q) <= 32 || e * MIDDLE.count(j, q) < BUSY / 4 => &SMALL,
        Op::grouped_tn_add => &MIDDLE,
        _ if own <= 32 || j <= 32 => &SMALL,
        _ => &MIDDLE,
    };
    Plan { work: (m * j * q) as f64, ..tile.by_group() }
}

fn attention(op: Op, names: &Names) -> Plan {
    let [n, t, h, d] = ["N", "T", "H", "D"].map(|d| names[d]);
    let products = if op == Op::attention_forward { 2.0 } else { 7.0 };
    Plan { consts: vec![("ND", d.div_ceil(64).max(1))], work: products * (n * t * h * d) as f64, ..Plan::default() }
}

/// Arguments that their file uses four at a time alone, so that they may be wide; and what must be a multiple of 4 for that.
pub fn wide(op: Op) -> &'static [(&'static str, &'static str)] {
    match op.spec().file {
        "matmul" => &[("out", "ld_out"), ("a", "ld_a"), ("b", "ld_b")],
        "nf4" if op != Op::nf4_quantize => &[("out", "P")],
        "grouped" if matches!(op, Op::grouped_nt | Op::grouped_nt_add) => &[("a", "Q"), ("b", "Q")],
        "grouped" if op == Op::grouped_tn_add => &[("a", "J"), ("b", "Q")],
        "grouped" => &[("a", "Q"), ("b", "J")],
        "attention" => &[("q", "ld_q"), ("k", "ld_k"), ("v", "ld_v"), ("dout", "D")],
        _ => &[],
    }
}

/// Whether argument `name`, `start` bytes into its slab, can be read four elements of `size` bytes at a time.
pub fn is_wide(op: Op, names: &Names, name: &str, start: usize, size: usize) -> bool {
    let fours = |dim: &str| names.get(dim).is_none_or(|v| v.is_multiple_of(4));
    wide(op).iter().any(|(arg, dim)| *arg == name && fours(dim)) && fours("D") && start.is_multiple_of(4 * size)
}

/// How to run `op` with params of these values; `large`: the place of the tile for large products.
pub fn plan(op: Op, names: &Names, large: usize) -> Plan {
    match op.spec().file {
        "matmul" => matmul(names, large),
        "grouped" => grouped(op, names),
        "attention" => attention(op, names),
        "embedding" | "rows" => Plan { consts: vec![("WINDOWED", 0)], ..Plan::default() },
        _ => Plan::default(),
    }
}

/// A look-up in the rows of a table that a shader sees, or a sum into them, the first and how many; other tokens keep what they have.
pub fn windowed((first, count): (u32, u32)) -> Plan {
    Plan { consts: vec![("WINDOWED", 1)], extra: vec![("first", first), ("count", count)], ..Plan::default() }
}

/// Every plan that [`plan`] can come to, but for sizes: what a test of all shader texts has to try.
pub fn variants(op: Op) -> Vec<Plan> {
    match op.spec().file {
        "matmul" => {
            let tiles = LARGE.iter().chain([&MIDDLE, &SMALL, &TALL, &WIDE]);
            let splits = |tile: &Tile| [tile.plan(false), tile.plan(true)];
            let extra = vec![("splits", 1), ("part", 1)];
            tiles.flat_map(splits).map(|p| Plan { extra: extra.clone(), scratch: 1, ..p }).collect()
        }
        "grouped" => [MIDDLE, SMALL].iter().map(Tile::by_group).collect(),
        "attention" => (1..=4).map(|nd| Plan { consts: vec![("ND", nd)], ..Plan::default() }).collect(),
        "embedding" | "rows" => vec![Plan { consts: vec![("WINDOWED", 0)], ..Plan::default() }, windowed((0, 1))],
        _ => vec![Plan::default()],
    }
}
