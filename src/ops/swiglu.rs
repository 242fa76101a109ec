//! SwiGLU and GeGLU: one projection gates another. Shazeer 2020, arXiv:2002.05202.
//!
//! forward   out = act(gate)·up,             act(x) = x·s(x), one of those of `activation.rs`
//! backward  dgate = dout·up·act′(gate),     dup = dout·act(gate)
//! In place, three buffers in and out: the down projection's weight gradient wants out again, so nothing is saved.
use super::activation::{RELU2, gating};
use super::params;
use crate::dtype::Real;

params! {
    SwiGlu { N: u32, F: u32, ld_gate: u32, ld_up: u32, act: u32, slope: f32, cubic: f32 }
    wants |p| p.act <= RELU2, "`act` is one of four activations";
}

pub fn swiglu_forward<R: Real>(out: &mut [R], gate: &[R], up: &[R], p: &SwiGlu) {
    let F = p.F as usize;
    for n in 0..p.N as usize {
        let (out, gate, up) =
            (&mut out[n * F..][..F], &gate[n * p.ld_gate as usize..][..F], &up[n * p.ld_up as usize..][..F]);
        for f in 0..F {
            out[f] = gate[f] * gating(gate[f], p.act, p.slope, p.cubic).0 * up[f];
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
            let (s, slope) = gating(g, p.act, p.slope, p.cubic);
            dout[f] = g * s * u;
            gate[f] = dy * u * slope;
            up[f] = dy * g * s;
        }
    }
}
