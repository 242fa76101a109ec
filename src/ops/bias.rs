//! Bias: one vector added to every row.
//!
//! forward   out[n,o] += bias[o]
//! backward  dbias[o] += Σ_N dout[n,o]; the gradient of out passes through
use super::{params, sum};
use crate::dtype::Real;

params! { Bias { N: u32, O: u32, ld_out: u32 } }
params! { BiasBackward { N: u32, O: u32, ld_dout: u32 } }

pub fn bias_forward<R: Real>(out: &mut [R], bias: &[R], p: &Bias) {
    for n in 0..p.N as usize {
        for o in 0..p.O as usize {
            out[n * p.ld_out as usize + o] += bias[o];
        }
    }
}

pub fn bias_backward<R: Real>(dbias: &mut [R], dout: &[R], p: &BiasBackward) {
    for o in 0..p.O as usize {
        dbias[o] += sum((0..p.N as usize).map(|n| dout[n * p.ld_dout as usize + o]));
    }
}
