//! SwiGLU and GeGLU: one projection gates another. Shazeer 2020, arXiv:2002.05202.
//!
//! forward   out = act(gate)·up,                         act(x) = x·s,  s = σ(x·(slope + cubic·x²)),  σ(u) = 1/(1 + e⁻ᵘ)
//! backward  dgate = dout·up·s·(1 + gate·(1 − s)·(slope + 3·cubic·gate²)),   dup = dout·act(gate)
//! slope 1, cubic 0 is silu; √(8/π) and 0.044715·√(8/π) is gelu by its tanh formula, as (1 + tanh u)/2 = σ(2u).
//! In place, three buffers in and out: the down projection's weight gradient wants out again, so nothing is saved.
use super::params;
use crate::dtype::Real;

params! { SwiGlu { N: u32, F: u32, ld_gate: u32, ld_up: u32, slope: f32, cubic: f32 } }

pub fn swiglu_forward<R: Real>(out: &mut [R], gate: &[R], up: &[R], p: &SwiGlu) {
    let F = p.F as usize;
    for n in 0..p.N as usize {
        let (out, gate, up) =
            (&mut out[n * F..][..F], &gate[n * p.ld_gate as usize..][..F], &up[n * p.ld_up as usize..][..F]);
        for f in 0..F {
            out[f] = gate[f] * gating(gate[f], p).0 * up[f];
        }
    }
}

pub fn swiglu_backward<R: Real>(dout: &mut [R], gate: &mut [R], up: &mut [R], p: &SwiGlu) {
    let F = p.F as usize;
    for n in 0..p.N as usize {
        let (dout, gate) = (&mut dout[n * F..][..F], &mut gate[n * p.ld_gate as usize..][..F]);
        let up = &mut up[n * p.ld_up as usize..][..F];
        for f in 0..F {
            let (dy, g, u) = (dout[f], gate[f], up[f]);
            let (s, bend) = gating(g, p);
            dout[f] = g * s * u;
            gate[f] = dy * u * s * (R::from(1.0) + g * (R::from(1.0) - s) * bend);
            up[f] = dy * g * s;
        }
    }
}

/// s, and the derivative of what is inside its σ.
fn gating<R: Real>(x: R, p: &SwiGlu) -> (R, R) {
    let (slope, bow) = (R::from(p.slope), R::from(p.cubic) * x * x);
    let s = R::from(1.0) / (R::from(1.0) + (-x * (slope + bow)).exp());
    (s, slope + R::from(3.0) * bow)
}
