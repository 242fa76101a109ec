//! A linear layer: dense, NF4, MXFP4, 8-bit, GGUF or e4m3 base, optional bias, optional LoRA. Nothing above it knows which.
//!
//! forward   Y = X·Wᵀ + bias + s·(X·Aᵀ)·Bᵀ
//! backward  dX = G·W + P·A,  P = s·G·B;   dA = Pᵀ·X,  dB = Gᵀ·T,  T = s·X·Aᵀ;   dW = Gᵀ·X,  dbias = Σ_N G
//! With DoRA (`dora.rs`) what comes before the bias is scaled, and G with it.
//! A fused module (one weight, several outputs) writes each part of its rows to a buffer of its own: Y = [Y1 | Y2 | ..].
//! B·A is never formed. Hu et al. 2021, arXiv:2106.09685; rank-stabilized s: Kalajdzievski 2023, arXiv:2312.03732.
use super::dora::{Dora, DoraScratch};
use super::dropout::{Dropout, DropoutScratch};
use super::experts::{Experts, Rows};
use super::fp8::Fp8Scratch;
use super::lora::pissa::Start;
use super::param::{Param, Sum};
use super::thin::FEW;
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::bias::{Bias, BiasBackward};
use crate::ops::matmul::MatMul;
use std::rc::Rc;

mod adapter;
pub mod low;
mod projections;
mod unpacked;
mod weight;
use low::{Columns, With};
pub use projections::Projections;
pub use unpacked::Unpacked;
pub use weight::{GgufWeight, Int8Weight, Mxfp4Weight, Nf4Scales, Nf4Weight, Weight};

pub struct Linear {
    /// The module's name: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Output channels.
    pub O: usize,
    /// Output channels of each projection in it; they add up to O.
    pub parts: Vec<usize>,
    /// Input channels.
    pub C: usize,
    pub weight: Weight,
    pub bias: Option<Param>,
    pub lora: Option<Lora>,
}

/// A low-rank adapter: A [R, C] and B [O, R].
pub struct Lora {
    pub a: Param,
    pub b: Param,
    /// The rank on the device, a multiple of 8.
    pub R: usize,
    /// lora_alpha/r, or lora_alpha/√r when rank-stabilized.
    pub scale: f32,
    pub dora: Option<Dora>,
    pub dropout: Option<Dropout>,
    /// Where it started, if the weight lacks that.
    pub start: Option<Start>,
}

/// Sees what the weights of a model are multiplied with, as it happens: for measurements.
pub trait Observer {
    /// inp [N, C].
    fn linear(&self, b: &dyn Backend, linear: &Linear, inp: &Buf, N: usize) -> Result<()>;
    /// inp [M, C], sorted by expert.
    fn experts(&self, b: &dyn Backend, experts: &Experts, inp: &Buf, rows: &Rows) -> Result<()>;
}

/// What the linears of a model share while they run, sized for the largest.
pub struct LinearScratch {
    pub(super) observer: Option<Rc<dyn Observer>>,
    weight: Option<Unpacked>,
    /// T = s·X·Aᵀ, [N, ΣR] of linears that read one X.
    pub(super) xa: Option<Buf>,
    /// P = s·G·B, [N, ΣR]; left by `backward_input` for `backward_weight`.
    pub(super) p: Option<Buf>,
    pub(super) dora: DoraScratch,
    pub(super) dropout: DropoutScratch,
    pub(super) fp8: Fp8Scratch,
}

impl LinearScratch {
    /// For `linears` on up to `N` tokens.
    pub fn new<'a>(
        scope: &Scope,
        linears: impl Iterator<Item = &'a Linear>,
        N: usize,
        dtype: DType,
    ) -> Result<LinearScratch> {
        let linears: Vec<&Linear> = linears.collect();
        let weight = Unpacked::new(scope, linears.iter().copied(), dtype, 1)?;
        Self::with(scope, linears.into_iter(), N, dtype, &weight)
    }

    /// With `weight` to unpack to, which others may use in their turn.
    pub fn with<'a>(
        scope: &Scope,
        linears: impl Iterator<Item = &'a Linear>,
        N: usize,
        dtype: DType,
        weight: &Option<Unpacked>,
    ) -> Result<LinearScratch> {
        let linears: Vec<&Linear> = linears.collect();
        let dora = DoraScratch::new(scope, &linears, N, dtype)?;
        let dropout = DropoutScratch::new(scope, &linears, N, dtype)?;
        let fp8 = Fp8Scratch::new(scope, &linears, N)?;
        let room = low::room(&linears, N);
        let buf = |len: usize| if len > 0 { scope.alloc(len, dtype).map(Some) } else { Ok(None) };
        let weight = weight.as_ref().map(Unpacked::share);
        Ok(LinearScratch { observer: None, weight, xa: buf(room)?, p: buf(room)?, dora, dropout, fp8 })
    }
}

