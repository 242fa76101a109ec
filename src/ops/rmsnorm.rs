//! RMSNorm: bring each row to unit mean square, then scale by a learned weight.
//! Zhang & Sennrich 2019, arXiv:1910.07467.
//!
//! forward   out = inp·rstd·(weight + shift),              rstd = 1/√(mean_C(inp²) + eps)
//! backward  dinp += rstd·(g − inp·rstd²·mean_C(g·inp)),   g = dout·(weight + shift)
//!           dweight += Σ_N dout·inp·rstd
//! residual  out, rstd = forward of sum = a + scale·b as sum is stored; its backward is the norm's, then residual_backward
//! Saved for backward: rstd (N). `shift` is 1 where weights are stored as their distance from 1 (Gemma), else 0.
use super::residual::{Residual, residual_forward};
use super::{params, sum};
use crate::dtype::Real;

params! { RmsNorm { N: u32, C: u32, eps: f32, shift: f32 } }
params! { RmsNormResidual { N: u32, C: u32, eps: f32, shift: f32, scale: f32 } }

pub fn rmsnorm_forward<R: Real>(out: &mut [R], rstd: &mut [R], inp: &[R], weight: &[R], p: &RmsNorm) {
    let (N, C, shift) = (p.N as usize, p.C as usize, R::from(p.shift));
    for n in 0..N {
        let x = &inp[n * C..][..C];
        let mean_sq = sum(x.iter().map(|&x| x * x)) / R::from(C as f32);
        let r = R::from(1.0) / (mean_sq + R::from(p.eps)).sqrt();
        rstd[n] = r;
        for c in 0..C {
            out[n * C + c] = x[c] * r * (weight[c] + shift);
        }
    }
}

pub fn rmsnorm_residual_forward<R: Real>(
    out: &mut [R],
    rstd: &mut [R],
    sum: &mut [R],
    a: &[R],
    b: &[R],
    weight: &[R],
    p: &RmsNormResidual,
) {
    let RmsNormResidual { N, C, eps, shift, scale } = *p;
    residual_forward(sum, a, b, &Residual { P: N * C, scale });
    rmsnorm_forward(out, rstd, sum, weight, &RmsNorm { N, C, eps, shift });
}

pub fn rmsnorm_backward<R: Real>(dinp: &mut [R], dout: &[R], inp: &[R], weight: &[R], rstd: &[R], p: &RmsNorm) {
    let (N, C, shift) = (p.N as usize, p.C as usize, R::from(p.shift));
    for n in 0..N {
        let (x, dy, r) = (&inp[n * C..][..C], &dout[n * C..][..C], rstd[n]);
        let dot = sum((0..C).map(|c| dy[c] * (weight[c] + shift) * x[c])) / R::from(C as f32);
        for c in 0..C {
            dinp[n * C + c] += r * (dy[c] * (weight[c] + shift) - x[c] * r * r * dot);
        }
    }
}

pub fn rmsnorm_backward_weight<R: Real>(dweight: &mut [R], dout: &[R], inp: &[R], rstd: &[R], p: &RmsNorm) {
    let (N, C) = (p.N as usize, p.C as usize);
    for c in 0..C {
        dweight[c] += sum((0..N).map(|n| dout[n * C + c] * inp[n * C + c] * rstd[n]));
    }
}
