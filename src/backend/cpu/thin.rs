//! Products with packed weights: the references of runs of outputs, in parallel.
use crate::ops::{Op, Slice};
use rayon::prelude::*;

/// Outputs of a task.
const RUN: usize = 16;

/// A read-only argument again.
fn again<'s>(slice: &'s Slice<f32>) -> Slice<'s, f32> {
    match slice {
        Slice::Float(x) => Slice::Float(x),
        Slice::U8(x) => Slice::U8(x),
        _ => unreachable!("a packed weight is bytes and scales"),
    }
}

/// `params` begin with N, O, C, P, first.
pub(super) fn run(op: Op, args: Vec<Slice<f32>>, params: &[u8]) {
    let word = |i: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|k| params[4 * i + k])) as usize;
    let (N, O, first) = (word(0), word(1), word(4));
    let mut args = args.into_iter();
    let Some(Slice::FloatMut(out)) = args.next() else { unreachable!("the output comes first") };
    let rest: Vec<Slice<f32>> = args.collect();
    let one = |i: usize| {
        let (o, rows) = (i * RUN, RUN.min(O - i * RUN));
        let (mut own, mut part) = (params.to_vec(), vec![0.0; N * rows]);
        own[4..8].copy_from_slice(&(rows as u32).to_ne_bytes());
        own[16..20].copy_from_slice(&((first + o) as u32).to_ne_bytes());
        op.reference([Slice::FloatMut(&mut part)].into_iter().chain(rest.iter().map(again)), &own);
        (o, rows, part)
    };
    let parts: Vec<_> = (0..O.div_ceil(RUN)).into_par_iter().map(one).collect();
    for (o, rows, part) in parts {
        for n in 0..N {
            out[n * O + o..][..rows].copy_from_slice(&part[n * rows..][..rows]);
        }
    }
}
