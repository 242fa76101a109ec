//! Attention over packed tokens with grouped heads; scores are never materialised. Dao et al. 2022, arXiv:2205.14135.
//!
//! forward   s[n,j] = softcap(scale·q[n]·k[j]),  out[n] = Σ_j softmax(s[n])[j]·v[j],  lse[n] = log Σ_j exp(s[n,j])
//! backward  p = exp(s − lse),  dot[n] = dout[n]·out[n],  ds = p·(dout·v − dot)·(1 − (s/cap)²)
//!           dq[n] = scale·Σ_j ds·k[j],  dk[j] = scale·Σ_n ds·q[n],  dv[j] = Σ_n p·dout[n]
//! Who sees whom is data: query n sees the keys `span[n] = [first, end)`, key j is seen by the queries `reach[j] = [first,
//! end)`. Causal, variable-length, windowed and cached attention differ only in these two tables, which must agree:
//! j in span[n] exactly when n in reach[j]. Query head h reads kv head h·K/H.
use super::{params, softcap, softcap_slope};
use crate::dtype::Real;

params! {
    Attention { N: u32, T: u32, H: u32, K: u32, D: u32, ld_q: u32, ld_k: u32, ld_v: u32, scale: f32, softcap: f32 }
    wants |p| p.K > 0 && p.H.is_multiple_of(p.K), "the query heads H must be a multiple of the kv heads K";
    wants |p| p.D <= 256, "head sizes D up to 256 are supported";
    wants |p| p.softcap >= 0.0, "softcap must be positive, or 0 for none";
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    a.iter().zip(b).map(|(a, b)| *a * *b).sum()
}

/// For one (query, head) the offsets of q and out, and of k and v's head.
fn heads(p: &Attention, n: usize, h: usize) -> (usize, usize, usize) {
    let D = p.D as usize;
    let kv = h / (p.H / p.K) as usize;
    (n * p.ld_q as usize + h * D, (n * p.H as usize + h) * D, kv * D)
}

fn score<R: Real>(q: &[R], k: &[R], p: &Attention) -> R {
    softcap(R::from(p.scale) * dot(q, k), p.softcap)
}

/// One query's output and log-sum-exp: two passes over its keys. A query that sees nothing gives 0 and −inf.
pub(crate) fn forward_row<R: Real>(out: &mut [R], q: &[R], k: &[R], v: &[R], keys: &[u32], p: &Attention) -> R {
    let (D, ld_k, ld_v) = (p.D as usize, p.ld_k as usize, p.ld_v as usize);
    let keys = keys[0] as usize..keys[1] as usize;
    let scores: Vec<R> = keys.clone().map(|j| score(q, &k[j * ld_k..][..D], p)).collect();
    let max = scores.iter().fold(R::from(f32::NEG_INFINITY), |m, s| if *s > m { *s } else { m });
    out.fill(R::from(0.0));
    let mut sum = R::from(0.0);
    for (j, s) in keys.zip(scores) {
        let e = (s - max).exp();
        sum += e;
        let v = &v[j * ld_v..][..D];
        (0..D).for_each(|d| out[d] += e * v[d]);
    }
    if sum > R::from(0.0) {
        out.iter_mut().for_each(|o| *o = *o / sum);
    }
    max + sum.ln()
}

pub fn attention_forward<R: Real>(
    out: &mut [R],
    lse: &mut [R],
    q: &[R],
    k: &[R],
    v: &[R],
    span: &[u32],
    p: &Attention,
) {
    let D = p.D as usize;
    for n in 0..p.N as usize {
        for h in 0..p.H as usize {
            let (at_q, at_out, kv) = heads(p, n, h);
            let o = &mut out[at_out..][..D];
            lse[n * p.H as usize + h] = forward_row(o, &q[at_q..][..D], &k[kv..], &v[kv..], &span[2 * n..][..2], p);
        }
    }
}

pub fn attention_backward<R: Real>(
    dq: &mut [R],
    dk: &mut [R],
    dv: &mut [R],
    dots: &mut [R],
    dout: &[R],
    out: &[R],
    lse: &[R],
    q: &[R],
    k: &[R],
    v: &[R],
    span: &[u32],
    _reach: &[u32],
    p: &Attention,
) {
    let (D, ld_k, ld_v, scale) = (p.D as usize, p.ld_k as usize, p.ld_v as usize, R::from(p.scale));
    let zero = R::from(0.0);
    for n in 0..p.N as usize {
        dq[n * p.ld_q as usize..][..p.H as usize * D].fill(zero);
    }
    for j in 0..p.T as usize {
        dk[j * ld_k..][..p.K as usize * D].fill(zero);
        dv[j * ld_v..][..p.K as usize * D].fill(zero);
    }
    for n in 0..p.N as usize {
        for h in 0..p.H as usize {
            let (at_q, at_out, kv) = heads(p, n, h);
            let (dy, qh) = (&dout[at_out..][..D], &q[at_q..][..D]);
            let d_dot = dot(dy, &out[at_out..][..D]);
            dots[n * p.H as usize + h] = d_dot;
            for j in span[2 * n] as usize..span[2 * n + 1] as usize {
                let (at_k, at_v) = (j * ld_k + kv, j * ld_v + kv);
                let s = score(qh, &k[at_k..][..D], p);
                let prob = (s - lse[n * p.H as usize + h]).exp();
                let ds = scale * softcap_slope(s, p.softcap) * prob * (dot(dy, &v[at_v..][..D]) - d_dot);
                for d in 0..D {
                    dq[at_q + d] += ds * k[at_k + d];
                    dk[at_k + d] += ds * qh[d];
                    dv[at_v + d] += prob * dy[d];
                }
            }
        }
    }
}
