//! A few rows times a packed weight, which stays packed: out[n,o] = Σ_c inp[n,c]·W[first + o,c]. Decoding reads nothing but the
//! packed bytes, so their number over the memory's speed is how long it takes.
//!
//! Value i = (first + o)·C + c of the weight is what `nf4.rs` and `int8.rs` say: of a weight with P values in all, O rows are
//! multiplied, those of one projection of a fused module.
use super::{dyn8, nf4, params};
use crate::dtype::Real;

params! {
    Thin { N: u32, O: u32, C: u32, P: u32, first: u32 }
    wants |p| (p.first as u64 + p.O as u64) * p.C as u64 <= p.P as u64, "the rows from `first` on lie within the weight";
    wants |p| p.C > 0 && p.P.is_multiple_of(p.C), "the weight's P values are rows of C";
}
params! {
    ThinDouble { N: u32, O: u32, C: u32, P: u32, first: u32, offset: f32 }
    wants |p| (p.first as u64 + p.O as u64) * p.C as u64 <= p.P as u64, "the rows from `first` on lie within the weight";
    wants |p| p.C > 0 && p.P.is_multiple_of(p.C), "the weight's P values are rows of C";
}

/// out[n,o] from value(i) of the weight; a row is unpacked once for all n.
fn product<R: Real>(out: &mut [R], inp: &[R], [N, O, C, first]: [u32; 4], value: impl Fn(usize) -> R) {
    let [N, O, C, first] = [N, O, C, first].map(|x| x as usize);
    for o in 0..O {
        let row: Vec<R> = (0..C).map(|c| value((first + o) * C + c)).collect();
        for n in 0..N {
            out[n * O + o] = inp[n * C..][..C].iter().zip(&row).map(|(x, w)| *x * *w).sum();
        }
    }
}

fn level<R: Real>(codes: &[u8], i: usize) -> R {
    let byte = codes[i / 2];
    R::from(nf4::LEVELS[if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 } as usize])
}

pub fn thin_nf4<R: Real>(out: &mut [R], inp: &[R], codes: &[u8], absmax: &[R], p: &Thin) {
    product(out, inp, [p.N, p.O, p.C, p.first], |i| level::<R>(codes, i) * absmax[i / nf4::BLOCK]);
}

pub fn thin_nf4_double<R: Real>(
    out: &mut [R],
    inp: &[R],
    codes: &[u8],
    qabsmax: &[u8],
    nested: &[R],
    map: &[R],
    p: &ThinDouble,
) {
    product(out, inp, [p.N, p.O, p.C, p.first], |i| {
        let b = i / nf4::BLOCK;
        level::<R>(codes, i) * (map[qabsmax[b] as usize] * nested[b / dyn8::BLOCK] + R::from(p.offset))
    });
}

pub fn thin_int8<R: Real>(out: &mut [R], inp: &[R], codes: &[u8], scb: &[R], p: &Thin) {
    let C = p.C as usize;
    let value = |i: usize| R::from(codes[i] as i8 as f32) * scb[i / C] / R::from(127.0);
    product(out, inp, [p.N, p.O, p.C, p.first], value);
}
