//! Products with frozen weights in e4m3: Y = X·Wᵀ and dX = G·W of rows in 8 bits, each with a scale of its own (`ops/fp8.rs`).
//!
//! ```text
//! W [O, C]   codes and O scales, once; forward and backward see this one weight
//! forward    X's rows are quantized as they come:  Y = x(X)·w(W)ᵀ
//! backward   the sum is over outputs, so W's scales go into G, and its codes are turned:  dX = x(G∘scales)·w(codesᵀ), all scales 1
//! ```
//! Adapters, norms, attention and the head stay in the model's dtype, and so do layers whose sizes are no multiples of 16: tensor
//! cores do not take them.
use super::linear::low::With;
use super::linear::{Linear, LinearScratch, Weight};
use super::spec::{LinearSpec, Spec};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::fill::Fill;
use crate::ops::fp8::{Fp8, Fp8Quantize};
use crate::ops::fp8_matmul::Fp8MatMul;

/// What products with frozen weights are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// The model's dtype.
    #[default]
    Dtype,
    Fp8,
}

impl Compute {
    pub const ALL: [Compute; 2] = [Compute::Dtype, Compute::Fp8];
    pub fn name(self) -> &'static str {
        match self {
            Compute::Dtype => "dtype",
            Compute::Fp8 => "fp8",
        }
    }
    pub fn parse(word: &str) -> Option<Compute> {
        Self::ALL.into_iter().find(|compute| compute.name() == word)
    }
}

/// A frozen weight in e4m3.
pub struct Fp8Weight {
    /// [O, C].
    pub codes: Buf,
    /// [O].
    pub scales: Buf,
}

/// Whether a layer of these sizes is computed so.
pub fn fits(C: usize, parts: &[usize]) -> bool {
    C.is_multiple_of(16) && parts.iter().all(|O| O.is_multiple_of(16))
}

/// Linear layers of a model that may be computed so.
pub(super) fn fitting(spec: &Spec) -> usize {
    let fits = |linear: &LinearSpec| !super::load::is_router(spec, linear.module) && fits(linear.C, &linear.parts);
    (0..spec.layers).flat_map(|l| spec.linears(l)).filter(fits).count()
}

/// Puts a layer's weight into e4m3, whatever it was in; `dtype`: what it goes through where it was packed.
pub(super) fn pack(b: &dyn Backend, linear: &mut Linear, dtype: DType) -> Result<()> {
    let (O, C) = (linear.O, linear.C);
    let packed = Fp8Weight { codes: b.alloc(O * C, DType::U8)?, scales: b.alloc(O, DType::F32)? };
    let quantize =
        |inp: &Buf| quantize(b, &mut packed.codes.view(0, O * C), &mut packed.scales.view(0, O), inp, None, C);
    match &linear.weight {
        Weight::Dense(param) => quantize(&param.value)?,
        other => {
            let scope = Scope::new(b);
            let mut values = scope.alloc(O * C, dtype)?;
            other.dequantize(b, &mut values, (O, C))?;
            quantize(&values)?;
        }
    }
    linear.weight.frozen_mut().into_iter().for_each(|buf| b.free(buf.view(0, buf.len())));
    linear.weight = Weight::Fp8(packed);
    Ok(())
}

/// Rows of C values, times `by` if there is one.
fn quantize(b: &dyn Backend, codes: &mut Buf, scales: &mut Buf, inp: &Buf, by: Option<&Buf>, C: usize) -> Result<()> {
    let p = Fp8Quantize { N: scales.len() as u32, C: C as u32, by: by.is_some() as u32 };
    b.fp8_quantize(codes, scales, inp, by, &p)
}

/// out [N, O] = (or +=) rows of C codes times O rows of them.
fn product(
    b: &dyn Backend,
    out: &mut Buf,
    (a, a_scales): (&Buf, &Buf),
    (rows, scales): (&Buf, &Buf),
    add: bool,
) -> Result<()> {
    let (I, J) = (a_scales.len(), scales.len());
    let p = Fp8MatMul { I: I as u32, J: J as u32, Q: (a.len() / I.max(1)) as u32 };
    match add {
        true => b.fp8_matmul_add(out, a, a_scales, rows, scales, &p),
        false => b.fp8_matmul(out, a, a_scales, rows, scales, &p),
    }
}

