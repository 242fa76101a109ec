//! Cast: the same values in another storage type, rounded to nearest even.
use super::params;
use crate::dtype::Real;

params! { Cast { P: u32 } }

pub fn cast_forward<R: Real>(out: &mut [R], inp: &[R], p: &Cast) {
    out[..p.P as usize].copy_from_slice(&inp[..p.P as usize]);
}
