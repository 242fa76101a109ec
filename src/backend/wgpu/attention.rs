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
pub const EXTRA: [&str; 3] = ["parts", "tensors", "len"];

/// Fragments of columns that are walked over at a time.
fn columns(op: Op, unit: MatrixUnit) -> u32 {
    if op == Op::attention_forward { 64 / unit.size } else { 32 / unit.size }
}

fn threads(unit: MatrixUnit) -> u32 {
    G * unit.lanes
}

/// The most subgroups there can be, where the device chooses their size.
fn subgroups(unit: MatrixUnit) -> u32 {
    threads(unit) / unit.least_lanes
}

/// Bytes of workgroup memory of the largest stage.
fn workgroup_memory(op: Op, unit: MatrixUnit) -> u32 {
    let (s, cols) = (unit.size, unit.size * columns(op, unit));
    let own = match op {
        Op::attention_forward => s * (4 * (cols + 4) + 2 * (cols + 8)),
        _ => (s * (8 * (cols + 4) + 2 * (cols + 8))).max(cols * 8 * (s + 4) + s * 4 * (cols + 8)),
    };
    own * subgroups(unit) + 8 * threads(unit) + 1024
}

/// Fragments are loaded from quads, and a row of scores has whole lanes.
fn suits(unit: MatrixUnit) -> bool {
    unit.vec == 4 && unit.least_lanes >= unit.size
}

fn fits(op: Op, unit: MatrixUnit, limits: &Limits) -> bool {
    suits(unit)
        && threads(unit) <= limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x)
        && workgroup_memory(op, unit) <= limits.max_compute_workgroup_storage_size
}

fn consts(op: Op, unit: MatrixUnit, nd: u64) -> Vec<(&'static str, u64)> {
    let small = [
        ("S", unit.size),
        ("G", G),
        ("CB", columns(op, unit)),
        ("SUBGROUPS", subgroups(unit)),
        ("THREADS", threads(unit)),
        ("BACKWARD", (op == Op::attention_backward) as u32),
    ];
    small.map(|(name, v)| (name, v as u64)).into_iter().chain([("ND", nd)]).collect()
}

/// The stages that belong to the other op.
fn skipped(op: Op) -> Vec<&'static str> {
    if op == Op::attention_forward { vec!["dot", "dq", "dkv"] } else { vec!["forward"] }
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
    if !one_type || !shape || !worth || !fits(op, d.unit, d.limits) {
        return None;
    }
    let backward = op == Op::attention_backward;
    let rows = |count: u64| count.next_multiple_of(PAD) * size;
    // q, k, v; for the backward q, k and dout two times and v
    let len = h * rows(n) * if backward { 4 } else { 1 } + k * rows(t) * if backward { 3 } else { 2 };
    if len > d.room {
        return None;
    }
    let tensors = if backward { 4 } else { 3 };
    let products = if backward { 7.0 } else { 3.0 };
    Some(Plan {
        consts: consts(op, d.unit, size / d.unit.size as u64),
        extra: EXTRA.into_iter().zip([PARTS, tensors, len as u32]).collect(),
        scratch: 4 * PARTS as usize + 4,
        packed: len as usize,
        skip: skipped(op),
        // a batch of commands counts in the time of the plain shader
        work: products * (n * t * h * size) as f64 / 8.0,
        fast: Some(FILE),
        ..Plan::default()
    })
}

/// What a test of all shader texts has to try for `op`, for a device with `unit`.
pub fn variants(op: Op, unit: MatrixUnit) -> Vec<Plan> {
    let plan = |nd| Plan {
        consts: consts(op, unit, nd),
        extra: EXTRA.map(|name| (name, 1)).into(),
        scratch: 1,
        packed: 1,
        skip: skipped(op),
        fast: Some(FILE),
        ..Plan::default()
    };
    if op.spec().file == "attention" && suits(unit) { [1, 4, 8].map(plan).into() } else { Vec::new() }
}
