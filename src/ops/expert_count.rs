//! How often each expert of a mixture is chosen.
//!
//! count[e] += Σ_N mask[n]·#{a: experts[n,a] = e}
use super::{params, sum};
use crate::dtype::Real;

params! { ExpertCount { N: u32, E: u32, S: u32 } }

pub fn expert_count<R: Real>(count: &mut [R], experts: &[u32], mask: &[R], p: &ExpertCount) {
    let (E, S) = (p.E as usize, p.S as usize);
    for e in 0..E {
        let given = |i: &usize| experts[*i] as usize == e;
        count[e] += sum((0..p.N as usize * S).filter(given).map(|i| mask[i / S]));
    }
}
