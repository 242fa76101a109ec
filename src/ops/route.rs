//! From tokens to their experts and back. A slot n·S + a is token n's a-th expert; a place m is a slot's row among all rows
//! sorted by expert.
//!
//! index     rows[m] = the slot at place m, places[rows[m]] = m;  expert e has the places offsets[e] <= m < offsets[e+1]
//! gather    out[places[n,a],:] = inp[n,:]
//! backward  dinp[n,:] += Σ_S dout[places[n,a],:], in the order of the slots: no atomics, the same bits each time
use super::params;
use crate::dtype::Real;

params! { RouteIndex { N: u32, E: u32, S: u32 } }
params! { RouteGather { N: u32, S: u32, C: u32 } }

/// Integers only; generic like every reference.
pub fn route_index<R: Real>(
    rows: &mut [u32],
    places: &mut [u32],
    offsets: &mut [u32],
    experts: &[u32],
    p: &RouteIndex,
) {
    let M = (p.N * p.S) as usize;
    let mut m = 0;
    for e in 0..p.E {
        offsets[e as usize] = m as u32;
        for i in (0..M).filter(|i| experts[*i] == e) {
            (rows[m], places[i]) = (i as u32, m as u32);
            m += 1;
        }
    }
    offsets[p.E as usize] = m as u32;
}

pub fn route_gather_forward<R: Real>(out: &mut [R], inp: &[R], places: &[u32], p: &RouteGather) {
    let (S, C) = (p.S as usize, p.C as usize);
    for i in 0..p.N as usize * S {
        out[places[i] as usize * C..][..C].copy_from_slice(&inp[i / S * C..][..C]);
    }
}

pub fn route_gather_backward<R: Real>(dinp: &mut [R], dout: &[R], places: &[u32], p: &RouteGather) {
    let (S, C) = (p.S as usize, p.C as usize);
    for n in 0..p.N as usize {
        let places = &places[n * S..][..S];
        for c in 0..C {
            dinp[n * C + c] += places.iter().map(|m| dout[*m as usize * C + c]).sum();
        }
    }
}
