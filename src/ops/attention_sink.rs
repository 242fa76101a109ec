//! A sink of each head: one more score in its softmax, learned, that draws attention to nothing. As in gpt-oss, arXiv:2508.10925;
//! Xiao et al. 2023, arXiv:2309.17453.
//!
//! forward   in place, after attention:  lse' = log(exp(lse) + exp(sink)),  out' = out·exp(lse − lse')
//! backward  dsinks[h] −= Σ_n exp(sinks[h] − lse'[n,h])·Σ_D dout·out'
//! With out' and lse' attention_backward is exact as it is: its p = exp(s − lse') and dot = dout·out' are those with the sink.
use super::{params, sum};
use crate::dtype::Real;

params! { AttentionSink { N: u32, H: u32, D: u32 } }

pub fn attention_sink_forward<R: Real>(out: &mut [R], lse: &mut [R], sinks: &[R], p: &AttentionSink) {
    let (H, D) = (p.H as usize, p.D as usize);
    for row in 0..p.N as usize * H {
        let (old, sink) = (lse[row], sinks[row % H]);
        let top = if sink > old { sink } else { old };
        lse[row] = top + ((old - top).exp() + (sink - top).exp()).ln();
        let factor = (old - lse[row]).exp();
        out[row * D..][..D].iter_mut().for_each(|x| *x = *x * factor);
    }
}

pub fn attention_sink_backward<R: Real>(
    dsinks: &mut [R],
    dout: &[R],
    out: &[R],
    lse: &[R],
    sinks: &[R],
    p: &AttentionSink,
) {
    let (H, D) = (p.H as usize, p.D as usize);
    for h in 0..H {
        let of = |row: usize| {
            let dot = sum((0..D).map(|d| dout[row * D + d] * out[row * D + d]));
            (sinks[h] - lse[row]).exp() * dot
        };
        dsinks[h] += -sum((0..p.N as usize).map(|n| of(n * H + h)));
    }
}
