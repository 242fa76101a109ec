//! Embedding: a row of the table per token.
//!
//! forward   out[n,:] = scale·weight[ids[n],:]
//! backward  dweight[v,:] += scale·Σ_{n: ids[n] = v} dout[n,:]
//! `order` lists the tokens sorted by id, stable: a run of equal ids is summed by one thread, without atomics.
use super::{params, sum};
use crate::dtype::Real;

params! { Embedding { N: u32, V: u32, C: u32, scale: f32 } }

pub fn embedding_forward<R: Real>(out: &mut [R], ids: &[u32], weight: &[R], p: &Embedding) {
    let C = p.C as usize;
    for n in 0..p.N as usize {
        let id = ids[n] as usize;
        for c in 0..C {
            out[n * C + c] = weight[id * C + c] * R::from(p.scale);
        }
    }
}

pub fn embedding_backward<R: Real>(dweight: &mut [R], dout: &[R], ids: &[u32], order: &[u32], p: &Embedding) {
    let (N, C) = (p.N as usize, p.C as usize);
    let mut first = 0;
    while first < N {
        let id = ids[order[first] as usize];
        let run = order[first..].iter().take_while(|n| ids[**n as usize] == id).count();
        for c in 0..C {
            let total = sum(order[first..][..run].iter().map(|n| dout[*n as usize * C + c]));
            dweight[id as usize * C + c] += total * R::from(p.scale);
        }
        first += run;
    }
}

/// The tokens sorted by id, stable: what [`embedding_backward`] wants as `order`.
pub fn order(ids: &[u32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|n| ids[*n as usize]);
    order
}
