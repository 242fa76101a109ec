//! Norms of rows of a model: RMSNorm or LayerNorm, of the residual stream or of the heads of q and k.
use super::param::Param;
use super::spec::{Bias, NormKind, NormWeight, QkNorm, Spec};
use crate::backend::{Backend, Buf};
use crate::error::Result;
use crate::ops::bias::BiasBackward;
use crate::ops::layernorm::LayerNorm;
use crate::ops::residual::Residual;
use crate::ops::rmsnorm::{RmsNorm, RmsNormResidual};

/// A norm's weights.
pub struct NormParams {
    pub weight: Param,
    pub bias: Option<Param>,
}

impl NormParams {
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        [&self.weight].into_iter().chain(&self.bias)
    }
    pub(super) fn is_trained(&self) -> bool {
        self.params().any(|param| param.train.is_some())
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        [&mut self.weight].into_iter().chain(&mut self.bias)
    }
}

/// A norm's sizes.
pub(super) enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
}

impl Norm {
    /// Of N rows of `heads` parts of C channels; each part is a row by itself, with weights of its own.
    fn new(s: &Spec, kind: NormKind, (N, heads, C): (usize, usize, usize)) -> Norm {
        let (N, C, eps) = (N as u32, C as u32, s.eps);
        match kind {
            NormKind::Rms => Norm::Rms(RmsNorm { N, C, eps, shift: s.norm_weight.shift() }),
            NormKind::Layer(bias) => {
                Norm::Layer(LayerNorm { N, H: heads as u32, C, eps, bias: (bias == Bias::Present) as u32 })
            }
        }
    }
    /// Of [N, C].
    pub fn rows(s: &Spec, N: usize) -> Norm {
        Norm::new(s, s.norm, (N, 1, s.C))
    }
    /// Of [N, C] of any length.
    pub fn of(N: usize, C: usize, eps: f32, weight: NormWeight) -> Norm {
        Norm::Rms(RmsNorm { N: N as u32, C: C as u32, eps, shift: weight.shift() })
    }
    /// Of the heads [N, heads·D] of q or k.
    pub fn heads(s: &Spec, N: usize, heads: usize) -> Norm {
        match s.qk_norm {
            QkNorm::EachHead => Norm::new(s, s.head_norm(), (N, heads, s.D)),
            _ => {
                let (rows, length) = s.qk_norm.shape(N, heads, s.D);
                Norm::new(s, s.head_norm(), (rows, 1, length))
            }
        }
    }

    /// f32 values that the forward leaves for the backward: rstd of each row, and its mean where that is not 0.
    pub fn stats(&self) -> usize {
        match self {
            Norm::Rms(p) => p.N as usize,
            Norm::Layer(p) => 2 * (p.N * p.H) as usize,
        }
    }

    pub fn forward(&self, b: &dyn Backend, out: &mut Buf, stats: &mut Buf, inp: &Buf, norm: &NormParams) -> Result<()> {
        match self {
            Norm::Rms(p) => b.rmsnorm_forward(out, stats, inp, &norm.weight.value, p),
            Norm::Layer(p) => {
                let (mut rstd, mut mean) = halves(stats);
                let bias = norm.bias.as_ref().map(|bias| &bias.value);
                b.layernorm_forward(out, &mut mean, &mut rstd, inp, &norm.weight.value, bias, p)
            }
        }
    }

    /// sum = x + scale·branch, and the norm of sum.
    pub fn forward_sum(
        &self,
        b: &dyn Backend,
        (out, stats): (&mut Buf, &mut Buf),
        sum: &mut Buf,
        (x, branch, scale): (&Buf, &Buf, f32),
        norm: &NormParams,
    ) -> Result<()> {
        match self {
            Norm::Rms(RmsNorm { N, C, eps, shift }) => {
                let p = RmsNormResidual { N: *N, C: *C, eps: *eps, shift: *shift, scale };
                b.rmsnorm_residual_forward(out, stats, sum, x, branch, &norm.weight.value, &p)
            }
            Norm::Layer(_) => {
                b.residual_forward(sum, x, branch, &Residual { P: sum.len() as u32, scale })?;
                self.forward(b, out, stats, sum, norm)
            }
        }
    }

    /// dinp += the gradient through the norm of inp; the norm's own gradients when it is trained.
    pub fn backward(
        &self,
        b: &dyn Backend,
        norm: &mut NormParams,
        dinp: &mut Buf,
        dout: &Buf,
        inp: &Buf,
        stats: &Buf,
    ) -> Result<()> {
        let weight = &mut norm.weight;
        match self {
            Norm::Rms(p) => {
                if let Some(train) = &mut weight.train {
                    b.rmsnorm_backward_weight(train.sum(b)?, dout, inp, stats, p)?;
                }
                b.rmsnorm_backward(dinp, dout, inp, &weight.value, stats, p)
            }
            Norm::Layer(p) => {
                let (rstd, mean) = halves(stats);
                if let Some(train) = &mut weight.train {
                    b.layernorm_backward_weight(train.sum(b)?, dout, inp, &mean, &rstd, p)?;
                }
                if let Some(Param { train: Some(train), .. }) = &mut norm.bias {
                    let O = p.H * p.C;
                    b.bias_backward(train.sum(b)?, dout, &BiasBackward { N: p.N, O, ld_dout: O })?;
                }
                b.layernorm_backward(dinp, dout, inp, &weight.value, &mean, &rstd, p)
            }
        }
    }
}

/// rstd and mean.
fn halves(stats: &Buf) -> (Buf, Buf) {
    let n = stats.len() / 2;
    (stats.view(0, n), stats.view(n, n))
}
