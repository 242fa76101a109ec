//! SwiGLU of an expert's rows, each by its routing weight w = weights[rows[m]]. Shazeer 2020, arXiv:2002.05202.
//!
//! forward   out = w·silu(gate)·up,                        silu(x) = x·s,  s = 1/(1 + e⁻ˣ)
//! backward  dgate = w·dout·up·s·(1 + gate·(1 − s)),       dup = w·dout·silu(gate),      dw = Σ_F dout·silu(gate)·up
//! The down projection is linear, so weighting its input is weighting its output, and its output need not be kept for dw.
use super::{params, sum};
use crate::dtype::Real;

params! { RoutedSwiGlu { M: u32, F: u32 } }

pub fn routed_swiglu_forward<R: Real>(
    out: &mut [R],
    gate: &[R],
    up: &[R],
    weights: &[R],
    rows: &[u32],
    p: &RoutedSwiGlu,
) {
    let F = p.F as usize;
    for m in 0..p.M as usize {
        let w = weights[rows[m] as usize];
        let (out, gate, up) = (&mut out[m * F..][..F], &gate[m * F..][..F], &up[m * F..][..F]);
        for f in 0..F {
            out[f] = w * (gate[f] * sigmoid(gate[f]) * up[f]);
        }
    }
}

pub fn routed_swiglu_backward<R: Real>(
    dout: &mut [R],
    gate: &mut [R],
    up: &mut [R],
    dweights: &mut [R],
    weights: &[R],
    rows: &[u32],
    p: &RoutedSwiGlu,
) {
    let F = p.F as usize;
    for m in 0..p.M as usize {
        let w = weights[rows[m] as usize];
        let (dout, gate, up) = (&mut dout[m * F..][..F], &mut gate[m * F..][..F], &mut up[m * F..][..F]);
        dweights[rows[m] as usize] = sum((0..F).map(|f| dout[f] * (gate[f] * sigmoid(gate[f]) * up[f])));
        for f in 0..F {
            let (dy, g, u) = (dout[f] * w, gate[f], up[f]);
            let s = sigmoid(g);
            dout[f] = w * (g * s * u);
            gate[f] = dy * u * s * (R::from(1.0) + g * (R::from(1.0) - s));
            up[f] = dy * g * s;
        }
    }
}

fn sigmoid<R: Real>(x: R) -> R {
    R::from(1.0) / (R::from(1.0) + (-x).exp())
}
