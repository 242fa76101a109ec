//! When and how attention runs on cooperative matrices: `shaders/fast/attention_coop*.wgsl`.
use super::adapter::MatrixUnit;
use super::coop::{Device, Products};
use super::plan::{Fast, Plan};
use crate::backend::kernel_text::Names;
use crate::dtype::DType;
use crate::ops::Op;
use wgpu::Limits;

macro_rules! continued {
    ($file:literal) => {
        concat!(include_str!("../../../shaders/fast/attention_coop.wgsl"), include_str!($file))
    };
}
const FORWARD: Fast = Fast {
    file: "attention_coop_forward",
    name: "attention_coop",
    text: continued!("../../../shaders/fast/attention_coop_forward.wgsl"),
};
const BACKWARD: Fast = Fast {
    file: "attention_coop_backward",
    name: "attention_coop",
    text: continued!("../../../shaders/fast/attention_coop_backward.wgsl"),
};
fn file(op: Op) -> Fast {
    if op == Op::attention_forward { FORWARD } else { BACKWARD }
}

/// Subgroups of a workgroup.
const G: u32 = 4;
/// Rows of packed tensors are padded to a multiple of it, or of a workgroup's rows where those are more.
const PAD: u32 = 64;
/// Largest head: its sums are in registers.
const D_MAX: u64 = 128;
/// Parts whose maxima are taken at a time.
const PARTS: u32 = 256;
/// Scores of a head from which it pays to pack.
const WORTH: u64 = 64 * 64;

/// The u32 params behind the row's own.
pub const EXTRA: [&str; 6] = ["parts", "tensors", "len", "blocks", "heads", "keys"];

/// The columns that a subgroup, which holds a fragment of rows, works on at a time.
#[derive(Clone, Copy)]
struct Block {
    columns: u32,
}

/// The best first.
const BLOCKS: [Block; 2] = [Block { columns: 16 }, Block { columns: 32 }];

fn threads(unit: MatrixUnit) -> u32 {
    G * unit.lanes
}

/// The most subgroups there can be, where the device chooses their size.
fn subgroups(unit: MatrixUnit) -> u32 {
    threads(unit) / unit.least_lanes
}

/// Values between the rows of a fragment in workgroup memory, which keep rows of 32 bytes off each other's banks.
fn fragment_pad(unit: MatrixUnit) -> u32 {
    if unit.size == 16 { 8 } else { 0 }
}

/// Rows of a workgroup.
fn own(unit: MatrixUnit) -> u32 {
    G * unit.size
}
fn pad(unit: MatrixUnit) -> u32 {
    PAD.max(own(unit))
}

impl Block {
    /// Bytes of workgroup memory of the largest stage, for heads of `size` channels.
    fn workgroup_memory(self, op: Op, unit: MatrixUnit, size: u32) -> u32 {
        let cols = self.columns;
        let fragments = 2 * cols * (size / unit.size) * (unit.size + fragment_pad(unit));
        let (scores, halves) = (4 * (cols + 4), 2 * (cols + 8));
        let rows = unit.size * subgroups(unit);
        let lse = fragments + rows * scores + 8 * threads(unit);
        let sums = 2 * fragments + rows * (scores + halves);
        let largest = if op == Op::attention_forward { lse.max(sums) } else { sums + 8 * cols };
        largest.max(1024) + 32
    }

    /// Whether a device with these limits runs it, and every lane has whole quads of a row of scores.
    fn fits(self, op: Op, unit: MatrixUnit, size: u32, limits: &Limits) -> bool {
        let lanes_of_a_row = unit.lanes.max(unit.size) / unit.size;
        self.columns.is_multiple_of(unit.size)
            && self.columns.is_multiple_of(4 * lanes_of_a_row)
            && self.workgroup_memory(op, unit, size) <= limits.max_compute_workgroup_storage_size
    }