/// A view of the scratch that must be there; that it is was settled when it was made.
pub(super) fn part(buf: &Option<Buf>, len: usize) -> Buf {
    buf.as_ref().expect("the scratch was made for these linears").view(0, len)
}

/// Dense operands: out[I,J] from an inner length Q, `b` stored as [J,Q] (nt), [Q,J] (nn) or with a as [Q,I] (tn).
pub(super) fn nt(I: usize, J: usize, Q: usize, alpha: f32) -> MatMul {
    MatMul { I: I as u32, J: J as u32, Q: Q as u32, ld_out: J as u32, ld_a: Q as u32, ld_b: Q as u32, alpha }
}
fn nn(I: usize, J: usize, Q: usize, alpha: f32) -> MatMul {
    MatMul { ld_b: J as u32, ..nt(I, J, Q, alpha) }
}
fn tn(I: usize, J: usize, Q: usize, alpha: f32) -> MatMul {
    MatMul { ld_a: I as u32, ld_b: J as u32, ..nt(I, J, Q, alpha) }
}

impl Linear {
    /// The base weight in the model's dtype: itself, or dequantized into the scratch.
    pub(super) fn dense(&self, b: &dyn Backend, scratch: &LinearScratch) -> Result<Buf> {
        self.dense_part(b, scratch, 0, self.O * self.C)
    }

    /// Values first..first + len of it. What is unpacked as a whole is wanted as a whole.
    pub(super) fn dense_part(&self, b: &dyn Backend, scratch: &LinearScratch, first: usize, len: usize) -> Result<Buf> {
        if let Weight::Dense(param) = &self.weight {
            return Ok(param.value.view(first, len));
        }
        let mut out = scratch.weight.as_ref().expect("the scratch was made for these linears").next(len);
        match &self.weight {
            Weight::Mxfp4(packed) => packed.dequantize(b, &mut out, first)?,
            _ => self.dequantize(b, &mut out)?,
        }
        Ok(out)
    }

    /// out [O, C] = the base weight in out's dtype.
    pub fn dequantize(&self, b: &dyn Backend, out: &mut Buf) -> Result<()> {
        self.weight.dequantize(b, out, (self.O, self.C))
    }

