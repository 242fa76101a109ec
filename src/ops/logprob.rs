//! Log-probability of each token's label under its logits, and the way back.
//!
//! forward   lse[n] = log Σ_V exp(logits[n,:]),  logp[n] = logits[n, labels[n]] − lse[n]
//! backward  dlogits[n,v] = coef[n]·(1[v = labels[n]] − exp(logits[n,v] − lse[n])),  coef = ∂L/∂logp
//! The label [`IGNORE`] counts for nothing: logp = 0, dlogits = 0. Called on chunks of tokens, so that [N, V] never exists.
use super::{params, sum};
use crate::dtype::Real;

params! { LogProb { N: u32, V: u32, ld_logits: u32, ld_dlogits: u32 } }

/// A token without a label.
pub const IGNORE: u32 = u32::MAX;

pub fn logprob_forward<R: Real>(logp: &mut [R], lse: &mut [R], logits: &[R], labels: &[u32], p: &LogProb) {
    let V = p.V as usize;
    for n in 0..p.N as usize {
        let z = &logits[n * p.ld_logits as usize..][..V];
        let max = z.iter().fold(R::from(f32::NEG_INFINITY), |m, z| if *z > m { *z } else { m });
        lse[n] = max + sum(z.iter().map(|z| (*z - max).exp())).ln();
        logp[n] = if labels[n] == IGNORE { R::from(0.0) } else { z[labels[n] as usize] - lse[n] };
    }
}

pub fn logprob_backward<R: Real>(dlogits: &mut [R], coef: &[R], lse: &[R], logits: &[R], labels: &[u32], p: &LogProb) {
    let V = p.V as usize;
    for n in 0..p.N as usize {
        let z = &logits[n * p.ld_logits as usize..][..V];
        let dz = &mut dlogits[n * p.ld_dlogits as usize..][..V];
        for v in 0..V {
            let hit = R::from((labels[n] == v as u32) as u32 as f32);
            dz[v] = if labels[n] == IGNORE { R::from(0.0) } else { coef[n] * (hit - (z[v] - lse[n]).exp()) };
        }
    }
}
