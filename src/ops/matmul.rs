//! Matrix products, row-major, any leading dimension; every sum is f32 whatever is stored.
//!
//! nt   out[i,j] = alpha·Σ_q a[i,q]·b[j,q]    forward of a linear layer
//! nn   out[i,j] = alpha·Σ_q a[i,q]·b[q,j]    its input gradient
//! tn   out[i,j] = alpha·Σ_q a[q,i]·b[q,j]    its weight gradient
//! `_add` accumulates into out. aᵀ·bᵀ is never needed: it is (b·a)ᵀ.
//! Fast paths: the gemm crate (cpu), register tiles and cooperative matrices (wgpu), cuBLASLt (cuda).
use super::params;
use crate::dtype::Real;

params! { MatMul { I: u32, J: u32, Q: u32, ld_out: u32, ld_a: u32, ld_b: u32, alpha: f32 } }

/// One output per (i, j): `a(i, q)·b(q, j)` summed over q.
fn product<R: Real>(
    out: &mut [R],
    p: &MatMul,
    add: bool,
    a: impl Fn(usize, usize) -> R,
    b: impl Fn(usize, usize) -> R,
) {
    for i in 0..p.I as usize {
        for j in 0..p.J as usize {
            let sum = (0..p.Q as usize).map(|q| a(i, q) * b(q, j)).sum::<R>() * R::from(p.alpha);
            let at = &mut out[i * p.ld_out as usize + j];
            *at = if add { *at + sum } else { sum };
        }
    }
}

fn nt<R: Real>(out: &mut [R], a: &[R], b: &[R], p: &MatMul, add: bool) {
    let (ld_a, ld_b) = (p.ld_a as usize, p.ld_b as usize);
    product(out, p, add, |i, q| a[i * ld_a + q], |q, j| b[j * ld_b + q]);
}

fn nn<R: Real>(out: &mut [R], a: &[R], b: &[R], p: &MatMul, add: bool) {
    let (ld_a, ld_b) = (p.ld_a as usize, p.ld_b as usize);
    product(out, p, add, |i, q| a[i * ld_a + q], |q, j| b[q * ld_b + j]);
}

fn tn<R: Real>(out: &mut [R], a: &[R], b: &[R], p: &MatMul, add: bool) {
    let (ld_a, ld_b) = (p.ld_a as usize, p.ld_b as usize);
    product(out, p, add, |i, q| a[q * ld_a + i], |q, j| b[q * ld_b + j]);
}

pub fn matmul_nt<R: Real>(out: &mut [R], a: &[R], b: &[R], p: &MatMul) {
    nt(out, a, b, p, false)
}
pub fn matmul_nt_add<R: Real>(out: &mut [R], a: &[R], b: &[R], p: &MatMul) {
    nt(out, a, b, p, true)
}
pub fn matmul_nn<R: Real>(out: &mut [R], a: &[R], b: &[R], p: &MatMul) {
    nn(out, a, b, p, false)
}
pub fn matmul_nn_add<R: Real>(out: &mut [R], a: &[R], b: &[R], p: &MatMul) {
    nn(out, a, b, p, true)
}
pub fn matmul_tn<R: Real>(out: &mut [R], a: &[R], b: &[R], p: &MatMul) {
    tn(out, a, b, p, false)
}
pub fn matmul_tn_add<R: Real>(out: &mut [R], a: &[R], b: &[R], p: &MatMul) {
    tn(out, a, b, p, true)
}
