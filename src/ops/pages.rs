//! Rows into the slots of a pool: pool[slots[n],:] = inp[n,:]. The keys and values of new tokens go to their pages so; the
//! other slots stay as they are. Where two rows have one slot, either may be there afterwards.
use super::params;
use crate::dtype::Real;

params! {
    Pages { N: u32, T: u32, C: u32 }
}

pub fn pages_write<R: Real>(pool: &mut [R], inp: &[R], slots: &[u32], p: &Pages) {
    let C = p.C as usize;
    for (row, slot) in inp.chunks_exact(C).zip(slots) {
        pool[*slot as usize * C..][..C].copy_from_slice(row);
    }
}
