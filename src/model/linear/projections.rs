//! Several projections of one input: a module each, or fused.
use super::Linear;
use super::low::{Columns, Stack, With};
use crate::backend::{Backend, Buf};
use crate::error::Result;

/// In the order of their outputs.
pub struct Projections(pub Vec<Linear>);

impl Projections {
    /// outs [N, O] of every projection, in order, from inp [N, C].
    pub fn forward<'a>(
        &self,
        b: &dyn Backend,
        with: impl Into<With<'a>>,
        outs: &mut [&mut Buf],
        inp: &Buf,
        N: usize,
    ) -> Result<()> {
        let mut with = with.into();
        if let Some(linear) = self.0.iter().find(|linear| linear.fp8().is_some()) {
            // once for all of them
            linear.quantize_fp8(b, &with, inp, N)?;
        }
        let stack = Stack::of(&self.0, &with);
        if let Some(stack) = &stack {
            stack.narrow(b, with, inp, N)?;
        }
        let mut rest = outs;
        for (i, linear) in self.0.iter().enumerate() {
            let (own, others) = rest.split_at_mut(linear.parts.len());
            match &stack {
                Some(stack) => linear.forward_with(b, with, own, (inp, inp), N, stack.columns(i))?,
                None => {
                    linear.forward_quantized(b, with, own, inp, N)?;
                    with = with.behind(linear, N);
                }
            }
            rest = others;
        }
        Ok(())
    }

    /// dinp [N, C] = ∂L/∂inp, if it is wanted, from the gradients of all outputs; adds to the gradients of what is trained.
    pub fn backward<'a>(
        &mut self,
        b: &dyn Backend,
        with: impl Into<With<'a>>,
        (dinp, wanted): (&mut Buf, bool),
        douts: &[&Buf],
        inp: &Buf,
        N: usize,
    ) -> Result<()> {
        let mut with = with.into();
        if let Some(stack) = Stack::of(&self.0, &with) {
            return self.backward_stacked(b, with, &stack, (dinp, wanted), douts, inp, N);
        }
        for (i, (linear, douts)) in each(&mut self.0, douts).enumerate() {
            match &linear.lora {
                None if !wanted => {}
                // P, of which A's gradient is made
                Some(lora) if !wanted && lora.is_plain(&with) => {
                    linear.backward_narrow(b, with, douts, N, Columns::alone(lora.R))?
                }
                _ => linear.backward_input(b, with, dinp, douts, N, i > 0)?,
            }
            linear.backward_weight(b, with, douts, inp, N)?;
            with = with.behind(linear, N);
        }
        Ok(())
    }

    /// The same with the adapters as one.
    fn backward_stacked(
        &mut self,
        b: &dyn Backend,
        with: With,
        stack: &Stack,
        (dinp, wanted): (&mut Buf, bool),
        douts: &[&Buf],
        inp: &Buf,
        N: usize,
    ) -> Result<()> {
        for (i, (linear, douts)) in each(&mut self.0, douts).enumerate() {
            linear.backward_narrow(b, with, douts, N, stack.columns(i))?;
        }
        if wanted {
            stack.widen(b, &with, dinp, N)?;
        }
        stack.backward_a(b, &with, &mut self.0, inp, N)?;
        if !with.is_kept() {
            stack.narrow(b, with, inp, N)?;
        }
        for (i, (linear, douts)) in each(&mut self.0, douts).enumerate() {
            if wanted {
                linear.backward_base(b, &with, dinp, douts, N, true)?;
            }
            linear.backward_with(b, with, douts, (inp, inp), N, stack.columns(i))?;
        }
        Ok(())
    }
}

/// Each linear with its own of the gradients of all outputs.
fn each<'a, 'd>(
    linears: &'a mut [Linear],
    douts: &'d [&'d Buf],
) -> impl Iterator<Item = (&'a mut Linear, &'d [&'d Buf])> {
    linears.iter_mut().scan(douts, |rest, linear| {
        let (own, others) = rest.split_at(linear.parts.len());
        *rest = others;
        Some((linear, own))
    })
}
