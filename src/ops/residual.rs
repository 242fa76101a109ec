//! Residual connection: what a branch computed is added to what went in.
//!
//! forward   out = a + scale·b
//! backward  da += dout, db += scale·dout: one call per branch that keeps a gradient of its own, a's with scale 1
use super::params;
use crate::dtype::Real;

params! { Residual { P: u32, scale: f32 } }

pub fn residual_forward<R: Real>(out: &mut [R], a: &[R], b: &[R], p: &Residual) {
    for i in 0..p.P as usize {
        out[i] = a[i] + R::from(p.scale) * b[i];
    }
}

pub fn residual_backward<R: Real>(dinp: &mut [R], dout: &[R], p: &Residual) {
    for i in 0..p.P as usize {
        dinp[i] += R::from(p.scale) * dout[i];
    }
}
