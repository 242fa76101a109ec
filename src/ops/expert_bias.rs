//! Bias of each expert on its own rows, maybe weighted by the routing as its output is: bias of a layer after the weights.
//!
//! forward           out[m,:] += w·bias[e,:]           for the rows offsets[e] <= m < offsets[e+1]
//! backward          dbias[e,:] += Σ_m w·dout[m,:]     over the expert's rows
//! backward_weights  dweights[rows[m]] += Σ_O dout[m,:]·bias[e,:]
//! where w = weights[rows[m]], or 1 where `weighted` is 0; the gradient of out passes through.
use super::{params, sum};
use crate::dtype::Real;

params! {
    ExpertBias { M: u32, E: u32, O: u32, /// 1: by the rows' routing weights.
    weighted: u32 }
    wants |p| p.weighted <= 1, "weighted is 0 or 1";
}

impl ExpertBias {
    fn rows<'a>(&self, offsets: &'a [u32]) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + use<'a> {
        (0..self.E as usize).map(|e| (e, offsets[e] as usize..offsets[e + 1] as usize))
    }
    fn weight<R: Real>(&self, weights: &[R], row: u32) -> R {
        if self.weighted == 1 { weights[row as usize] } else { R::from(1.0) }
    }
}

pub fn expert_bias_forward<R: Real>(
    out: &mut [R],
    bias: &[R],
    offsets: &[u32],
    weights: &[R],
    rows: &[u32],
    p: &ExpertBias,
) {
    let O = p.O as usize;
    for (e, own) in p.rows(offsets) {
        for m in own {
            let w = p.weight(weights, rows[m]);
            (0..O).for_each(|o| out[m * O + o] += w * bias[e * O + o]);
        }
    }
}

pub fn expert_bias_backward<R: Real>(
    dbias: &mut [R],
    dout: &[R],
    offsets: &[u32],
    weights: &[R],
    rows: &[u32],
    p: &ExpertBias,
) {
    let O = p.O as usize;
    for (e, own) in p.rows(offsets) {
        for o in 0..O {
            dbias[e * O + o] += sum(own.clone().map(|m| p.weight(weights, rows[m]) * dout[m * O + o]));
        }
    }
}

pub fn expert_bias_backward_weights<R: Real>(
    dweights: &mut [R],
    dout: &[R],
    bias: &[R],
    offsets: &[u32],
    rows: &[u32],
    p: &ExpertBias,
) {
    let O = p.O as usize;
    for (e, own) in p.rows(offsets) {
        for m in own {
            dweights[rows[m] as usize] += sum((0..O).map(|o| dout[m * O + o] * bias[e * O + o]));
        }
    }
}
