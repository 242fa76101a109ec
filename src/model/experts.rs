//! A linear layer of each expert, on its own rows: as [`Linear`], but every product is one by group.
//!
//! forward   Y = X·W[e]ᵀ + w·bias[e] + s·(X·A[e]ᵀ)·B[e]ᵀ         for the rows X of expert e
//! backward  dX = G·W[e] + s·P·A[e],  P = G·B[e];   dA[e] = s·Pᵀ·X,  dB[e] = s·Gᵀ·(X·A[e]ᵀ),  dW[e] = Gᵀ·X
//! The experts' matrices lie one below the other, W as [E·O, C] (or each transposed, [E·C, O]), so that whatever holds a weight
//! holds theirs, too. A packed weight is unpacked some experts at a time.
use super::dropout::Dropout;
use super::linear::{Linear, LinearScratch, Lora, Weight, part};
use super::lora::{self, Rules, Shape};
use super::param::Param;
use crate::backend::{Backend, Buf, Charge, Scope, Use};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::expert_bias::ExpertBias;
use crate::ops::grouped::Grouped;

pub struct Experts {
    /// Modules of the experts: `model.layers.0.mlp.experts.3.gate_proj`.
    pub names: Vec<String>,
    /// Output channels of one.
    pub O: usize,
    /// Input channels.
    pub C: usize,
    pub layout: Layout,
    /// All of them, as one matrix and one bias.
    pub stack: Linear,
}

/// How an expert's weight lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// [O, C], as a linear layer's.
    Rows,
    /// [C, O].
    Columns,
}

/// Rows sorted by expert.
pub struct Rows<'a> {
    pub M: usize,
    /// Expert e has the rows offsets[e] <= m < offsets[e+1].
    pub offsets: &'a Buf,
    /// The slot of each row, and the routing weight of each slot.
    pub slots: &'a Buf,
    pub weights: &'a Buf,
    pub scale: RowScale,
}

/// Whether the input rows were multiplied by their routing weights, so that the bias is to be, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowScale {
    Plain,
    Routed,
}

/// The weights of some experts, ready for a product.
struct Part {
    weight: Buf,
    offsets: Buf,
    E: usize,
}

impl Experts {
    fn E(&self) -> usize {
        self.names.len()
    }
    fn product(&self, M: usize, J: usize, Q: usize, alpha: f32) -> Grouped {
        Grouped { M: M as u32, E: self.E() as u32, J: J as u32, Q: Q as u32, alpha }
    }
    fn bias(&self, rows: &Rows) -> ExpertBias {
        let weighted = (rows.scale == RowScale::Routed) as u32;
        ExpertBias { M: rows.M as u32, E: self.E() as u32, O: self.O as u32, weighted }
    }

    /// Calls `then` with the weights of all experts: at once, or some after some where they are unpacked.
    fn parts(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        rows: &Rows,
        mut then: impl FnMut(Part) -> Result<()>,
    ) -> Result<()> {
        let one = self.O * self.C;
        let at_once = match &self.stack.weight {
            Weight::Mxfp4(packed) => packed.at_once / one,
            _ => self.E(),
        };
        for first in (0..self.E()).step_by(at_once) {
            let E = at_once.min(self.E() - first);
            let weight = self.stack.dense_part(b, scratch, first * one, E * one)?;
            then(Part { weight, offsets: rows.offsets.view(first, E + 1), E })?;
        }
        Ok(())
    }

    /// out [M, O] from inp [M, C].
    pub fn forward(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        out: &mut Buf,
        inp: &Buf,
        rows: &Rows,
    ) -> Result<()> {
        let (M, O, C) = (rows.M, self.O, self.C);
        if let Some(observer) = &scratch.observer {
            observer.experts(b, self, inp, rows)?;
        }
        self.parts(b, scratch, rows, |part| {
            let p = Grouped { E: part.E as u32, ..self.product(M, O, C, 1.0) };
            match self.layout {
                Layout::Rows => b.grouped_nt(out, inp, &part.weight, &part.offsets, &p),
                Layout::Columns => b.grouped_nn(out, inp, &part.weight, &part.offsets, &p),
            }
        })?;
        if let Some(bias) = &self.stack.bias {
            b.expert_bias_forward(out, &bias.value, rows.offsets, rows.weights, rows.slots, &self.bias(rows))?;
        }
        if let Some(lora) = &self.stack.lora {
            let mut xa = part(&scratch.xa, M * lora.R);
            let inp = lora.input(b, scratch, inp, M * C)?;
            b.grouped_nt(&mut xa, &inp, &lora.a.value, rows.offsets, &self.product(M, lora.R, C, 1.0))?;
            b.grouped_nt_add(out, &xa, &lora.b.value, rows.offsets, &self.product(M, O, lora.R, lora.scale))?;
        }
        Ok(())
    }

