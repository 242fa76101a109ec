//! AdamW: Adam with the decay taken off the weight itself. Loshchilov & Hutter 2017, arXiv:1711.05101.
//!
//! g = grad·scale[0],  m = β₁·m + (1 − β₁)·g,  v = β₂·v + (1 − β₂)·g²
//! weight = weight·(1 − lr·decay) − lr·correct1·m / (√(v·correct2) + eps)
//! The host computes correctᵢ = 1/(1 − βᵢᵗ) and restᵢ = 1 − βᵢ in f64: no kernel needs a power, and 1 − 0.999 in f32 would be
//! off by 1e-5.
//! 8-bit: both moments live as codes of the dynamic maps in blocks of 256 (`dyn8`); the step uses them before they are
//! rounded again, a first moment never changes its sign by rounding, and a block with no finite gradient norm is the
//! caller's to stop. bitsandbytes' order: update, then decay.
//! By chance: a weight that is stored in bf16 and nowhere else is rounded up or down, so that its mean is what it would be: many
//! small steps add up, where the nearest value would stay the same for ever. Which way is a hash of seed, stream and the weight's
//! place: the same in every language. Gupta et al. 2015, arXiv:1502.02551.
use super::dyn8::{BLOCK, nearest, nearest_signed};
use super::{dropout, params};
use crate::dtype::{Real, bf16_by_chance};

params! {
    AdamW { P: u32, lr: f32, beta1: f32, beta2: f32, rest1: f32, rest2: f32, eps: f32, decay: f32, correct1: f32, correct2: f32,
        /** 1: weights are rounded by chance */ chance: u32, seed: u32, stream: u32, /** Place of the first weight */ first: u32 }
    wants |p| p.chance <= 1 && p.first.is_multiple_of(2), "chance must be 0 or 1, and first even";
}

impl AdamW {
    /// For the `t`-th step (from 1) of `P` values.
    pub fn new(P: usize, t: u64, lr: f64, (beta1, beta2): (f64, f64), eps: f64, decay: f64) -> AdamW {
        let correct = |beta: f64| (1.0 / (1.0 - beta.powi(t.min(1 << 30) as i32))) as f32;
        AdamW {
            P: P as u32,
            lr: lr as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
            eps: eps as f32,
            decay: decay as f32,
            correct1: correct(beta1),
            correct2: correct(beta2),
            chance: 0,
            seed: 0,
            stream: 0,
            first: 0,
        }
    }
    /// With weights rounded by chance.
    pub fn by_chance(self, Chance { seed, stream, first }: Chance) -> AdamW {
        AdamW { chance: 1, seed, stream, first, ..self }
    }
}

/// What decides which way weights are rounded.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    pub seed: u32,
    pub stream: u32,
    /// Place of the first weight, which is even.
    pub first: u32,
}

impl Chance {
    /// The `i`th weight, to be stored.
    pub(super) fn round<R: Real>(self, x: R, i: usize) -> R {
        let place = self.first.wrapping_add(i as u32);
        // two weights share a word
        let word = dropout::random(place / 2, self.seed, self.stream) << (16 * (place % 2));
        R::from(bf16_by_chance(x.to_f32(), word))
    }
}

/// What stores the `i`th weight: as it is, or by chance.
macro_rules! stored {
    ($p:ident, $i:expr, $x:expr) => {
        match $p.chance {
            0 => $x,
            _ => crate::ops::adamw::Chance { seed: $p.seed, stream: $p.stream, first: $p.first }.round($x, $i),
        }
    };
}
pub(super) use stored;

/// The moments after this gradient, and the weight after this step.
fn step<R: Real>(weight: R, m: R, v: R, g: R, p: &AdamW, decay_first: bool) -> (R, R, R) {
    let (one, beta1, beta2) = (R::from(1.0), R::from(p.beta1), R::from(p.beta2));
    let m = beta1 * m + R::from(p.rest1) * g;
    let v = beta2 * v + R::from(p.rest2) * g * g;
    let update = R::from(p.lr) * m * R::from(p.correct1) / ((v * R::from(p.correct2)).sqrt() + R::from(p.eps));
    let keep = one - R::from(p.lr) * R::from(p.decay);
    (if decay_first { weight * keep - update } else { (weight - update) * keep }, m, v)
}

pub fn adamw_step<R: Real>(weight: &mut [R], m: &mut [R], v: &mut [R], grad: &[R], scale: &[R], p: &AdamW) {
    for i in 0..p.P as usize {
        let (w, m1, v1) = step(weight[i], m[i], v[i], grad[i] * scale[0], p, true);
        (weight[i], m[i], v[i]) = (stored!(p, i, w), m1, v1);
    }
}

pub fn adamw_step_8bit<R: Real>(
    weight: &mut [R],
    m: &mut [u8],
    v: &mut [u8],
    absmax1: &mut [R],
    absmax2: &mut [R],
    grad: &[R],
    scale: &[R],
    map1: &[R],
    map2: &[R],
    p: &AdamW,
) {
    let (levels1, levels2): (Vec<f32>, Vec<f32>) = map1.iter().zip(map2).map(|(a, b)| (a.to_f32(), b.to_f32())).unzip();
    let P = p.P as usize;
    for b in 0..P.div_ceil(BLOCK) {
        let block = b * BLOCK..P.min((b + 1) * BLOCK);
        let mut moments = [(R::from(0.0), R::from(0.0)); BLOCK];
        let (mut max1, mut max2) = (R::from(0.0), R::from(0.0));
        for (i, moment) in block.clone().zip(&mut moments) {
            let (m, v) = (map1[m[i] as usize] * absmax1[b], map2[v[i] as usize] * absmax2[b]);
            let (w, m, v) = step(weight[i], m, v, grad[i] * scale[0], p, false);
            weight[i] = stored!(p, i, w);
            *moment = (m, v);
            (max1, max2) = (if m.abs() > max1 { m.abs() } else { max1 }, if v > max2 { v } else { max2 });
        }
        (absmax1[b], absmax2[b]) = (max1, max2);
        let tiny = f32::MIN_POSITIVE;
        for (i, (m1, v1)) in block.zip(moments) {
            m[i] = nearest_signed(&levels1, m1.to_f32() / max1.to_f32().max(tiny));
            v[i] = nearest(&levels2, v1.to_f32() / max2.to_f32().max(tiny));
        }
    }
}
