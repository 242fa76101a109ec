//! What NF4 does to each linear layer, measured while the model reads a text.
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::model::experts::{Experts, Rows};
use crate::model::linear::{Linear, Observer, Weight};
use crate::model::quantized::quantize_nf4;
use crate::ops::gradnorm::{self, GradNorm};
use crate::ops::grouped::Grouped;
use crate::ops::matmul::MatMul;
use crate::ops::residual::Residual;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Sums of squares of one layer: of its weight and of its outputs, and of what NF4 changes of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    weight: f64,
    weight_change: f64,
    output: f64,
    output_change: f64,
}

impl Sums {
    pub fn weight_error(&self) -> f64 {
        self.weight_change / self.weight.max(f64::MIN_POSITIVE)
    }
    pub fn activation_error(&self) -> f64 {
        self.output_change / self.output.max(f64::MIN_POSITIVE)
    }
}

/// Collects the sums of the layers it is to measure, over all that they are given.
pub(super) struct Measure {
    modules: BTreeSet<String>,
    pub sums: RefCell<BTreeMap<String, Sums>>,
}

impl Measure {
    pub fn new(modules: BTreeSet<String>) -> Measure {
        Measure { modules, sums: RefCell::default() }
    }

    /// `product` multiplies the layer's inputs with a weight like its own, into `outputs` values.
    fn add(
        &self,
        b: &dyn Backend,
        (name, weight): (&str, &Weight),
        (E, O, C): (usize, usize, usize),
        outputs: usize,
        product: impl Fn(&mut Buf, &Buf) -> Result<()>,
    ) -> Result<()> {
        let Weight::Dense(param) = weight else { return Ok(()) };
        if !self.modules.contains(name) {
            return Ok(());
        }
        let scope = Scope::new(b);
        let change = change(&scope, &param.value, E, (O, C))?;
        let mut y = scope.alloc(outputs, DType::F32)?;
        product(&mut y, &param.value)?;
        let output = squares(&scope, &y)?;
        product(&mut y, &change)?;
        let output_change = squares(&scope, &y)?;
        let mut all = self.sums.borrow_mut();
        let sums = all.entry(name.to_string()).or_default();
        sums.weight = squares(&scope, &param.value)?;
        sums.weight_change = squares(&scope, &change)?;
        sums.output += output;
        sums.output_change += output_change;
        Ok(())
    }
}

impl Observer for Measure {
    fn linear(&self, b: &dyn Backend, linear: &Linear, inp: &Buf, N: usize) -> Result<()> {
        let (O, C) = (linear.O, linear.C);
        let (o, c) = (O as u32, C as u32);
        let p = MatMul { I: N as u32, J: o, Q: c, ld_out: o, ld_a: c, ld_b: c, alpha: 1.0 };
        self.add(b, (&linear.name, &linear.weight), (1, O, C), N * O, |y, weight| b.matmul_nt(y, inp, weight, &p))
    }

    fn experts(&self, b: &dyn Backend, experts: &Experts, inp: &Buf, rows: &Rows) -> Result<()> {
        let (E, O, C) = (experts.names.len(), experts.O, experts.C);
        let p = Grouped { M: rows.M as u32, E: E as u32, J: O as u32, Q: C as u32, alpha: 1.0 };
        let product = |y: &mut Buf, weight: &Buf| b.grouped_nt(y, inp, weight, rows.offsets, &p);
        self.add(b, (&experts.stack.name, &experts.stack.weight), (E, O, C), rows.M * O, product)
    }
}

/// E weights [O, C] through NF4 and back, each with scales of its own as in files.
pub(super) fn rounded(scope: &Scope, weight: &Buf, E: usize, (O, C): (usize, usize)) -> Result<Buf> {
    let (b, P) = (scope.backend(), O * C);
    let out = scope.alloc(weight.len(), weight.dtype())?;
    for e in 0..E {
        let small = Weight::Nf4(quantize_nf4(b, &weight.view(e * P, P))?);
        let made = small.dequantize(b, &mut out.view(e * P, P), (O, C));
        small.quantized().into_iter().for_each(|buf| b.free(buf.view(0, buf.len())));
        made?;
    }
    Ok(out)
}

/// What that takes away: weight − rounded.
fn change(scope: &Scope, weight: &Buf, E: usize, (O, C): (usize, usize)) -> Result<Buf> {
    let (b, rounded) = (scope.backend(), rounded(scope, weight, E, (O, C))?);
    let mut out = scope.alloc(weight.len(), weight.dtype())?;
    b.residual_forward(&mut out, weight, &rounded, &Residual { P: weight.len() as u32, scale: -1.0 })?;
    Ok(out)
}

fn squares(scope: &Scope, values: &Buf) -> Result<f64> {
    let mut partial = scope.alloc(values.len().div_ceil(gradnorm::BLOCK), DType::F32)?;
    scope.backend().gradnorm_partial(&mut partial, values, &GradNorm { P: values.len() as u32 })?;
    Ok(scope.backend().download_f32(&partial)?.iter().map(|x| *x as f64).sum())
}
