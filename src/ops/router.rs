//! Top-k routing of a mixture of experts. Jiang et al. 2024, arXiv:2401.04088 (Mixtral).
//!
//! forward   experts[n,:] = the S greatest of logits[n,:], greatest first, of equal ones the lowest index first
//!           weights[n,a] = p[experts[n,a]],  p = softmax(logits[n,:]);  with `norm` divided by their sum over a
//! backward  dlogits[e] = p[e]·(dweights of e, 0 if it was not chosen, − Σ_S weights·dweights)
//! With `norm`, p is the softmax over the chosen alone, and 0 elsewhere: nothing else of logits matters.
use super::{params, sum};
use crate::dtype::Real;

params! {
    Router { N: u32, E: u32, S: u32, /// 1: weights of a token sum to 1.
    norm: u32 }
    wants |p| 0 < p.S && p.S <= p.E, "a token goes to at least one expert and to each at most once";
    wants |p| p.norm <= 1, "norm is 0 or 1";
}

/// The greatest value after `last` = (value, index) in the order of the choice. `None` where NaNs leave too few.
fn next<R: Real>(logits: &[R], last: Option<(R, usize)>) -> Option<(R, usize)> {
    let mut best: Option<(R, usize)> = None;
    for (e, x) in logits.iter().enumerate() {
        let after = last.is_none_or(|(y, i)| *x < y || (*x == y && e > i));
        // a NaN compares with nothing
        if after && x.partial_cmp(x).is_some() && best.is_none_or(|(y, _)| *x > y) {
            best = Some((*x, e));
        }
    }
    best
}

pub fn router_forward<R: Real>(weights: &mut [R], experts: &mut [u32], logits: &[R], p: &Router) {
    let (E, S) = (p.E as usize, p.S as usize);
    for n in 0..p.N as usize {
        let logits = &logits[n * E..][..E];
        let (weights, experts) = (&mut weights[n * S..][..S], &mut experts[n * S..][..S]);
        let mut last = None;
        for a in 0..S {
            last = next(logits, last);
            // with NaNs the weights are NaN; the experts stay experts
            experts[a] = last.map_or(a, |(_, e)| e) as u32;
        }
        let max = logits[experts[0] as usize];
        let chosen = |a: usize| (logits[experts[a] as usize] - max).exp();
        let total = if p.norm == 1 { sum((0..S).map(chosen)) } else { sum(logits.iter().map(|x| (*x - max).exp())) };
        (0..S).for_each(|a| weights[a] = chosen(a) / total);
    }
}

pub fn router_backward<R: Real>(
    dlogits: &mut [R],
    dweights: &[R],
    weights: &[R],
    experts: &[u32],
    logits: &[R],
    p: &Router,
) {
    let (E, S) = (p.E as usize, p.S as usize);
    for n in 0..p.N as usize {
        let (logits, dlogits) = (&logits[n * E..][..E], &mut dlogits[n * E..][..E]);
        let (w, dw, experts) = (&weights[n * S..][..S], &dweights[n * S..][..S], &experts[n * S..][..S]);
        let dot = sum((0..S).map(|a| w[a] * dw[a]));
        let top = logits[experts[0] as usize];
        for e in 0..E {
            // p[e] from the first choice's: no sum over the experts is needed again
            let p_e = if p.norm == 1 { R::from(0.0) } else { w[0] * (logits[e] - top).exp() };
            dlogits[e] = -(p_e * dot);
        }
        for a in 0..S {
            dlogits[experts[a] as usize] = w[a] * (dw[a] - dot);
        }
    }
}
