//! The loss that keeps a mixture's router from favouring few experts. Fedus et al. 2021, arXiv:2101.03961, as transformers'
//! `load_balancing_loss_func` has it:
//!
//! loss = E·Σ_E count·prob / rows²,  rows = layers·Σ_N mask
//! count[e]   = Σ over layers and n of mask[n]·(slots of n given to e), of `expert_count`: it has no gradient
//! prob[e]    = Σ over layers and n of mask[n]·p[n,e],  p = softmax(logits[n,:])
//! backward     dlogits[n,e] += scale·mask[n]·p[n,e]·(dprob[e] − Σ_E p·dprob),  dprob = count, scale = E/rows²
use super::{params, sum};
use crate::dtype::Real;

params! { Balance { N: u32, E: u32 } }
params! { BalanceBackward { N: u32, E: u32, scale: f32 } }

/// log Σ exp of a token's logits.
fn log_sum<R: Real>(logits: &[R]) -> R {
    let top = logits.iter().fold(logits[0], |m, x| if *x > m { *x } else { m });
    top + sum(logits.iter().map(|x| (*x - top).exp())).ln()
}

pub fn balance_forward<R: Real>(prob: &mut [R], lse: &mut [R], logits: &[R], mask: &[R], p: &Balance) {
    let (N, E) = (p.N as usize, p.E as usize);
    for n in 0..N {
        lse[n] = log_sum(&logits[n * E..][..E]);
    }
    for e in 0..E {
        prob[e] += sum((0..N).map(|n| mask[n] * (logits[n * E + e] - lse[n]).exp()));
    }
}

pub fn balance_backward<R: Real>(dlogits: &mut [R], dprob: &[R], logits: &[R], mask: &[R], p: &BalanceBackward) {
    let E = p.E as usize;
    for n in 0..p.N as usize {
        let (logits, dlogits) = (&logits[n * E..][..E], &mut dlogits[n * E..][..E]);
        let lse = log_sum(logits);
        let dot = sum((0..E).map(|e| (logits[e] - lse).exp() * dprob[e]));
        for e in 0..E {
            dlogits[e] += R::from(p.scale) * mask[n] * (logits[e] - lse).exp() * (dprob[e] - dot);
        }
    }
}
