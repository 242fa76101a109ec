//! Top-k routing by sigmoids within the best groups of experts. DeepSeek-AI 2024, arXiv:2412.19437, section 2.1.2.
//!
//! forward   s = σ(logits[n,:]),  c = s + bias (which only chooses);  a group is worth the sum of its two greatest c, and the
//!           `kept` worthiest of `groups` stay;  experts[n,:] = the S greatest c among those, greatest first, of equal ones the
//!           lowest index first;  weights[n,a] = scale·s[experts[n,a]], with `norm` divided by Σ_S s + 1e-20
//! backward  dlogits = ds·s·(1 − s) for the chosen, 0 for others;  ds = scale·dweights, with `norm` (scale·dweights − Σ_S
//!           weights·dweights)/(Σ_S s + 1e-20)
//! A NaN is chosen only where there is nothing else, and shows in the weights.
use super::{params, sum};
use crate::dtype::Real;

params! {
    GroupRouter { N: u32, E: u32, S: u32, groups: u32, kept: u32, /// 1: weights of a token are divided by their sum.
    norm: u32, scale: f32 }
    wants |p| p.groups > 0 && p.E.is_multiple_of(p.groups), "the experts E must divide among the groups";
    wants |p| p.groups <= 256, "up to 256 groups are supported";
    wants |p| 0 < p.kept && p.kept <= p.groups, "at least one group is kept, and at most all";
    wants |p| 0 < p.S && p.S <= p.kept * (p.E / p.groups), "a token goes to at least one expert of the kept groups and to each at most once";
    wants |p| p.norm <= 1, "norm is 0 or 1";
}

fn sigmoid<R: Real>(x: R) -> R {
    R::from(1.0) / (R::from(1.0) + (-x).exp())
}

fn is_number<R: Real>(x: R) -> bool {
    x.partial_cmp(&x).is_some()
}

/// Indices of the numbers among `values`, the greatest first, of equal ones the lowest index first.
fn falling<R: Real>(values: &[R]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).filter(|i| is_number(values[*i])).collect();
    order.sort_by(|i, j| values[*j].partial_cmp(&values[*i]).expect("numbers"));
    order
}

/// The sum of the two greatest; −∞ where there is no number.
fn worth<R: Real>(choice: &[R]) -> R {
    match falling(choice)[..] {
        [first, second, ..] => choice[first] + choice[second],
        [only] => choice[only],
        [] => R::from(f32::NEG_INFINITY),
    }
}

pub fn group_router_forward<R: Real>(
    weights: &mut [R],
    experts: &mut [u32],
    logits: &[R],
    bias: &[R],
    p: &GroupRouter,
) {
    let (E, S, size) = (p.E as usize, p.S as usize, (p.E / p.groups) as usize);
    for n in 0..p.N as usize {
        let logits = &logits[n * E..][..E];
        let (weights, experts) = (&mut weights[n * S..][..S], &mut experts[n * S..][..S]);
        let choice: Vec<R> = (0..E).map(|e| sigmoid(logits[e]) + bias[e]).collect();
        let worths: Vec<R> = choice.chunks(size).map(worth).collect();
        let kept = &falling(&worths)[..p.kept as usize];
        let order = falling(&choice).into_iter().filter(|e| kept.contains(&(e / size)));
        let nan = choice.iter().position(|c| !is_number(*c)).unwrap_or(0);
        let chosen = order.chain(std::iter::repeat(nan)).take(S);
        experts.iter_mut().zip(chosen).for_each(|(to, e)| *to = e as u32);
        let score = |a: usize| sigmoid(logits[experts[a] as usize]);
        let by = if p.norm == 1 { sum((0..S).map(score)) + R::from(1e-20) } else { R::from(1.0) };
        (0..S).for_each(|a| weights[a] = R::from(p.scale) * score(a) / by);
    }
}

pub fn group_router_backward<R: Real>(
    dlogits: &mut [R],
    dweights: &[R],
    weights: &[R],
    experts: &[u32],
    logits: &[R],
    p: &GroupRouter,
) {
    let (E, S, one, scale) = (p.E as usize, p.S as usize, R::from(1.0), R::from(p.scale));
    dlogits.fill(R::from(0.0));
    for n in 0..p.N as usize {
        let (logits, dlogits) = (&logits[n * E..][..E], &mut dlogits[n * E..][..E]);
        let (w, dw, experts) = (&weights[n * S..][..S], &dweights[n * S..][..S], &experts[n * S..][..S]);
        let score = |a: usize| sigmoid(logits[experts[a] as usize]);
        let norm = p.norm == 1;
        let by = if norm { sum((0..S).map(score)) + R::from(1e-20) } else { one };
        for a in 0..S {
            let s = score(a);
            // scale·dw[a] − Σ w·dw, the expert's own share taken together: alone, it has no gradient at all
            let others = (0..S).filter(|b| norm && *b != a);
            let own = if norm { scale - w[a] } else { scale };
            let d = own * dw[a] - sum(others.map(|b| w[b] * dw[b]));
            dlogits[experts[a] as usize] = d / by * (s * (one - s));
        }
    }
}
