//! RMSNorm on rows of a model: of the residual stream, or of the heads of q and k.
use super::param::{Param, Train};
use super::spec::{NormWeight, Spec};
use crate::backend::{Backend, Buf};
use crate::error::Result;
use crate::ops::rmsnorm::RmsNorm;

/// A norm's sizes.
pub(super) struct Norm(RmsNorm);

impl Norm {
    /// Of [N, C].
    pub fn rows(s: &Spec, N: usize) -> Norm {
        Norm(RmsNorm { N: N as u32, C: s.C as u32, eps: s.eps, shift: s.norm_weight.shift() })
    }
    /// Of [N, C] of any length.
    pub fn of(N: usize, C: usize, eps: f32, weight: NormWeight) -> Norm {
        Norm(RmsNorm { N: N as u32, C: C as u32, eps, shift: weight.shift() })
    }
    /// Of the heads [N, heads·D] of q or k.
    pub fn heads(s: &Spec, N: usize, heads: usize) -> Norm {
        let (rows, length) = s.qk_norm.shape(N, heads, s.D);
        Norm(RmsNorm { N: rows as u32, C: length as u32, eps: s.eps, shift: s.norm_weight.shift() })
    }

    pub fn forward(&self, b: &dyn Backend, out: &mut Buf, rstd: &mut Buf, inp: &Buf, norm: &Param) -> Result<()> {
        b.rmsnorm_forward(out, rstd, inp, &norm.value, &self.0)
    }

    /// dinp += the gradient through the norm of inp; the norm's own gradient when it is trained.
    pub fn backward(
        &self,
        b: &dyn Backend,
        norm: &mut Param,
        dinp: &mut Buf,
        dout: &Buf,
        inp: &Buf,
        rstd: &Buf,
    ) -> Result<()> {
        if let Some(Train { grad, .. }) = &mut norm.train {
            b.rmsnorm_backward_weight(grad, dout, inp, rstd, &self.0)?;
        }
        b.rmsnorm_backward(dinp, dout, inp, &norm.value, rstd, &self.0)
    }
}
