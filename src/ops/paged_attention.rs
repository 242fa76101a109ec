//! Attention of single queries to keys and values that lie in pages of a pool. Kwon et al. 2023, arXiv:2309.06180.
//!
//! out[n] = Σ_j softmax(softcap(scale·q[n]·k[slot(j)]))·v[slot(j)],  span[n,0] <= j < span[n,1]
//! slot(j) = pages[starts[n] + j/page]·page + j%page: the pages of query n's sequence are listed from starts[n] on.
use super::attention::{Attention, forward_row};
use super::params;
use crate::dtype::Real;

params! {
    PagedAttention { N: u32, T: u32, H: u32, K: u32, D: u32, P: u32, page: u32, scale: f32, softcap: f32 }
    wants |p| p.K > 0 && p.H.is_multiple_of(p.K), "the query heads H must be a multiple of the kv heads K";
    wants |p| p.D <= 256, "head sizes D up to 256 are supported";
    wants |p| p.page > 0 && p.T.is_multiple_of(p.page), "the slots T must be whole pages";
    wants |p| p.softcap >= 0.0, "softcap must be positive, or 0 for none";
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
    let (H, K, D, page) = (p.H as usize, p.K as usize, p.D as usize, p.page);
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
    for n in 0..p.N as usize {
        let slot = |j: u32| (pages[(starts[n] + j / page) as usize] * page + j % page) as usize;
        let keys = span[2 * n]..span[2 * n + 1].max(span[2 * n]);
        for kv in 0..K {
            let head = |pool: &[R]| -> Vec<R> {
                keys.clone().flat_map(|j| pool[(slot(j) * K + kv) * D..][..D].iter().copied()).collect()
            };
            let (k, v) = (head(k), head(v));
            for h in kv * (H / K)..(kv + 1) * (H / K) {
                let at = (n * H + h) * D;
                lse[n * H + h] = forward_row(&mut out[at..][..D], &q[at..][..D], &k, &v, &[0, keys.len() as u32], &one);
            }
        }
    }
}