    /// dinp [M, C] = (or +=) ∂L/∂inp from dout [M, O]. `backward_weight` of the same experts comes next.
    pub fn backward_input(
        &self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        dinp: &mut Buf,
        dout: &Buf,
        rows: &Rows,
        add: bool,
    ) -> Result<()> {
        let (M, O, C) = (rows.M, self.O, self.C);
        self.parts(b, scratch, rows, |part| {
            let p = Grouped { E: part.E as u32, ..self.product(M, C, O, 1.0) };
            match (self.layout, add) {
                (Layout::Rows, false) => b.grouped_nn(dinp, dout, &part.weight, &part.offsets, &p),
                (Layout::Rows, true) => b.grouped_nn_add(dinp, dout, &part.weight, &part.offsets, &p),
                (Layout::Columns, false) => b.grouped_nt(dinp, dout, &part.weight, &part.offsets, &p),
                (Layout::Columns, true) => b.grouped_nt_add(dinp, dout, &part.weight, &part.offsets, &p),
            }
        })?;
        if let Some(lora) = &self.stack.lora {
            let mut p = part(&scratch.p, M * lora.R);
            b.grouped_nn(&mut p, dout, &lora.b.value, rows.offsets, &self.product(M, lora.R, O, 1.0))?;
            let params = self.product(M, C, lora.R, lora.scale);
            lora.input_backward(b, scratch, dinp, M * C, |out, add| match add {
                true => b.grouped_nn_add(out, &p, &lora.a.value, rows.offsets, &params),
                false => b.grouped_nn(out, &p, &lora.a.value, rows.offsets, &params),
            })?;
        }
        Ok(())
    }

    /// Adds to the gradients of what is trained here, from dout [M, O] and inp [M, C]; right after `backward_input`.
    pub fn backward_weight(
        &mut self,
        b: &dyn Backend,
        scratch: &LinearScratch,
        dout: &Buf,
        inp: &Buf,
        rows: &Rows,
    ) -> Result<()> {
        let (M, O, C) = (rows.M, self.O, self.C);
        let (E, bias) = (self.E() as u32, self.bias(rows));
        let tn = |J: usize, Q: usize, alpha| Grouped { M: M as u32, E, J: J as u32, Q: Q as u32, alpha };
        if let Weight::Dense(Param { train: Some(train), .. }) = &mut self.stack.weight {
            match self.layout {
                Layout::Rows => b.grouped_tn_add(train.sum(b)?, dout, inp, rows.offsets, &tn(O, C, 1.0))?,
                Layout::Columns => b.grouped_tn_add(train.sum(b)?, inp, dout, rows.offsets, &tn(C, O, 1.0))?,
            }
        }
        if let Some(Param { train: Some(train), .. }) = &mut self.stack.bias {
            b.expert_bias_backward(train.sum(b)?, dout, rows.offsets, rows.weights, rows.slots, &bias)?;
        }
        if let Some(lora) = &mut self.stack.lora {
            let (R, s, seen) = (lora.R, lora.scale, lora.input(b, scratch, inp, M * C)?);
            if let Some(train) = &mut lora.a.train {
                b.grouped_tn_add(train.sum(b)?, &part(&scratch.p, M * R), &seen, rows.offsets, &tn(R, C, s))?;
            }
            if let Some(train) = &mut lora.b.train {
                let mut xa = part(&scratch.xa, M * R);
                b.grouped_nt(&mut xa, &seen, &lora.a.value, rows.offsets, &tn(R, C, 1.0))?;
                b.grouped_tn_add(train.sum(b)?, dout, &xa, rows.offsets, &tn(O, R, s))?;
            }
        }
        Ok(())
    }

    /// Adds to the gradients of the routing weights [M] what the bias has to do with them, from dout [M, O].
    pub fn backward_routing(&self, b: &dyn Backend, dweights: &mut Buf, dout: &Buf, rows: &Rows) -> Result<()> {
        match (&self.stack.bias, rows.scale) {
            (Some(bias), RowScale::Routed) => {
                b.expert_bias_backward_weights(dweights, dout, &bias.value, rows.offsets, rows.slots, &self.bias(rows))
            }
            _ => Ok(()),
        }
    }

    /// Rank and scale of the adapters of these experts: PEFT names them one by one, here it is all alike or none.
    pub fn targeted(&self, rules: &Rules) -> Result<Option<Shape>> {
        let shape = |name: &String| Ok(if rules.targets(name)? { Some(rules.shape(name)?) } else { None });
        let shapes = self.names.iter().map(shape).collect::<Result<Vec<_>>>()?;
        let first = shapes.first().copied().flatten();
        if let Some(other) = shapes.iter().position(|shape| *shape != first) {
            let what = "chooses some experts and not others, or gives them other ranks: name a module of all of them";
            return Err(rules.error("target_modules", format!("{what} ({})", self.names[other])));
        }
        if first.is_some() && rules.use_dora() {
            let what = "DoRA on experts is not supported: exclude them, or set use_dora to false";
            return Err(rules.error("use_dora", what));
        }
        Ok(first)
    }

    /// As [`lora::attach`], an adapter for each expert.
    pub fn attach(
        &mut self,
        (shape, dropout): (Shape, f64),
        b: &dyn Backend,
        dtype: DType,
        train: bool,
        seed: u64,
    ) -> Result<()> {
        let (r, R, C, O) = (shape.r, shape.R(), self.C, self.O);
        let _charge = Charge::to(b, Use::Adapter);
        let names = |side: &str| -> Vec<String> { self.names.iter().map(|n| lora::weight_name(n, side)).collect() };
        let made = Scope::new(b);
        let mut a = Param::stack(b, names("A"), &[r, C], [R, C], dtype)?;
        made.hold(&a.value);
        let mut bb = Param::stack(b, names("B"), &[O, r], [O, R], dtype)?;
        made.hold(&bb.value);
        if train {
            a.unfreeze(b)?;
            bb.unfreeze(b)?;
        }
        for (i, name) in names("A").iter().enumerate() {
            if !b.is_dry() {
                a.set_part(b, i, &lora::first_values(seed, name, r, C))?;
            }
        }
        let dropout = Dropout::new(dropout, &self.names[0]);
        self.stack.lora = Some(Lora { a, b: bb, R, scale: shape.scale, dora: None, dropout, start: None });
        made.keep();
        Ok(())
    }
}
