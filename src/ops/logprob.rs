//! Log-probability of each token's label under its logits, and the way back.
//!
//! forward   z = cap·tanh(logits/cap) (softcap 0: z = logits),  lse[n] = log Σ_V exp(z[n,:]),  logp[n] = z[n, labels[n]] − lse[n]
//! backward  dlogits[n,v] = coef[n]·(1[v = labels[n]] − exp(z[n,v] − lse[n]))·(1 − (z/cap)²),  coef = ∂L/∂logp
//! The label [`IGNORE`] counts for nothing: logp = 0, dlogits = 0. Called on chunks of tokens, so that [N, V] never exists.
use super::{params, softcap, softcap_slope, sum};
use crate::dtype::Real;

params! {
    LogProb { N: u32, V: u32, ld_logits: u32, ld_dlogits: u32, softcap: f32 }
    wants |p| p.softcap >= 0.0, "softcap must be positive, or 0 for none";
}

/// A token without a label.
pub const IGNORE: u32 = u32::MAX;

pub fn logprob_forward<R: Real>(logp: &mut [R], lse: &mut [R], logits: &[R], labels: &[u32], p: &LogProb) {
    let V = p.V as usize;
    for n in 0..p.N as usize {
        let z = &logits[n * p.ld_logits as usize..][..V];
        let z = |v: usize| softcap(z[v], p.softcap);
        let max = (0..V).map(z).fold(R::from(f32::NEG_INFINITY), |m, z| if z > m { z } else { m });
        lse[n] = max + sum((0..V).map(|v| (z(v) - max).exp())).ln();
        logp[n] = if labels[n] == IGNORE { R::from(0.0) } else { z(labels[n] as usize) - lse[n] };
    }
}

pub fn logprob_backward<R: Real>(dlogits: &mut [R], coef: &[R], lse: &[R], logits: &[R], labels: &[u32], p: &LogProb) {
    let V = p.V as usize;
    for n in 0..p.N as usize {
        let z = &logits[n * p.ld_logits as usize..][..V];
        let dz = &mut dlogits[n * p.ld_dlogits as usize..][..V];
        for v in 0..V {
            let hit = R::from((labels[n] == v as u32) as u32 as f32);
            let z = softcap(z[v], p.softcap);
            let d = coef[n] * (hit - (z - lse[n]).exp()) * softcap_slope(z, p.softcap);
            dz[v] = if labels[n] == IGNORE { R::from(0.0) } else { d };
        }
    }
}
