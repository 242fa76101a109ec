//! SwiGLU: one projection gates another. Shazeer 2020, arXiv:2002.05202.
//!
//! forward   out = silu(gate)·up,                        silu(x) = x·s,  s = 1/(1 + e⁻ˣ)
//! backward  dgate = dout·up·s·(1 + gate·(1 − s)),       dup = dout·silu(gate)
//! In place, three buffers in and out: the down projection's weight gradient wants out again, so nothing is saved.
use super::params;
use crate::dtype::Real;

params! { SwiGlu { N: u32, F: u32, ld_gate: u32, ld_up: u32 } }

pub fn swiglu_forward<R: Real>(out: &mut [R], gate: &[R], up: &[R], p: &SwiGlu) {
    let F = p.F as usize;
    for n in 0..p.N as usize {
        let (out, gate, up) =
            (&mut out[n * F..][..F], &gate[n * p.ld_gate as usize..][..F], &up[n * p.ld_up as usize..][..F]);
        for f in 0..F {
            out[f] = gate[f] * sigmoid(gate[f]) * up[f];
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
            let s = sigmoid(g);
            dout[f] = g * s * u;
            gate[f] = dy * u * s * (R::from(1.0) + g * (R::from(1.0) - s));
            up[f] = dy * g * s;
        }
    }
}

fn sigmoid<R: Real>(x: R) -> R {
    R::from(1.0) / (R::from(1.0) + (-x).exp())
}
