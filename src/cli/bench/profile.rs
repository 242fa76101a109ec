//! The table of `luthier bench train --profile`: the calls of one step by op and size, next to what the device can do.
//!
//! A call's floor is what its bytes take at the speed of a large copy, or its multiplications at that of a large product,
//! whichever is longer; bytes are what its arguments hold, so what stays in caches can be faster than that.
use super::super::out;
use super::ops::{Run, median_time, random};
use luthier::Result;
use luthier::backend::profile::Call;
use luthier::backend::{Backend, Scope};
use luthier::dtype::DType;
use luthier::ops::Op;
use luthier::ops::matmul::MatMul;
use std::collections::HashMap;

/// What a device does in a second at most.
pub(super) struct Floor {
    bytes: f64,
    flops: f64,
}

/// Values of the copy.
const COPIED: usize = 1 << 26;

impl Floor {
    pub fn measure(b: &dyn Backend) -> Result<Floor> {
        let (s, dtype) = (Scope::new(b), DType::Bf16);
        let side = if b.name() == "cpu" { 1024 } else { 4096 };
        let (x, y, mut out) =
            (random(&s, side * side, dtype)?, random(&s, side * side, dtype)?, s.alloc(COPIED, dtype)?);
        let from = s.alloc(COPIED, dtype)?;
        let copy = median_time(b, &mut (Box::new(|| b.copy(&mut out, &from)) as Run))?;
        let n = side as u32;
        let p = MatMul { I: n, J: n, Q: n, ld_out: n, ld_a: n, ld_b: n, alpha: 1e-3 };
        let mut out = out.view(0, side * side);
        let product = median_time(b, &mut (Box::new(|| b.matmul_nt(&mut out, &x, &y, &p)) as Run))?;
        Ok(Floor { bytes: (2 * COPIED * dtype.size()) as f64 / copy, flops: 2.0 * (side as f64).powi(3) / product })
    }

    fn seconds(&self, bytes: f64, flops: f64) -> f64 {
        (bytes / self.bytes).max(flops / self.flops)
    }
}

/// Multiplications and additions of a call; `seq`: tokens of each sequence. 0: none that count.
fn flops(call: &Call, seq: usize) -> f64 {
    let dims: f64 = call.dims.iter().map(|d| *d as f64).product();
    match call.op {
        // I, J, Q
        Some(
            Op::matmul_nt | Op::matmul_nt_add | Op::matmul_nn | Op::matmul_nn_add | Op::matmul_tn | Op::matmul_tn_add,
        ) => 2.0 * dims,
        // M, E, J, Q
        Some(Op::grouped_nt | Op::grouped_nt_add | Op::grouped_nn | Op::grouped_nn_add | Op::grouped_tn_add) => {
            2.0 * dims / call.dims[1] as f64
        }
        // N, T, H, K, D: two products of all causal pairs, five in the backward
        Some(Op::attention_forward | Op::attention_backward) => {
            let pairs = (call.dims[0] * (seq + 1)) as f64 / 2.0;
            let products = if call.op == Some(Op::attention_forward) { 2.0 } else { 5.0 };
            2.0 * products * pairs * (call.dims[2] * call.dims[4]) as f64
        }
        _ => 0.0,
    }
}

/// Calls of one op and size.
#[derive(Default)]
struct Row {
    name: String,
    calls: usize,
    seconds: f64,
    bytes: f64,
    flops: f64,
    floor: f64,
}

fn rows(calls: &[(Call, f64)], floor: &Floor, seq: usize) -> Vec<Row> {
    let (mut rows, mut places): (Vec<Row>, HashMap<String, usize>) = (Vec::new(), HashMap::new());
    for (call, seconds) in calls {
        let dims: Vec<String> = call.dims.iter().map(usize::to_string).collect();
        let name = format!("{} {}", call.op.map_or("copy", |op| op.spec().name), dims.join("x"));
        let row = *places.entry(name.clone()).or_insert_with(|| {
            rows.push(Row { name, ..Row::default() });
            rows.len() - 1
        });
        let (row, bytes, flops) = (&mut rows[row], call.bytes as f64, flops(call, seq));
        row.calls += 1;
        row.seconds += seconds;
        row.bytes += bytes;
        row.flops += flops;
        row.floor += floor.seconds(bytes, flops);
    }
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    rows
}

pub(super) fn print(calls: &[(Call, f64)], floor: &Floor, seq: usize) -> Result<()> {
    let all: f64 = calls.iter().map(|(_, seconds)| seconds).sum();
    out(&format!("\na copy: {:.0} GB/s, a product: {:.0} TFLOP/s\n", floor.bytes / 1e9, floor.flops / 1e12))?;
    let heads = ["op", "calls", "ms", "share %", "GB/s", "TFLOP/s", "floor %"];
    out(&format!(
        "{:<44} {:>6} {:>9} {:>8} {:>7} {:>8} {:>8}\n",
        heads[0], heads[1], heads[2], heads[3], heads[4], heads[5], heads[6]
    ))?;
    let line = |row: &Row| {
        let rate = |x: f64, unit: f64| match x / row.seconds / unit {
            0.0 => String::new(),
            rate if rate < 10.0 => format!("{rate:.1}"),
            rate => format!("{rate:.0}"),
        };
        out(&format!(
            "{:<44} {:>6} {:>9.2} {:>8.1} {:>7} {:>8} {:>8.0}\n",
            row.name,
            row.calls,
            row.seconds * 1e3,
            100.0 * row.seconds / all,
            rate(row.bytes, 1e9),
            rate(row.flops, 1e12),
            100.0 * row.floor / row.seconds
        ))
    };
    let rows = rows(calls, floor, seq);
    rows.iter().try_for_each(line)?;
    let floor = rows.iter().map(|row| row.floor).sum();
    line(&Row { name: "all".into(), calls: calls.len(), seconds: all, floor, ..Row::default() })
}