    fn consts(self, op: Op, unit: MatrixUnit, size: u64, capped: bool) -> Vec<(&'static str, u64)> {
        let fixed = unit.lanes == unit.least_lanes;
        let small = [
            ("S", unit.size),
            ("G", G),
            ("CB", self.columns / unit.size),
            ("PAD", pad(unit)),
            ("FRAGMENT_PAD", fragment_pad(unit)),
            ("SUBGROUPS", subgroups(unit)),
            ("THREADS", threads(unit)),
            ("LANES", if fixed { unit.lanes } else { 0 }),
            ("WIDE", self.columns / 4 / (unit.least_lanes / unit.size)),
            ("CAPPED", capped as u32),
            ("BACKWARD", (op == Op::attention_backward) as u32),
        ];
        small.map(|(name, v)| (name, v as u64)).into_iter().chain([("ND", size / unit.size as u64)]).collect()
    }
}

/// Fragments are loaded from quads, and a row of scores has whole lanes.
fn suits(unit: MatrixUnit) -> bool {
    unit.vec == 4 && unit.least_lanes >= unit.size
}

/// The block for a device with these limits; none where not even the smallest fits.
fn block(op: Op, unit: MatrixUnit, size: u64, limits: &Limits) -> Option<Block> {
    let most = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
    let suits = suits(unit) && threads(unit) <= most;
    BLOCKS.into_iter().find(|block| suits && block.fits(op, unit, size as u32, limits))
}

/// How to run attention on cooperative matrices, or none where the plain shader is better or has to. `capped`: scores are.
/// `dtypes`: of its float arguments but for statistics; all of one 16-bit type are wanted.
pub fn plan(op: Op, names: &Names, capped: bool, dtypes: &[DType], d: Device, products: Products) -> Option<Plan> {
    let [n, t, h, k, size] = ["N", "T", "H", "K", "D"].map(|dim| names[dim]);
    let fours = ["ld_q", "ld_k", "ld_v"].iter().all(|ld| names[*ld].is_multiple_of(4));
    let one_type = dtypes.iter().all(|dtype| *dtype == dtypes[0] && matches!(dtype, DType::F16 | DType::Bf16));
    let shape = size > 0 && size <= D_MAX && size.is_multiple_of(d.unit.size.into()) && fours;
    let worth = match products {
        Products::Plain => false,
        Products::Auto => n * t >= WORTH,
        Products::Tile(..) => n * t > 0,
    };
    if !one_type || !shape || !worth {
        return None;
    }
    let block = block(op, d.unit, size, d.limits)?;
    let backward = op == Op::attention_backward;
    let rows = |count: u64| count.next_multiple_of(pad(d.unit).into()) * size;
    let len = h * rows(n) * if backward { 2 } else { 1 } + 2 * k * rows(t);
    if len > d.room {
        return None;
    }
    let tensors = if backward { 4 } else { 3 };
    let products = if backward { 8.0 } else { 3.0 };
    let pass = |rows: u64, heads: u64, keys: u32| {
        let blocks = rows.div_ceil(own(d.unit).into()) as u32;
        vec![("blocks", blocks), ("heads", heads as u32), ("keys", keys)]
    };
    let (queries, keys) = (pass(n, h, 0), pass(t, k, 1));
    Some(Plan {
        consts: block.consts(op, d.unit, size, capped),
        extra: EXTRA.into_iter().zip([PARTS, tensors, len as u32, 0, 0, 0]).collect(),
        passes: if backward { vec![keys, queries] } else { vec![queries] },
        once: vec!["amax", "scale", "pack", "dv", "dot"],
        scratch: 4 * PARTS as usize + 4,
        packed: len as usize,
        scaled: Vec::new(),
        skip: Vec::new(),
        // a batch of commands counts in the time of the plain shader
        work: products * (n * t * h * size) as f64 / 8.0,
        fast: Some(file(op)),
    })
}

/// What a test of all shader texts has to try for `op`, for a device with `unit`.
pub fn variants(op: Op, unit: MatrixUnit) -> Vec<Plan> {
    let plan = |(nd, block, capped): (u64, Block, bool)| Plan {
        consts: block.consts(op, unit, nd * unit.size as u64, capped),
        extra: EXTRA.map(|name| (name, 1)).into(),
        scratch: 1,
        packed: 1,
        fast: Some(file(op)),
        ..Plan::default()
    };
    let [narrow, wide] = BLOCKS;
    let all = [(1, narrow, false), (4, wide, false), (8, wide, true), (8, narrow, false)];
    if op.spec().file == "attention" && suits(unit) { all.map(plan).into() } else { Vec::new() }
}
