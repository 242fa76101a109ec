//! Rows of bytes by id: what an embedding does with a table that is packed.
//!
//! out[n,:] = weight[ids[n],:]
use super::params;
use crate::dtype::Real;

params! { Rows { N: u32, V: u32, /** bytes of a row */ C: u32 } }

pub fn rows_gather<R: Real>(out: &mut [u8], ids: &[u32], weight: &[u8], p: &Rows) {
    let C = p.C as usize;
    for n in 0..p.N as usize {
        let id = ids[n] as usize;
        out[n * C..][..C].copy_from_slice(&weight[id * C..][..C]);
    }
}
