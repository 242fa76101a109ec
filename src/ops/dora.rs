//! DoRA: an adapted weight is a direction W + s·B·A and a trained magnitude m of each output. Liu et al. 2024, arXiv:2402.09353.
//!
//! norm      norm[o] = ‖W[o,:] + s·(B·A)[o,:]‖, from wa = W·Aᵀ and gram = A·Aᵀ, so that B·A is never formed:
//!           norm² = Σ_C W² + 2s·Σ_R wa∘B + s²·Σ_R B∘(B·gram)
//! forward   out[n,o] = out[n,o]·magnitude[o]/norm[o]
//! backward  dinp[n,o] = dout[n,o]·magnitude[o]/norm[o],  dmagnitude[o] += Σ_N dout[n,o]·inp[n,o]/norm[o]
//! The norm is a constant of the backward (section 4.3 of the paper); `inp` is what the forward found in `out`.
use super::{params, sum};
use crate::dtype::Real;

params! { DoraNorm { O: u32, C: u32, R: u32, scale: f32 } }
params! { Dora { N: u32, O: u32 } }

pub fn dora_norm<R: Real>(norm: &mut [R], weight: &[R], wa: &[R], b: &[R], gram: &[R], p: &DoraNorm) {
    let (C, R, s) = (p.C as usize, p.R as usize, R::from(p.scale));
    for o in 0..p.O as usize {
        let (w, wa, b) = (&weight[o * C..][..C], &wa[o * R..][..R], &b[o * R..][..R]);
        let base = sum(w.iter().map(|w| *w * *w));
        let cross = sum((0..R).map(|r| wa[r] * b[r]));
        let square = sum((0..R * R).map(|i| b[i / R] * gram[i] * b[i % R]));
        norm[o] = (base + R::from(2.0) * s * cross + s * s * square).sqrt();
    }
}

pub fn dora_forward<R: Real>(out: &mut [R], magnitude: &[R], norm: &[R], p: &Dora) {
    let O = p.O as usize;
    for i in 0..p.N as usize * O {
        out[i] = out[i] * (magnitude[i % O] / norm[i % O]);
    }
}

pub fn dora_backward<R: Real>(dinp: &mut [R], dout: &[R], magnitude: &[R], norm: &[R], p: &Dora) {
    let O = p.O as usize;
    for i in 0..p.N as usize * O {
        dinp[i] = dout[i] * (magnitude[i % O] / norm[i % O]);
    }
}

pub fn dora_backward_weight<R: Real>(dmagnitude: &mut [R], dout: &[R], inp: &[R], norm: &[R], p: &Dora) {
    let O = p.O as usize;
    for o in 0..O {
        dmagnitude[o] += sum((0..p.N as usize).map(|n| dout[n * O + o] * inp[n * O + o])) / norm[o];
    }
}
