//! Stochastic gradient descent, as torch.optim.SGD: the decay is part of the gradient.
//!
//! g = grad·scale[0] + decay·weight
//! without momentum  weight −= lr·g
//! with it           m = momentum·m + rest·g,  weight −= lr·(g + momentum·m where nesterov, else m)
//! rest = 1 − dampening, but 1 at the first step, when m is zero. Weights may be rounded by chance, as AdamW's are.
use super::adamw::{Chance, stored};
use super::params;
use crate::dtype::Real;

params! {
    Sgd { P: u32, lr: f32, decay: f32, momentum: f32, rest: f32, nesterov: u32, chance: u32, seed: u32, stream: u32, first: u32 }
    wants |p| p.nesterov <= 1, "nesterov must be 0 or 1";
    wants |p| p.chance <= 1 && p.first.is_multiple_of(2), "chance must be 0 or 1, and first even";
}

impl Sgd {
    /// For the `t`-th step (from 1) of `P` values.
    pub fn new(P: usize, t: u64, lr: f64, (momentum, dampening): (f64, f64), nesterov: bool, decay: f64) -> Sgd {
        Sgd {
            P: P as u32,
            lr: lr as f32,
            decay: decay as f32,
            momentum: momentum as f32,
            rest: if t == 1 { 1.0 } else { (1.0 - dampening) as f32 },
            nesterov: nesterov as u32,
            chance: 0,
            seed: 0,
            stream: 0,
            first: 0,
        }
    }
    /// With weights rounded by chance.
    pub fn by_chance(self, Chance { seed, stream, first }: Chance) -> Sgd {
        Sgd { chance: 1, seed, stream, first, ..self }
    }
}

pub fn sgd_step<R: Real>(weight: &mut [R], grad: &[R], scale: &[R], p: &Sgd) {
    for i in 0..p.P as usize {
        let g = grad[i] * scale[0] + R::from(p.decay) * weight[i];
        weight[i] = stored!(p, i, weight[i] - R::from(p.lr) * g);
    }
}

pub fn sgd_step_momentum<R: Real>(weight: &mut [R], m: &mut [R], grad: &[R], scale: &[R], p: &Sgd) {
    let (momentum, rest) = (R::from(p.momentum), R::from(p.rest));
    for i in 0..p.P as usize {
        let g = grad[i] * scale[0] + R::from(p.decay) * weight[i];
        m[i] = momentum * m[i] + rest * g;
        let update = if p.nesterov == 1 { g + momentum * m[i] } else { m[i] };
        weight[i] = stored!(p, i, weight[i] - R::from(p.lr) * update);
    }
}
