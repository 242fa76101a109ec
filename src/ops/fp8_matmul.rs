//! Products of rows in e4m3 (`fp8.rs`), both along the sum: out[i,j] = a_scales[i]·b_scales[j]·Σ_q value(a[i,q])·value(b[j,q]).
//!
//! `_add` accumulates into out. Fast paths: the gemm crate (cpu); cuda's tensor cores, where they take e4m3 (compute capability 8.9),
//! for sizes in sixteens: by cuBLASLt on Hopper, by a kernel of our own elsewhere.
use super::fp8::value;
use super::params;
use crate::dtype::Real;

params! { Fp8MatMul { I: u32, J: u32, Q: u32 } }

fn product<R: Real>(out: &mut [R], a: &[u8], a_scales: &[R], b: &[u8], b_scales: &[R], p: &Fp8MatMul, add: bool) {
    let (J, Q) = (p.J as usize, p.Q as usize);
    for i in 0..p.I as usize {
        for j in 0..J {
            let term = |q: usize| R::from(value(a[i * Q + q])) * R::from(value(b[j * Q + q]));
            let sum = (0..Q).map(term).sum::<R>() * a_scales[i] * b_scales[j];
            let at = &mut out[i * J + j];
            *at = if add { *at + sum } else { sum };
        }
    }
}

pub fn fp8_matmul<R: Real>(out: &mut [R], a: &[u8], a_scales: &[R], b: &[u8], b_scales: &[R], p: &Fp8MatMul) {
    product(out, a, a_scales, b, b_scales, p, false)
}
pub fn fp8_matmul_add<R: Real>(out: &mut [R], a: &[u8], a_scales: &[R], b: &[u8], b_scales: &[R], p: &Fp8MatMul) {
    product(out, a, a_scales, b, b_scales, p, true)
}
