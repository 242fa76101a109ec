//! DoRA: y = m/‖W + s·B·A‖ ∘ (x·Wᵀ + s·(x·Aᵀ)·Bᵀ), with one trained magnitude m and one norm for each output.
//! Liu et al. 2024, arXiv:2402.09353. The bias comes after, and the norm counts as a constant in the backward, both as in PEFT.
//!
//! The base may be quantized: its norm is of what it stands for.
use super::layout::Layout;
use super::linear::{Linear, LinearScratch, Lora, nt, part};
use super::param::Param;
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::dora::{Dora as Rows, DoraNorm};
use std::cell::Cell;

pub struct Dora {
    /// m, [O]; f32 whatever the model's dtype: near 1 a norm's ratio has no bits to lose.
    pub magnitude: Param,
    /// ‖W + s·B·A‖ of each row, [O].
    norm: Buf,
    /// `norm` is of the weights as they are. What is trained moves with every step, and is measured in every forward.
    fresh: Cell<bool>,
}

/// What the linears with DoRA share while they run, sized for the largest.
#[derive(Default)]
pub(super) struct DoraScratch {
    /// W·Aᵀ, [O, R] in f32.
    wa: Option<Buf>,
    /// A·Aᵀ, [R, R] in f32.
    gram: Option<Buf>,
    /// [N, largest part]: a scaled gradient, or outputs before they are scaled.
    rows: Option<Buf>,
}

impl DoraScratch {
    pub fn new(scope: &Scope, linears: &[&Linear], N: usize, dtype: DType) -> Result<DoraScratch> {
        let (mut wa, mut gram, mut rows, mut odd) = (0, 0, 0, false);
        for linear in linears {
            let Some(Lora { R, dora: Some(dora), .. }) = &linear.lora else { continue };
            wa = wa.max(linear.O * R);
            gram = gram.max(R * R);
            if dora.magnitude.train.is_some() {
                odd |= linear.parts.iter().any(|O| O % 2 == 1);
                rows = rows.max(N * linear.parts.iter().max().copied().unwrap_or(0));
            }
        }
        let buf = |len, dtype| if len > 0 { scope.alloc(len, dtype).map(Some) } else { Ok(None) };
        // 16-bit rows have an even length
        let dtype = if odd { DType::F32 } else { dtype };
        Ok(DoraScratch { wa: buf(wa, DType::F32)?, gram: buf(gram, DType::F32)?, rows: buf(rows, dtype)? })
    }

    /// [N, O].
    pub fn rows(&self, N: usize, O: usize) -> Buf {
        part(&self.rows, N * O)
    }
}

fn rows(N: usize, O: usize) -> Rows {
    Rows { N: N as u32, O: O as u32 }
}

impl Dora {
    /// For a linear of O outputs; `start` gives it its values.
    pub fn new(b: &dyn Backend, module: &str, O: usize, train: bool) -> Result<Dora> {
        let name = format!("base_model.model.{module}.lora_magnitude_vector");
        let mut magnitude = Param::zeros(b, &name, &[O], DType::F32)?;
        if train {
            magnitude.unfreeze(b)?;
        }
        let made = Scope::new(b);
        made.hold(&magnitude.value);
        let norm = b.alloc(O, DType::F32)?;
        made.keep();
        Ok(Dora { magnitude, norm, fresh: Cell::new(false) })
    }

    /// The file has the outputs in this order.
    pub fn laid_out(self, rows: Layout) -> Dora {
        Dora { magnitude: self.magnitude.laid_out(rows), ..self }
    }

    /// The magnitudes of a new adapter: the norms themselves, so that it changes nothing.
    pub fn start(b: &dyn Backend, linear: &mut Linear, dtype: DType) -> Result<()> {
        if !matches!(&linear.lora, Some(Lora { dora: Some(_), .. })) {
            return Ok(());
        }
        let scope = Scope::new(b);
        let scratch = LinearScratch::new(&scope, [&*linear].into_iter(), 0, dtype)?;
        let weight = linear.dense(b, &scratch)?;
        let (C, O) = (linear.C, linear.O);
        let Some(lora) = &mut linear.lora else { return Ok(()) };
        lora.measure(b, &scratch.dora, &weight, O, C)?;
        let Some(Dora { magnitude, norm, .. }) = &mut lora.dora else { return Ok(()) };
        b.copy(&mut magnitude.value, norm)
    }

    /// What it lies in.
    pub fn bufs(self) -> [Buf; 2] {
        [self.magnitude.value, self.norm]
    }

    /// The adapter's weights may change now.
    pub fn touch(&self) {
        self.fresh.set(false);
    }

    fn vectors(&self, first: usize, O: usize) -> (Buf, Buf) {
        (self.magnitude.value.view(first, O), self.norm.view(first, O))
    }

    /// out [N, O] of the outputs from `first` on, scaled in place.
    pub fn forward(&self, b: &dyn Backend, out: &mut Buf, first: usize, O: usize, N: usize) -> Result<()> {
        let (magnitude, norm) = self.vectors(first, O);
        b.dora_forward(out, &magnitude, &norm, &rows(N, O))
    }

    /// The gradient of what `forward` scaled, in the scratch.
    pub(super) fn backward(
        &self,
        b: &dyn Backend,
        scratch: &DoraScratch,
        dout: &Buf,
        first: usize,
        O: usize,
        N: usize,
    ) -> Result<Buf> {
        let (magnitude, norm) = self.vectors(first, O);
        let mut dinp = scratch.rows(N, O);
        b.dora_backward(&mut dinp, dout, &magnitude, &norm, &rows(N, O))?;
        Ok(dinp)
    }

    /// Adds to the magnitudes' gradient; `inp` is what `forward` scaled.
    pub fn backward_weight(
        &mut self,
        b: &dyn Backend,
        dout: &Buf,
        inp: &Buf,
        first: usize,
        O: usize,
        N: usize,
    ) -> Result<()> {
        let Some(train) = &mut self.magnitude.train else { return Ok(()) };
        b.dora_backward_weight(&mut train.sum(b)?.view(first, O), dout, inp, &self.norm.view(first, O), &rows(N, O))
    }
}

impl Lora {
    /// Brings the norms of a DoRA up to date with `weight` [O, C], A and B.
    pub(super) fn measure(
        &self,
        b: &dyn Backend,
        scratch: &DoraScratch,
        weight: &Buf,
        O: usize,
        C: usize,
    ) -> Result<()> {
        let Some(dora) = &self.dora else { return Ok(()) };
        if dora.fresh.get() {
            return Ok(());
        }
        let R = self.R;
        let (mut wa, mut gram) = (part(&scratch.wa, O * R), part(&scratch.gram, R * R));
        b.matmul_nt(&mut wa, weight, &self.a.value, &nt(O, R, C, 1.0))?;
        b.matmul_nt(&mut gram, &self.a.value, &self.a.value, &nt(R, R, C, 1.0))?;
        let p = DoraNorm { O: O as u32, C: C as u32, R: R as u32, scale: self.scale };
        b.dora_norm(&mut dora.norm.view(0, O), weight, &wa, &self.b.value, &gram, &p)?;
        dora.fresh.set(self.a.train.is_none());
        Ok(())
    }
}
