//! The next token of each row of logits z, drawn by its row's own settings and random words: no row depends on another.
//!
//! T = 0   token = argmax z, the first of equals
//! T > 0   token = argmax over the kept i of z[i]/T + g[i],  g[i] = −ln(−ln u(i)): a draw from softmax(z/T) over the kept
//!         (Gumbel-max; Maddison et al. 2014, arXiv:1411.0030). Kept is what passes all of, with w = exp((z − max z)/T):
//!         top_k   z >= the k-th greatest z
//!         top_p   z >= t, the greatest t with Σ_(z >= t) w >= top_p·Σ w, of those that top_k keeps
//!         min_p   w >= min_p
//! logp = z[token] − ln Σ exp z
//! u(i) comes from pcg3d of (i, two words of the row): Jarzynski & Olano 2020, jcgt.org/published/0009/03/02.
use super::{params, softcap, sum};
use crate::dtype::Real;

params! { SampleToken { N: u32, V: u32, ld_logits: u32 } }
params! { SampleAdjust { N: u32, V: u32, P: u32, ld_logits: u32 } }
params! { SampleSoftcap { N: u32, V: u32, ld_logits: u32, softcap: f32 } }

/// In (0, 1), 24 bits.
fn uniform<R: Real>(i: u32, words: &[u32]) -> R {
    let [mut x, mut y, mut z] = [i, words[0], words[1]].map(|v| v.wrapping_mul(1664525).wrapping_add(1013904223));
    for round in 0..2 {
        x = x.wrapping_add(y.wrapping_mul(z));
        y = y.wrapping_add(z.wrapping_mul(x));
        z = z.wrapping_add(x.wrapping_mul(y));
        if round == 0 {
            [x, y, z] = [x, y, z].map(|v| v ^ v >> 16);
        }
    }
    R::from(((x >> 8) as f32 + 0.5) / (1u32 << 24) as f32)
}

fn greatest<R: Real>(values: impl Iterator<Item = R>) -> (usize, R) {
    let first = (0, R::from(f32::NEG_INFINITY));
    values.enumerate().fold(first, |best, (i, x)| if x > best.1 { (i, x) } else { best })
}

/// The smallest z that top_k and top_p keep.
fn threshold<R: Real>(z: &[R], weight: impl Fn(R) -> R, top_k: usize, top_p: R) -> R {
    let mut sorted = z.to_vec();
    sorted.sort_unstable_by(|a, b| b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal));
    let lowest = sorted[if top_k > 0 { top_k.min(z.len()) } else { z.len() } - 1];
    if top_p >= R::from(1.0) {
        return lowest;
    }
    let kept: Vec<R> = sorted.into_iter().take_while(|z| *z >= lowest).collect();
    let want = top_p * sum(kept.iter().map(|z| weight(*z)));
    let mut mass = R::from(0.0);
    let enough = |z: &R| {
        mass += weight(*z);
        mass >= want
    };
    kept.iter().copied().find(enough).unwrap_or(lowest)
}

/// controls[n,:] = T, top_p, min_p; keys[n,:] = two random words, top_k (0: all).
pub fn sample_token<R: Real>(
    token: &mut [u32],
    logp: &mut [R],
    logits: &[R],
    controls: &[R],
    keys: &[u32],
    p: &SampleToken,
) {
    for n in 0..p.N as usize {
        let z = &logits[n * p.ld_logits as usize..][..p.V as usize];
        let ([T, top_p, min_p], keys) = ([0, 1, 2].map(|i| controls[3 * n + i]), &keys[3 * n..][..3]);
        let (likeliest, max) = greatest(z.iter().copied());
        let mut chosen = likeliest;
        if T > R::from(0.0) {
            let weight = |z: R| ((z - max) / T).exp();
            let all = keys[2] == 0 && top_p >= R::from(1.0);
            let lowest = if all { R::from(f32::NEG_INFINITY) } else { threshold(z, weight, keys[2] as usize, top_p) };
            let race = |(i, z): (usize, &R)| {
                let kept = *z >= lowest && weight(*z) >= min_p;
                let u: R = uniform(i as u32, keys);
                if kept { *z / T - (-u.ln()).ln() } else { R::from(f32::NEG_INFINITY) }
            };
            chosen = greatest(z.iter().enumerate().map(race)).0;
        }
        token[n] = chosen as u32;
        logp[n] = z[chosen] - max - sum(z.iter().map(|z| (*z - max).exp())).ln();
    }
}

/// Of each entry e with (n, v) = at[e,:], (factor, more) = change[e,:]: logits[n,v] = z·factor where z < 0, else z/factor; plus
/// more. No two entries have the same place. Repetition penalty: Keskar et al. 2019, arXiv:1909.05858.
pub fn sample_adjust<R: Real>(logits: &mut [R], at: &[u32], change: &[R], p: &SampleAdjust) {
    for (at, change) in at.chunks_exact(2).zip(change.chunks_exact(2)) {
        let z = &mut logits[(at[0] * p.ld_logits + at[1]) as usize];
        *z = if *z < R::from(0.0) { *z * change[0] } else { *z / change[0] } + change[1];
    }
}

pub fn sample_softcap<R: Real>(logits: &mut [R], p: &SampleSoftcap) {
    for row in logits.chunks_exact_mut(p.ld_logits as usize) {
        row[..p.V as usize].iter_mut().for_each(|z| *z = softcap(*z, p.softcap));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(z: &[f32], controls: [f32; 3], keys: [u32; 3]) -> u32 {
        let (mut token, mut logp) = ([0], [0.0]);
        let p = SampleToken { N: 1, V: z.len() as u32, ld_logits: z.len() as u32 };
        sample_token(&mut token, &mut logp, z, &controls, &keys, &p);
        token[0]
    }

    #[test]
    fn draws_follow_the_distribution() {
        let z = [0.0, 2.0f32.ln(), f32::NEG_INFINITY, 5.0f32.ln()];
        let n = 16000;
        let mut counts = [0; 4];
        (0..n).for_each(|i| counts[draw(&z, [1.0, 1.0, 0.0], [i * 7919, i, 0]) as usize] += 1);
        let shares = counts.map(|c| c as f64 / n as f64);
        let want = [0.125, 0.25, 0.0, 0.625];
        assert!(shares.iter().zip(want).all(|(got, want)| (got - want).abs() < 0.015), "{shares:?}");
    }

    #[test]
    fn what_is_kept() {
        let z = [1.0f32, 4.0, 3.0, 2.0, 4.0];
        let drawn = |controls, top_k| -> std::collections::BTreeSet<u32> {
            (0..2000).map(|i| draw(&z, controls, [i, 5, top_k])).collect()
        };
        assert_eq!(drawn([0.0, 1.0, 0.0], 0), [1].into());
        assert_eq!(drawn([9.0, 1.0, 0.0], 0), [0, 1, 2, 3, 4].into());
        // equals of the k-th are kept
        assert_eq!(drawn([9.0, 1.0, 0.0], 1), [1, 4].into());
        assert_eq!(drawn([9.0, 1.0, 0.0], 3), [1, 2, 4].into());
        // weights 0.05, 1, 0.37, 0.14, 1 at T = 1
        assert_eq!(drawn([1.0, 0.8, 0.0], 0), [1, 2, 4].into());
        assert_eq!(drawn([1.0, 0.3, 0.0], 0), [1, 4].into());
        assert_eq!(drawn([1.0, 1.0, 0.2], 0), [1, 2, 4].into());
        assert_eq!(drawn([1.0, 0.9, 0.0], 3), [1, 2, 4].into());
    }
}
