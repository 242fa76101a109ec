//! Lion: every weight moves by lr, in the direction of a momentum's sign. Chen et al. 2023, arXiv:2302.06675.
//!
//! g = grad·scale[0]
//! weight = weight·(1 − lr·decay) − lr·sign(β₁·m + (1 − β₁)·g)
//! m = β₂·m + (1 − β₂)·g
//! The host computes restᵢ = 1 − βᵢ in f64. 8-bit: m lives as codes of the signed dynamic map in blocks of 256 (`dyn8`), is used
//! before it is rounded again, and never changes its sign by rounding, as in bitsandbytes. Weights may be rounded by chance, as
//! AdamW's are.
use super::adamw::{Chance, stored};
use super::dyn8::{BLOCK, nearest_signed};
use super::params;
use crate::dtype::Real;

params! {
    Lion { P: u32, lr: f32, beta1: f32, beta2: f32, rest1: f32, rest2: f32, decay: f32, chance: u32, seed: u32, stream: u32, first: u32 }
    wants |p| p.chance <= 1 && p.first.is_multiple_of(2), "chance must be 0 or 1, and first even";
}

impl Lion {
    pub fn new(P: usize, lr: f64, (beta1, beta2): (f64, f64), decay: f64) -> Lion {
        Lion {
            P: P as u32,
            lr: lr as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
            decay: decay as f32,
            chance: 0,
            seed: 0,
            stream: 0,
            first: 0,
        }
    }
    /// With weights rounded by chance.
    pub fn by_chance(self, Chance { seed, stream, first }: Chance) -> Lion {
        Lion { chance: 1, seed, stream, first, ..self }
    }
}

fn sign<R: Real>(x: R) -> R {
    let zero = R::from(0.0);
    R::from(if x > zero { 1.0 } else { 0.0 }) - R::from(if x < zero { 1.0 } else { 0.0 })
}

/// The weight and the momentum after this gradient.
fn step<R: Real>(weight: R, m: R, g: R, p: &Lion) -> (R, R) {
    let direction = sign(R::from(p.beta1) * m + R::from(p.rest1) * g);
    let keep = R::from(1.0) - R::from(p.lr) * R::from(p.decay);
    (weight * keep - R::from(p.lr) * direction, R::from(p.beta2) * m + R::from(p.rest2) * g)
}

pub fn lion_step<R: Real>(weight: &mut [R], m: &mut [R], grad: &[R], scale: &[R], p: &Lion) {
    for i in 0..p.P as usize {
        let (w, m1) = step(weight[i], m[i], grad[i] * scale[0], p);
        (weight[i], m[i]) = (stored!(p, i, w), m1);
    }
}

pub fn lion_step_8bit<R: Real>(
    weight: &mut [R],
    m: &mut [u8],
    absmax: &mut [R],
    grad: &[R],
    scale: &[R],
    map: &[R],
    p: &Lion,
) {
    let levels: Vec<f32> = map.iter().map(|x| x.to_f32()).collect();
    let P = p.P as usize;
    for b in 0..P.div_ceil(BLOCK) {
        let block = b * BLOCK..P.min((b + 1) * BLOCK);
        let mut momenta = [R::from(0.0); BLOCK];
        let mut top = R::from(0.0);
        for (i, momentum) in block.clone().zip(&mut momenta) {
            let (w, m1) = step(weight[i], map[m[i] as usize] * absmax[b], grad[i] * scale[0], p);
            (weight[i], *momentum) = (stored!(p, i, w), m1);
            top = if momentum.abs() > top { momentum.abs() } else { top };
        }
        absmax[b] = top;
        for (i, momentum) in block.zip(momenta) {
            m[i] = nearest_signed(&levels, momentum.to_f32() / top.to_f32().max(f32::MIN_POSITIVE));
        }
    }
}
