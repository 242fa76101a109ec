//! Products of rows in e4m3: both sides as the floats they stand for, then the gemm crate.
use super::fast::{Mat, gemm};
use crate::ops::fp8::value;
use crate::ops::fp8_matmul::Fp8MatMul;
use crate::ops::{Op, Slice};
use rayon::prelude::*;

pub(super) fn run(op: Op, args: Vec<Slice<f32>>, p: &Fp8MatMul) {
    let Ok([Slice::FloatMut(out), Slice::U8(a), Slice::Float(a_scales), Slice::U8(b), Slice::Float(b_scales)]) =
        <[_; 5]>::try_from(args)
    else {
        panic!("arguments as in the row")
    };
    let (I, J, Q) = (p.I as usize, p.J as usize, p.Q as usize);
    let (a, b) = (floats(a, a_scales, Q), floats(b, b_scales, Q));
    let (a, b) = (Mat { data: &a, row: Q, col: 1 }, Mat { data: &b, row: 1, col: Q });
    gemm(out, J, (I, J, Q), a, b, 1.0, op == Op::fp8_matmul_add, true);
}

fn floats(codes: &[u8], scales: &[f32], Q: usize) -> Vec<f32> {
    let row = |(codes, scale): (&[u8], &f32)| codes.iter().map(|code| value(*code) * scale).collect::<Vec<f32>>();
    codes.par_chunks(Q.max(1)).zip(scales).flat_map_iter(row).collect()
}
