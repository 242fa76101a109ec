//! When and how attention runs on cooperative matrices: `shaders/fast/attention_coop.wgsl`.
use super::adapter::MatrixUnit;
use super::coop::{Device, Products};
use super::plan::{Fast, Plan};
use crate::backend::kernel_text::Names;
use crate::dtype::DType;
use crate::ops::Op;
use wgpu::Limits;

pub const FILE: Fast = Fast { name: "attention_coop", text: include_str!("../../../shaders/fast/attention_coop.wgsl") };

/// Subgroups of a workgroup.
const G: u32 = 4;
/// Rows of packed tensors are padded to a multiple of it.
const PAD: u64 = 64;
/// Largest head: its sums are in registers.
const D_MAX: u64 = 128;
/// Parts whose maxima are taken at a time.
const PARTS: u32 = 256;
/// Scores of a head from which it pays to pack.
const WORTH: u64 = 64 * 64;

/// The u32 params behind the row's own.
pub const EXTRA: [&str; 6] = ["parts", "tensors", "len", "blocks", "heads", "keys"];

/// Columns that are walked over at a time, the best first.
const COLUMNS: [u32; 2] = [32, 16];

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

/// Bytes of workgroup memory of the largest stage, for heads of `size` channels and blocks of `cols` columns.
fn workgroup_memory(op: Op, unit: MatrixUnit, size: u32, cols: u32) -> u32 {
    let fragments = 2 * cols * (size / unit.size) * (unit.size + fragment_pad(unit));
    let (scores, halves) = (4 * (cols + 4), 2 * (cols + 8));
    let rows = unit.size * subgroups(unit);
    let stages = match op {
        Op::attention_forward => {
            [fragments + rows * scores + 8 * threads(unit), 2 * fragments + rows * (scores + halves)]
        }
        _ => [
            2 * fragments + rows * (scores + halves) + 4 * cols,
            2 * fragments + rows * (2 * scores + halves) + 8 * cols,
        ],
    };
    stages[0].max(stages[1]).max(1024) + 32
}

/// Fragments are loaded from quads, and a row of scores has whole lanes.
fn suits(unit: MatrixUnit) -> bool {
    unit.vec == 4 && unit.least_lanes >= unit.size
}

/// The columns of a block on a device with these limits; none where not even the smallest fits.
fn columns(op: Op, unit: MatrixUnit, size: u64, limits: &Limits) -> Option<u32> {
    let most = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
    let room = limits.max_compute_workgroup_storage_size;
    let fits = |cols: &u32| {
        cols.is_multiple_of(unit.size)
            && cols.is_multiple_of(unit.lanes.max(unit.size) / unit.size)
            && workgroup_memory(op, unit, size as u32, *cols) <= room
    };
    if suits(unit) && threads(unit) <= most { COLUMNS.into_iter().find(fits) } else { None }
}

fn consts(op: Op, unit: MatrixUnit, size: u64, cols: u32) -> Vec<(&'static str, u64)> {
    let small = [
        ("S", unit.size),
        ("G", G),
        ("CB", cols / unit.size),
        ("FRAGMENT_PAD", fragment_pad(unit)),
        ("SUBGROUPS", subgroups(unit)),
        ("THREADS", threads(unit)),
        ("BACKWARD", (op == Op::attention_backward) as u32),
    ];
    small.map(|(name, v)| (name, v as u64)).into_iter().chain([("ND", size / unit.size as u64)]).collect()
}

/// The stages that belong to the other op.
fn skipped(op: Op) -> Vec<&'static str> {
    if op == Op::attention_forward { vec!["dot", "grad"] } else { vec!["lse"] }
}

/// How to run attention on cooperative matrices, or none where the plain shader is better or has to. `dtypes`: of its float
/// arguments but for statistics; all of one 16-bit type are wanted.
pub fn plan(op: Op, names: &Names, dtypes: &[DType], d: Device, products: Products) -> Option<Plan> {
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
    let cols = columns(op, d.unit, size, d.limits)?;
    let backward = op == Op::attention_backward;
    let rows = |count: u64| count.next_multiple_of(PAD) * size;
    let len = h * rows(n) * if backward { 2 } else { 1 } + 2 * k * rows(t);
    if len > d.room {
        return None;
    }
    let tensors = if backward { 4 } else { 3 };
    let products = if backward { 8.0 } else { 3.0 };
    let pass = |rows: u64, heads: u64, keys: u32| {
        let blocks = rows.div_ceil((G * d.unit.size).into()) as u32;
        vec![("blocks", blocks), ("heads", heads as u32), ("keys", keys)]
    };
    let (queries, keys) = (pass(n, h, 0), pass(t, k, 1));
    Some(Plan {
        consts: consts(op, d.unit, size, cols),
        extra: EXTRA.into_iter().zip([PARTS, tensors, len as u32, 0, 0, 0]).collect(),
        passes: if backward { vec![keys, queries] } else { vec![queries] },
        once: vec!["amax", "scale", "pack", "dot", "mix"],
        scratch: 4 * PARTS as usize + 4,
        packed: len as usize,
        skip: skipped(op),
        // a batch of commands counts in the time of the plain shader
        work: products * (n * t * h * size) as f64 / 8.0,
        fast: Some(FILE),
    })
}

/// What a test of all shader texts has to try for `op`, for a device with `unit`.
pub fn variants(op: Op, unit: MatrixUnit) -> Vec<Plan> {
    let plan = |nd: u64| Plan {
        consts: consts(op, unit, nd * unit.size as u64, COLUMNS[0]),
        extra: EXTRA.map(|name| (name, 1)).into(),
        scratch: 1,
        packed: 1,
        skip: skipped(op),
        fast: Some(FILE),
        ..Plan::default()
    };
    if op.spec().file == "attention" && suits(unit) { [1, 4, 8].map(plan).into() } else { Vec::new() }
}
