//! Attention of single queries to keys and values that lie in pages of a pool. Kwon et al. 2023, arXiv:2309.06180.
//!
//! out[n] = Σ_j softmax(softcap(scale·q[n]·k[slot(j)]))·v[slot(j)],  span[n,0] <= j < span[n,1]
//! slot(j) = pages[starts[n] + j/page]·page + j%page: the pages of query n's sequence are listed from starts[n] on.
//!
//! One query of many keys keeps little of a device busy, so the keys may be cut into Z parts, of which each is a row of its own,
//! with its own span; then out = Σ_z w[z]·part[z], w = softmax(part_lse). Dao et al. 2023, Flash-Decoding.
use super::attention::{Attention, forward_row};
use super::params;
use crate::dtype::Real;

params! {
    PagedAttention { N: u32, Z: u32, T: u32, H: u32, K: u32, D: u32, P: u32, page: u32, scale: f32, softcap: f32 }
    wants |p| p.K > 0 && p.H.is_multiple_of(p.K), "the query heads H must be a multiple of the kv heads K";
    wants |p| p.D <= 256, "head sizes D up to 256 are supported";
    wants |p| p.page > 0 && p.T.is_multiple_of(p.page), "the slots T must be whole pages";
    wants |p| p.softcap >= 0.0, "softcap must be positive, or 0 for none";
    wants |p| p.Z > 0, "there is one part at least";
}
params! {
    PagedAttentionJoin { N: u32, Z: u32, H: u32, D: u32 }
    wants |p| p.D <= 256, "head sizes D up to 256 are supported";
    wants |p| p.Z > 0, "there is one part at least";
}

pub fn paged_attention_forward<R: Real>(
    out: &mut [R],
    lse: &mut [R],
    q: &[R],
    k: &[R],
    v: &[R],
    span: &[u32],
    starts: &[u32],
    pages: &[u32],
    p: &PagedAttention,
) {
    let (Z, H, K, D, page) = (p.Z as usize, p.H as usize, p.K as usize, p.D as usize, p.page);
    let one = Attention {
        N: 1,
        T: p.T,
        H: 1,
        K: 1,
        D: p.D,
        ld_q: p.D,
        ld_k: p.D,
        ld_v: p.D,
        scale: p.scale,
        softcap: p.softcap,
    };
    for n in 0..p.N as usize * Z {
        let slot = |j: u32| (pages[(starts[n / Z] + j / page) as usize] * page + j % page) as usize;
        let keys = span[2 * n]..span[2 * n + 1].max(span[2 * n]);
        for kv in 0..K {
            let head = |pool: &[R]| -> Vec<R> {
                keys.clone().flat_map(|j| pool[(slot(j) * K + kv) * D..][..D].iter().copied()).collect()
            };
            let (k, v) = (head(k), head(v));
            for h in kv * (H / K)..(kv + 1) * (H / K) {
                let (at, query) = ((n * H + h) * D, (n / Z * H + h) * D);
                lse[n * H + h] =
                    forward_row(&mut out[at..][..D], &q[query..][..D], &k, &v, &[0, keys.len() as u32], &one);
            }
        }
    }
}

pub fn paged_attention_join<R: Real>(
    out: &mut [R],
    lse: &mut [R],
    parts: &[R],
    part_lse: &[R],
    p: &PagedAttentionJoin,
) {
    let (Z, H, D) = (p.Z as usize, p.H as usize, p.D as usize);
    for n in 0..p.N as usize {
        for h in 0..H {
            let row = |z: usize| (n * Z + z) * H + h;
            let top =
                (0..Z).map(|z| part_lse[row(z)]).fold(R::from(f32::NEG_INFINITY), |m, x| if x > m { x } else { m });
            let o = &mut out[(n * H + h) * D..][..D];
            o.fill(R::from(0.0));
            let mut sum = R::from(0.0);
            // parts that see nothing weigh nothing, all together too
            for z in (0..Z).filter(|z| part_lse[row(*z)] > R::from(f32::NEG_INFINITY)) {
                let w = (part_lse[row(z)] - top).exp();
                sum += w;
                (0..D).for_each(|d| o[d] += w * parts[row(z) * D + d]);
            }
            if sum > R::from(0.0) {
                o.iter_mut().for_each(|o| *o = *o / sum);
            }
            lse[n * H + h] = top + sum.ln();
        }
    }
}