    /// First row and rows of each part.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> + use<'_> {
        self.parts.iter().scan(0, |first, O| Some((std::mem::replace(first, *first + O), *O)))
    }

    /// outs [N, parts[i]] from inp [N, C], which a weight in e4m3 finds in the scratch.
    pub(super) fn forward_quantized(
        &self,
        b: &dyn Backend,
        with: With,
        outs: &mut [&mut Buf],
        inp: &Buf,
        N: usize,
    ) -> Result<()> {
        let Some(lora) = &self.lora else {
            return self.forward_with(b, with, outs, (inp, inp), N, Columns::alone(0));
        };
        let seen = lora.input(b, &with, inp, N * self.C)?;
        lora.narrow(b, with, &seen, N, self.C)?;
        self.forward_with(b, with, outs, (inp, &seen), N, Columns::alone(lora.R))
    }

    /// The same with T in its columns; `seen` is what A has seen of inp.
    fn forward_with(
        &self,
        b: &dyn Backend,
        with: With,
        outs: &mut [&mut Buf],
        (inp, seen): (&Buf, &Buf),
        N: usize,
        at: Columns,
    ) -> Result<()> {
        assert_eq!(outs.len(), self.parts.len(), "{}: one output a part", self.name);
        let scratch: &LinearScratch = &with;
        if let Some(observer) = &scratch.observer {
            observer.linear(b, self, inp, N)?;
        }
        let C = self.C;
        let (thin, fp8) = (self.is_thin(N), self.fp8());
        let weight = if thin || fp8.is_some() { None } else { Some(self.dense(b, scratch)?) };
        if let (Some(lora), Some(weight)) = (&self.lora, &weight) {
            lora.measure(b, &scratch.dora, weight, self.O, C)?;
        }
        for (out, (first, O)) in outs.iter_mut().zip(self.rows()) {
            let base = |out: &mut Buf, inp: &Buf, add: bool| match (&weight, fp8) {
                (Some(weight), _) => {
                    let (rows, p) = (weight.view(first * C, O * C), nt(N, O, C, 1.0));
                    if add { b.matmul_nt_add(out, inp, &rows, &p) } else { b.matmul_nt(out, inp, &rows, &p) }
                }
                (None, Some(weight)) => self.forward_fp8(b, scratch, out, weight, (first, O), N, add),
                (None, None) => self.forward_thin(b, out, inp, (first, O), N),
            };
            match &self.lora {
                // few tokens are a matter of the weights alone, which some products read fastest if they only write
                Some(lora) if !thin && N > FEW && lora.is_plain(scratch) => {
                    lora.widen(b, with, out, (first, O), N, at, false)?;
                    base(out, inp, true)?;
                }
                Some(lora) => {
                    let detour = lora.detour(scratch, N * C).is_some();
                    base(out, if detour { seen } else { inp }, false)?;
                    lora.widen(b, with, out, (first, O), N, at, true)?;
                    if let Some(dora) = &lora.dora {
                        dora.forward(b, out, first, O, N)?;
                    }
                    if let Some(weight) = weight.as_ref().filter(|_| detour) {
                        let rows = weight.view(first * C, O * C);
                        b.matmul_nt_add(out, inp, &rows, &nt(N, O, C, 1.0))?;
                        b.matmul_nt_add(out, seen, &rows, &nt(N, O, C, -1.0))?;
                    }
                }
                None => base(out, inp, false)?,
            }
            if let Some(bias) = &self.bias {
                let p = Bias { N: N as u32, O: O as u32, ld_out: O as u32 };
                b.bias_forward(out, &bias.value.view(first, O), &p)?;
            }
        }
        Ok(())
    }

    /// dinp [N, C] = (or +=) ∂L/∂inp from douts [N, parts[i]]. `backward_weight` of the same layer comes next.
    pub fn backward_input<'a>(
        &mut self,
        b: &dyn Backend,
        with: impl Into<With<'a>>,
        dinp: &mut Buf,
        douts: &[&Buf],
        N: usize,
        add: bool,
    ) -> Result<()> {
        let with = with.into();
        let plain = self.lora.as_ref().filter(|lora| lora.is_plain(&with));
        if let Some(at) = plain.map(|lora| Columns::alone(lora.R)) {
            self.backward_narrow(b, with, douts, N, at)?;
        }
        let scratch: &LinearScratch = &with;
        match &self.lora {
            Some(lora) if lora.is_plain(scratch) => {
                lora.backward_widen(b, scratch, dinp, N, self.C, add)?;
                self.backward_base(b, scratch, dinp, douts, N, true)
            }
            Some(lora) => self.backward_scaled(b, scratch, lora, dinp, douts, N, add),
            None => self.backward_base(b, scratch, dinp, douts, N, add),
        }
    }

    /// P of a plain adapter, to its columns; and B's gradient, if that comes with it.
    fn backward_narrow(&mut self, b: &dyn Backend, with: With, douts: &[&Buf], N: usize, at: Columns) -> Result<()> {
        if let ([dout], true) = (douts, self.joins(b, with)) {
            return self.lora.iter_mut().try_for_each(|lora| lora.backward_joined(b, with, dout, self.O, N, at));
        }
        let Some(lora) = &self.lora else { return Ok(()) };
        let mut parts = douts.iter().zip(self.rows()).enumerate();
        parts.try_for_each(|(i, (dout, rows))| lora.narrow_gradient(b, &with, dout, rows, N, at, i > 0))
    }

    /// Whether P and B's gradient are made together: each reads all of G, and T is there before P.
    fn joins(&self, b: &dyn Backend, with: With) -> bool {
        let lora = self.lora.as_ref().filter(|lora| lora.is_plain(&with) && lora.b.train.is_some());
        lora.is_some() && with.is_kept() && self.parts.len() == 1 && b.has_low_rank()
    }

    /// dinp [N, C] = (or +=) the gradient through the base weight.
    fn backward_base(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        dinp: &mut Buf,
        douts: &[&Buf],
        N: usize,
        add: bool,
    ) -> Result<()> {
        assert_eq!(douts.len(), self.parts.len(), "{}: one gradient a part", self.name);
        let weight = if self.fp8().is_some() { None } else { Some(self.dense(b, scratch)?) };
        let mut parts = douts.iter().zip(self.rows()).enumerate();
        parts.try_for_each(|(i, (dout, rows))| {
            self.through(b, scratch, (dinp, dout), &weight, rows, N, add || i > 0, 1.0)
        })
    }

    /// dinp [N, C] = (or +=) alpha·dout [N, O] times the rows first..first + O of `weight`, or of one in e4m3.
    fn through(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        (dinp, dout): (&mut Buf, &Buf),
        weight: &Option<Buf>,
        (first, O): (usize, usize),
        N: usize,
        add: bool,
        alpha: f32,
    ) -> Result<()> {
        let (C, p) = (self.C, nn(N, self.C, O, alpha));
        match (weight, self.fp8()) {
            (Some(weight), _) if add => b.matmul_nn_add(dinp, dout, &weight.view(first * C, O * C), &p),
            (Some(weight), _) => b.matmul_nn(dinp, dout, &weight.view(first * C, O * C), &p),
            (None, Some(weight)) => self.backward_fp8(b, scratch, dinp, weight, dout, (first, O), N, add),
            (None, None) => unreachable!("a weight is one or the other"),
        }
    }

    /// `backward_input` with DoRA or dropout.
    fn backward_scaled(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        lora: &Lora,
        dinp: &mut Buf,
        douts: &[&Buf],
        N: usize,
        add: bool,
    ) -> Result<()> {
        assert_eq!(douts.len(), self.parts.len(), "{}: one gradient a part", self.name);
        let C = self.C;
        let weight = if self.fp8().is_some() { None } else { Some(self.dense(b, scratch)?) };
        let mut detour = lora.detour(scratch, N * C);
        for (i, (dout, rows)) in douts.iter().zip(self.rows()).enumerate() {
            let scaled = self.scaled(b, scratch, dout, rows.0, rows.1, N)?;
            let (whole, dout) = (dout, scaled.as_ref().unwrap_or(dout));
            let through = |to: &mut Buf, dout: &Buf, add: bool, alpha: f32| {
                self.through(b, scratch, (to, dout), &weight, rows, N, add, alpha)
            };
            match &mut detour {
                None => through(dinp, dout, add || i > 0, 1.0)?,
                Some(dropped) => {
                    through(dinp, whole, add || i > 0, 1.0)?;
                    through(dropped, dout, i > 0, 1.0)?;
                    through(dropped, whole, true, -1.0)?;
                }
            }
            lora.narrow_gradient(b, scratch, dout, rows, N, Columns::alone(lora.R), i > 0)?;
        }
        lora.input_backward(b, scratch, dinp, N * C, |out, add| lora.backward_widen(b, scratch, out, N, C, add))
    }

    /// With DoRA: the gradient of a part of the outputs before they were scaled, in the scratch.
    fn scaled(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        dout: &Buf,
        first: usize,
        O: usize,
        N: usize,
    ) -> Result<Option<Buf>> {
        let dora = self.lora.as_ref().and_then(|lora| lora.dora.as_ref());
        dora.map(|dora| dora.backward(b, &scratch.dora, dout, first, O, N)).transpose()
    }

    /// Adds to the gradients of what is trained here, from douts [N, parts[i]] and inp [N, C]; right after `backward_input`.
    pub fn backward_weight<'a>(
        &mut self,
        b: &dyn Backend,
        with: impl Into<With<'a>>,
        douts: &[&Buf],
        inp: &Buf,
        N: usize,
    ) -> Result<()> {
        let (C, with) = (self.C, with.into());
        let Some(lora) = &mut self.lora else {
            return self.backward_with(b, with, douts, (inp, inp), N, Columns::alone(0));
        };
        let (R, seen) = (lora.R, lora.input(b, &with, inp, N * C)?);
        if let Some(train) = &mut lora.a.train {
            b.matmul_tn_add(train.sum(b)?, &part(&with.p, N * R), &seen, &tn(R, C, N, 1.0))?;
        }
        if lora.b.train.is_some() && !with.is_kept() {
            lora.narrow(b, with, &seen, N, C)?;
        }
        self.backward_with(b, with, douts, (inp, &seen), N, Columns::alone(R))
    }

    /// The gradients of all but A, with T in its columns.
    fn backward_with(
        &mut self,
        b: &dyn Backend,
        with: With,
        douts: &[&Buf],
        (inp, seen): (&Buf, &Buf),
        N: usize,
        at: Columns,
    ) -> Result<()> {
        let C = self.C;
        let rows: Vec<_> = self.rows().collect();
        for (dout, (first, O)) in douts.iter().zip(rows) {
            if let Weight::Dense(Param { train: Some(train), .. }) = &mut self.weight {
                let (mut grad, p) = (train.grad.view(first * C, O * C), tn(O, C, N, 1.0));
                match train.sum.get() {
                    Sum::Nothing => b.matmul_tn(&mut grad, dout, inp, &p)?,
                    Sum::Begun => b.matmul_tn_add(&mut grad, dout, inp, &p)?,
                }
            }
            if let Some(Param { train: Some(train), .. }) = &mut self.bias {
                let p = BiasBackward { N: N as u32, O: O as u32, ld_dout: O as u32 };
                b.bias_backward(&mut train.sum(b)?.view(first, O), dout, &p)?;
            }
            self.backward_b(b, with, dout, seen, (first, O), N, at)?;
        }
        if let Weight::Dense(Param { train: Some(train), .. }) = &self.weight {
            // all parts
            train.sum.set(Sum::Begun);
        }
        Ok(())
    }

    /// B's gradient, and that of DoRA's magnitudes, of the outputs `first..first + O`; T is of the X that A has `seen`.
    fn backward_b(
        &mut self,
        b: &dyn Backend,
        with: With,
        dout: &Buf,
        seen: &Buf,
        (first, O): (usize, usize),
        N: usize,
        at: Columns,
    ) -> Result<()> {
        if self.lora.as_ref().is_none_or(|lora| lora.b.train.is_none()) || self.joins(b, with) {
            return Ok(());
        }
        let scaled = self.scaled(b, &with, dout, first, O, N)?;
        let weight = if scaled.is_some() { Some(self.dense(b, &with)?) } else { None };
        let (C, Some(lora)) = (self.C, &mut self.lora) else { return Ok(()) };
        let R = lora.R;
        if let Some(train) = &mut lora.b.train {
            let scaled = scaled.as_ref().unwrap_or(dout);
            let t = with.t(at, N);
            b.matmul_tn_add(&mut train.sum(b)?.view(first * R, O * R), scaled, &t, &at.b(tn(O, R, N, 1.0)))?;
        }
        if let Some(weight) = weight {
            // the scaled gradient has been used: its place holds the outputs now, as they were before they were scaled
            let mut out = with.dora.rows(N, O);
            b.matmul_nt(&mut out, seen, &weight.view(first * C, O * C), &nt(N, O, C, 1.0))?;
            lora.widen(b, with, &mut out, (first, O), N, at, true)?;
            if let Some(dora) = &mut lora.dora {
                dora.backward_weight(b, dout, &out, first, O, N)?;
            }
        }
        Ok(())
    }

    /// Every weight that is no quantized base, in a fixed order.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let dense = if let Weight::Dense(p) = &self.weight { Some(p) } else { None };
        dense.into_iter().chain(&self.bias).chain(self.lora.iter().flat_map(Lora::params))
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let dense = if let Weight::Dense(p) = &mut self.weight { Some(p) } else { None };
        dense.into_iter().chain(&mut self.bias).chain(self.lora.iter_mut().flat_map(Lora::params_mut))
    }
}
