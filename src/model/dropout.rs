//! Dropout of an adapter's input, as PEFT's `lora_dropout`: the base sees its input whole.
//!
//! Y = X·Wᵀ + s·(D∘X·Aᵀ)·Bᵀ, with a mask D of its own for each module and each call of the session (`ops/dropout.rs`).
//! Under DoRA, again as in PEFT: Y = g∘(Z·Wᵀ + s·(Z·Aᵀ)·Bᵀ) + (X − Z)·Wᵀ with Z = D∘X and g = m/norm. The gradient of Z then has
//! parts through W, too; they are gathered on a detour and join dX through the mask.
use super::linear::{Linear, LinearScratch, Lora, part};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::dropout::Dropout as Mask;
use crate::rng::Rng;

/// Of one adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    rate: f64,
    /// Tells this module's masks from the others'.
    stream: u32,
}

impl Dropout {
    /// `None`: nothing is dropped.
    pub fn new(rate: f64, module: &str) -> Option<Dropout> {
        (rate > 0.0).then(|| Dropout { rate, stream: Rng::named(0, module).bits() as u32 })
    }
}

/// What the adapters with dropout share while they run.
#[derive(Default)]
pub(super) struct DropoutScratch {
    /// [N, C]: an adapter's input, or its gradient.
    rows: Option<Buf>,
    /// Of the masks now; `None`: nothing is dropped.
    pub seed: Option<u32>,
}

impl DropoutScratch {
    /// For `linears` on up to `N` rows.
    pub fn new(scope: &Scope, linears: &[&Linear], N: usize, dtype: DType) -> Result<DropoutScratch> {
        let drops = |l: &&&Linear| l.lora.as_ref().is_some_and(|a| a.dropout.is_some() && a.a.train.is_some());
        let C = linears.iter().filter(drops).map(|l| l.C).max().unwrap_or(0);
        let rows = if N * C > 0 { Some(scope.alloc(N * C, dtype)?) } else { None };
        Ok(DropoutScratch { rows, seed: None })
    }
}

impl Lora {
    fn mask(&self, scratch: &LinearScratch, P: usize) -> Option<Mask> {
        let (Dropout { rate, stream }, seed) = (self.dropout?, scratch.dropout.seed?);
        Some(Mask::new(P, rate, seed, stream))
    }

    /// Whether the mask is on.
    pub(super) fn drops(&self, scratch: &LinearScratch) -> bool {
        self.dropout.is_some() && scratch.dropout.seed.is_some()
    }

    /// What A sees of the layer's input of P values: itself, or what is left of it, in the scratch.
    pub(super) fn input(&self, b: &dyn Backend, scratch: &LinearScratch, inp: &Buf, P: usize) -> Result<Buf> {
        let Some(mask) = self.mask(scratch, P) else { return Ok(inp.view(0, P)) };
        let mut out = part(&scratch.dropout.rows, P);
        b.dropout_forward(&mut out, inp, &mask)?;
        Ok(out)
    }

    /// Where DoRA under dropout gathers its input's gradient: what `input_backward` then adds to.
    pub(super) fn detour(&self, scratch: &LinearScratch, P: usize) -> Option<Buf> {
        (self.dora.is_some() && self.mask(scratch, P).is_some()).then(|| part(&scratch.dropout.rows, P))
    }

    /// dinp += the gradient through A, which `product` gives: it writes it, or with `true` adds it.
    pub(super) fn input_backward(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        dinp: &mut Buf,
        P: usize,
        product: impl Fn(&mut Buf, bool) -> Result<()>,
    ) -> Result<()> {
        let Some(mask) = self.mask(scratch, P) else { return product(dinp, true) };
        let mut dout = part(&scratch.dropout.rows, P);
        product(&mut dout, self.dora.is_some())?;
        b.dropout_backward(dinp, &dout, &mask)
    }
}
