//! LayerNorm: bring each row to zero mean and unit variance, then scale and shift it. Ba et al. 2016, arXiv:1607.06450.
//!
//! forward   out = x̂·weight + bias,   x̂ = (inp − mean)·rstd,   mean = mean_C(inp),   rstd = 1/√(mean_C((inp − mean)²) + eps)
//! backward  dinp += rstd·(g − mean_C(g) − x̂·mean_C(g·x̂)),     g = dout·weight
//!           dweight += Σ_N dout·x̂;   dbias is `bias_backward` of dout
//! Saved for backward: mean, rstd (N·H). Where heads are normed, each of the H may have a weight of its own; else H is 1.
use super::{params, sum};
use crate::dtype::Real;

params! {
    LayerNorm { N: u32, H: u32, C: u32, eps: f32,
        /// Whether there is one.
        bias: u32 }
    wants |p| p.H == 1 || p.C.is_multiple_of(2), "norms of several heads want an even head size";
}

pub fn layernorm_forward<R: Real>(
    out: &mut [R],
    mean: &mut [R],
    rstd: &mut [R],
    inp: &[R],
    weight: &[R],
    bias: Option<&[R]>,
    p: &LayerNorm,
) {
    let (H, C) = (p.H as usize, p.C as usize);
    for n in 0..p.N as usize * H {
        let (x, w) = (&inp[n * C..][..C], n % H * C);
        let m = sum(x.iter().copied()) / R::from(C as f32);
        let variance = sum(x.iter().map(|&x| (x - m) * (x - m))) / R::from(C as f32);
        let r = R::from(1.0) / (variance + R::from(p.eps)).sqrt();
        (mean[n], rstd[n]) = (m, r);
        for c in 0..C {
            out[n * C + c] = (x[c] - m) * r * weight[w + c] + bias.map_or(R::from(0.0), |b| b[w + c]);
        }
    }
}

pub fn layernorm_backward<R: Real>(
    dinp: &mut [R],
    dout: &[R],
    inp: &[R],
    weight: &[R],
    mean: &[R],
    rstd: &[R],
    p: &LayerNorm,
) {
    let (H, C) = (p.H as usize, p.C as usize);
    for n in 0..p.N as usize * H {
        let (x, dy, w) = (&inp[n * C..][..C], &dout[n * C..][..C], &weight[n % H * C..][..C]);
        let (m, r) = (mean[n], rstd[n]);
        let g_mean = sum((0..C).map(|c| dy[c] * w[c])) / R::from(C as f32);
        let dot = sum((0..C).map(|c| dy[c] * w[c] * (x[c] - m) * r)) / R::from(C as f32);
        for c in 0..C {
            dinp[n * C + c] += r * (dy[c] * w[c] - g_mean - (x[c] - m) * r * dot);
        }
    }
}

pub fn layernorm_backward_weight<R: Real>(
    dweight: &mut [R],
    dout: &[R],
    inp: &[R],
    mean: &[R],
    rstd: &[R],
    p: &LayerNorm,
) {
    let (H, C) = (p.H as usize, p.C as usize);
    for i in 0..H * C {
        let h = i / C;
        let term = |n: usize| {
            let at = n * H * C + i;
            dout[at] * (inp[at] - mean[n * H + h]) * rstd[n * H + h]
        };
        dweight[i] += sum((0..p.N as usize).map(term));
    }
}
