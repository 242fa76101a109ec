//! Fill: one value everywhere.
use super::params;
use crate::dtype::Real;

params! { Fill { P: u32, value: f32 } }

pub fn fill_forward<R: Real>(out: &mut [R], p: &Fill) {
    out[..p.P as usize].fill(R::from(p.value));
}