/// What linears in e4m3 share while they run, sized for the largest; empty where there are none.
pub(super) struct Fp8Scratch {
    /// X or G [N, widest] and the scales of its rows.
    codes: Option<Buf>,
    scales: Option<Buf>,
    /// A weight's part, turned, and scales of 1 for its rows.
    turned: Option<Buf>,
    ones: Option<Buf>,
}

impl Fp8Scratch {
    pub fn new(scope: &Scope, linears: &[&Linear], N: usize) -> Result<Fp8Scratch> {
        let packed = || linears.iter().filter(|linear| linear.fp8().is_some());
        let parts = || packed().flat_map(|linear| linear.parts.iter().map(|O| (*O, linear.C)));
        let most = |of: fn((usize, usize)) -> usize| parts().map(of).max().unwrap_or(0);
        let (widest, turned, C) = (most(|(O, C)| O.max(C)), most(|(O, C)| O * C), most(|(_, C)| C));
        if widest == 0 {
            return Ok(Fp8Scratch { codes: None, scales: None, turned: None, ones: None });
        }
        let mut ones = scope.alloc(C, DType::F32)?;
        scope.backend().fill_forward(&mut ones, &Fill { P: C as u32, value: 1.0 })?;
        let bytes = |len| scope.alloc(len, DType::U8).map(Some);
        let (codes, turned) = (bytes(N * widest)?, bytes(turned)?);
        Ok(Fp8Scratch { codes, scales: Some(scope.alloc(N, DType::F32)?), turned, ones: Some(ones) })
    }

    /// N rows of `width` codes, and their scales.
    fn rows(&self, N: usize, width: usize) -> (Buf, Buf) {
        (view(&self.codes, N * width), view(&self.scales, N))
    }
}

fn view(buf: &Option<Buf>, len: usize) -> Buf {
    buf.as_ref().expect("the scratch was made for these linears").view(0, len)
}

impl Linear {
    pub fn fp8(&self) -> Option<&Fp8Weight> {
        if let Weight::Fp8(weight) = &self.weight { Some(weight) } else { None }
    }

    /// outs [N, parts[i]] from inp [N, C].
    pub fn forward<'a>(
        &self,
        b: &dyn Backend,
        with: impl Into<With<'a>>,
        outs: &mut [&mut Buf],
        inp: &Buf,
        N: usize,
    ) -> Result<()> {
        let with = with.into();
        if self.fp8().is_some() {
            self.quantize_fp8(b, &with, inp, N)?;
        }
        self.forward_quantized(b, with, outs, inp, N)
    }

    /// X [N, C] into the scratch, for the `forward_fp8` of this layer and of others that read the same X.
    pub(super) fn quantize_fp8(&self, b: &dyn Backend, scratch: &LinearScratch, inp: &Buf, N: usize) -> Result<()> {
        let (mut codes, mut scales) = scratch.fp8.rows(N, self.C);
        quantize(b, &mut codes, &mut scales, inp, None, self.C)
    }

    /// out [N, O] = (or +=) X·Wᵀ by the rows first..first + O, of the X in the scratch.
    pub(super) fn forward_fp8(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        out: &mut Buf,
        weight: &Fp8Weight,
        (first, O): (usize, usize),
        N: usize,
        add: bool,
    ) -> Result<()> {
        let (codes, scales) = scratch.fp8.rows(N, self.C);
        let rows = (&weight.codes.view(first * self.C, O * self.C), &weight.scales.view(first, O));
        product(b, out, (&codes, &scales), rows, add)
    }

    /// dinp [N, C] = (or +=) dout [N, O] times the rows first..first + O.
    pub(super) fn backward_fp8(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        dinp: &mut Buf,
        weight: &Fp8Weight,
        dout: &Buf,
        (first, O): (usize, usize),
        N: usize,
        add: bool,
    ) -> Result<()> {
        let C = self.C;
        let (mut codes, mut scales) = scratch.fp8.rows(N, O);
        quantize(b, &mut codes, &mut scales, dout, Some(&weight.scales.view(first, O)), O)?;
        let mut turned = view(&scratch.fp8.turned, O * C);
        let p = Fp8 { N: O as u32, C: C as u32 };
        b.fp8_transpose(&mut turned, &weight.codes.view(first * C, O * C), &p)?;
        product(b, dinp, (&codes, &scales), (&turned, &view(&scratch.fp8.ones, C)), add)
    }
}
