//! Products by group: one gemm per expert, experts in parallel.
use super::fast::{Mat, gemm};
use crate::ops::grouped::Grouped;
use crate::ops::{Op, Slice};
use rayon::prelude::*;

pub(super) fn run(op: Op, args: Vec<Slice<f32>>, p: &Grouped) {
    let Ok([Slice::FloatMut(out), Slice::Float(a), Slice::Float(b), Slice::U32(offsets)]) = <[_; 4]>::try_from(args)
    else {
        panic!("arguments as in the row")
    };
    let (J, Q, E) = (p.J as usize, p.Q as usize, p.E as usize);
    let rows = |e: usize| offsets[e] as usize..offsets[e + 1] as usize;
    if op == Op::grouped_tn_add {
        out.par_chunks_mut(J * Q).enumerate().for_each(|(e, out)| {
            let rows = rows(e);
            let a = Mat { data: &a[rows.start * J..], row: 1, col: J };
            let b = Mat { data: &b[rows.start * Q..], row: Q, col: 1 };
            gemm(out, Q, (J, Q, rows.len()), a, b, p.alpha, true, true);
        });
        return;
    }
    let add = matches!(op, Op::grouped_nt_add | Op::grouped_nn_add);
    let (row, col) = if matches!(op, Op::grouped_nt | Op::grouped_nt_add) { (1, Q) } else { (J, 1) };
    let mut parts = Vec::with_capacity(E);
    // experts may be a part of all, their rows some in the middle
    let mut rest = &mut out[offsets[0] as usize * J..];
    for e in 0..E {
        let (part, after) = rest.split_at_mut(rows(e).len() * J);
        parts.push(part);
        rest = after;
    }
    parts.into_par_iter().enumerate().for_each(|(e, out)| {
        let a = Mat { data: &a[rows(e).start * Q..], row: Q, col: 1 };
        let b = Mat { data: &b[e * J * Q..], row, col };
        gemm(out, J, (rows(e).len(), J, Q), a, b, p.alpha, add, true);
    });
}
