//! Gradient norm and clipping, without the host: the optimizer multiplies by scale[0] itself.
//!
//! partial[b] = Σ inp² over block b of 4096;  norm = unscale·√Σ partial over all tensors
//! scale = unscale·min(1, max_norm/(norm + 1e-6)): gradients that were scaled up are brought back on the same way
//! Two stages in a fixed order, so that the same gradients always give the same bits. As torch.nn.utils.clip_grad_norm_.
use super::{params, sum};
use crate::dtype::Real;

params! { GradNorm { P: u32 } }
params! { GradNormFinish { P: u32, /** 0: no clipping */ max_norm: f32, /** 1 / what the gradients were multiplied by */ unscale: f32 } }

/// Values that one partial sum covers.
pub const BLOCK: usize = 4096;

pub fn gradnorm_partial<R: Real>(partial: &mut [R], inp: &[R], p: &GradNorm) {
    for (b, block) in inp[..p.P as usize].chunks(BLOCK).enumerate() {
        partial[b] = sum(block.iter().map(|x| *x * *x));
    }
}

pub fn gradnorm_finish<R: Real>(norm: &mut [R], scale: &mut [R], partial: &[R], p: &GradNormFinish) {
    norm[0] = R::from(p.unscale) * sum(partial[..p.P as usize].iter().copied()).sqrt();
    let factor = R::from(p.max_norm) / (norm[0] + R::from(1e-6));
    scale[0] = R::from(p.unscale) * if p.max_norm > 0.0 && factor < R::from(1.0) { factor } else { R::from(1.0) };
}
