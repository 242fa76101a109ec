//! Several projections of one input: a module each, or fused.
use super::{Linear, LinearScratch};
use crate::backend::{Backend, Buf};
use crate::error::Result;

/// In the order of their outputs.
pub struct Projections(pub Vec<Linear>);

impl Projections {
    /// outs [N, O] of every projection, in order, from inp [N, C].
    pub fn forward(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        outs: &mut [&mut Buf],
        inp: &Buf,
        N: usize,
    ) -> Result<()> {
        let mut rest = outs;
        if let Some(linear) = self.0.iter().find(|linear| linear.fp8().is_some()) {
            // once for all of them
            linear.quantize_fp8(b, scratch, inp, N)?;
        }
        for linear in &self.0 {
            let (own, others) = rest.split_at_mut(linear.parts.len());
            linear.forward_quantized(b, scratch, own, inp, N)?;
            rest = others;
        }
        Ok(())
    }

    /// dinp [N, C] = ∂L/∂inp from the gradients of all outputs; adds to the gradients of what is trained.
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        dinp: &mut Buf,
        douts: &[&Buf],
        inp: &Buf,
        N: usize,
    ) -> Result<()> {
        let mut rest = douts;
        for (i, linear) in self.0.iter_mut().enumerate() {
            let (own, others) = rest.split_at(linear.parts.len());
            linear.backward_input(b, scratch, dinp, own, N, i > 0)?;
            linear.backward_weight(b, scratch, own, inp, N)?;
            rest = others;
        }
        Ok(())
    }
}
