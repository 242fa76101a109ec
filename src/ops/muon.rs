//! Muon: a weight matrix moves by its momentum, made orthogonal. Keller Jordan 2024, kellerjordan.github.io/posts/muon; as
//! torch.optim.Muon.
//!
//! muon_momentum   g = grad·scale[0],  m += (1 − momentum)·(g − m),  out = m, or g + momentum·(m − g) where nesterov;
//!                 square[n] = Σ out[n,:]²
//! muon_normalize  x[e,n,:] /= max(√Σ_n square[e,n], eps): of E matrices, each by its own Frobenius norm
//! muon_step       weight = weight·keep − lr·update,  keep = 1 − rate·decay
//!                 Weights may be rounded by chance, as AdamW's are.
//! Between the last two, x goes through a few steps of Newton–Schulz, which are products (`train/optim/muon.rs`).
use super::adamw::{Chance, stored};
use super::{params, sum};
use crate::dtype::Real;

params! {
    MuonMomentum { N: u32, C: u32, momentum: f32, /** 1 − momentum, of the f64 value */ rest: f32, nesterov: u32 }
    wants |p| p.nesterov <= 1, "nesterov must be 0 or 1";
}
params! {
    MuonNormalize { E: u32, N: u32, C: u32, eps: f32 }
    wants |p| p.eps > 0.0, "eps must be more than 0";
}
params! {
    MuonStep { P: u32, keep: f32, lr: f32, chance: u32, seed: u32, stream: u32, first: u32 }
    wants |p| p.chance <= 1 && p.first.is_multiple_of(2), "chance must be 0 or 1, and first even";
}

impl MuonStep {
    pub fn new(P: usize, keep: f32, lr: f32) -> MuonStep {
        MuonStep { P: P as u32, keep, lr, chance: 0, seed: 0, stream: 0, first: 0 }
    }
    /// With weights rounded by chance.
    pub fn by_chance(self, Chance { seed, stream, first }: Chance) -> MuonStep {
        MuonStep { chance: 1, seed, stream, first, ..self }
    }
}

pub fn muon_momentum<R: Real>(m: &mut [R], out: &mut [R], square: &mut [R], grad: &[R], scale: &[R], p: &MuonMomentum) {
    let (momentum, C) = (R::from(p.momentum), p.C as usize);
    for n in 0..p.N as usize {
        for i in n * C..(n + 1) * C {
            let g = grad[i] * scale[0];
            m[i] += R::from(p.rest) * (g - m[i]);
            out[i] = if p.nesterov == 1 { g + momentum * (m[i] - g) } else { m[i] };
        }
        square[n] = sum(out[n * C..(n + 1) * C].iter().map(|x| *x * *x));
    }
}

pub fn muon_normalize<R: Real>(x: &mut [R], square: &[R], p: &MuonNormalize) {
    let (N, C) = (p.N as usize, p.C as usize);
    for (x, square) in x.chunks_mut(N * C).zip(square.chunks(N)) {
        let norm = sum(square.iter().copied()).sqrt();
        let eps = R::from(p.eps);
        let factor = R::from(1.0) / if norm > eps { norm } else { eps };
        x.iter_mut().for_each(|x| *x = *x * factor);
    }
}

pub fn muon_step<R: Real>(weight: &mut [R], update: &[R], p: &MuonStep) {
    for i in 0..p.P as usize {
        weight[i] = stored!(p, i, weight[i] * R::from(p.keep) - R::from(p.lr) * update[i]);
    }
}
