//! gpt-oss's gated unit of an expert's rows (arXiv:2508.10925), each by its routing weight w = weights[rows[m]]. gate_up holds
//! gate at even and up at odd channels.
//!
//! forward   g = min(gate, limit),  u = min(max(up, −limit), limit),  s = 1/(1 + exp(−alpha·g)),  out = w·g·s·(u + 1)
//! backward  dgate = w·dout·(u + 1)·s·(1 + alpha·g·(1 − s)) where gate <= limit, else 0
//!           dup = w·dout·g·s where |up| <= limit, else 0;     dw = Σ_F dout·g·s·(u + 1)
use super::{params, sum};
use crate::dtype::Real;

params! {
    ClampedSwiGlu { M: u32, F: u32, alpha: f32, limit: f32 }
    wants |p| p.limit > 0.0, "the limit must be positive";
}

/// A gate and an up, clamped, with what their gradients want.
struct Unit<R> {
    g: R,
    s: R,
    u: R,
    gate_moves: bool,
    up_moves: bool,
}

impl<R: Real> Unit<R> {
    /// Of a pair (gate, up). Comparisons keep a NaN.
    fn new(pair: &[R], p: &ClampedSwiGlu) -> Unit<R> {
        let (limit, one) = (R::from(p.limit), R::from(1.0));
        let above = |x: R| x > limit;
        let g = if above(pair[0]) { limit } else { pair[0] };
        let u = if above(pair[1]) { limit } else { pair[1] };
        let u = if above(-pair[1]) { -limit } else { u };
        let s = one / (one + (-(R::from(p.alpha) * g)).exp());
        Unit { g, s, u, gate_moves: !above(pair[0]), up_moves: !above(pair[1].abs()) }
    }
    fn out(&self) -> R {
        self.g * self.s * (self.u + R::from(1.0))
    }
}

pub fn clamped_swiglu_forward<R: Real>(out: &mut [R], gate_up: &[R], weights: &[R], rows: &[u32], p: &ClampedSwiGlu) {
    let F = p.F as usize;
    for m in 0..p.M as usize {
        let w = weights[rows[m] as usize];
        for f in m * F..(m + 1) * F {
            out[f] = w * Unit::new(&gate_up[2 * f..][..2], p).out();
        }
    }
}

pub fn clamped_swiglu_backward<R: Real>(
    dout: &mut [R],
    gate_up: &mut [R],
    dweights: &mut [R],
    weights: &[R],
    rows: &[u32],
    p: &ClampedSwiGlu,
) {
    let (F, zero, one) = (p.F as usize, R::from(0.0), R::from(1.0));
    for m in 0..p.M as usize {
        let w = weights[rows[m] as usize];
        let units = |f: usize, gate_up: &[R]| Unit::new(&gate_up[2 * f..][..2], p);
        dweights[rows[m] as usize] = sum((m * F..(m + 1) * F).map(|f| dout[f] * units(f, gate_up).out()));
        for f in m * F..(m + 1) * F {
            let (x, dy) = (units(f, gate_up), w * dout[f]);
            let slope = x.s * (one + R::from(p.alpha) * x.g * (one - x.s));
            dout[f] = w * x.out();
            gate_up[2 * f] = if x.gate_moves { dy * (x.u + one) * slope } else { zero };
            gate_up[2 * f + 1] = if x.up_moves { dy * x.g * x.s } else { zero };
        }
    }
}
