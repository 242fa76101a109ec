//! A linear layer of each expert, on its own rows: as [`Linear`], but every product is one by group.
//!
//! forward   Y = X·W[e]ᵀ + s·(X·A[e]ᵀ)·B[e]ᵀ                     for the rows X of expert e
//! backward  dX = G·W[e] + s·P·A[e],  P = G·B[e];   dA[e] = s·Pᵀ·X,  dB[e] = s·Gᵀ·(X·A[e]ᵀ),  dW[e] = Gᵀ·X
//! The experts' matrices lie one below the other, W as [E·O, C], so that whatever holds a weight holds theirs, too.
use super::dropout::Dropout;
use super::linear::{Linear, LinearScratch, Lora, Weight, part};
use super::lora::{self, Rules, Shape};
use super::param::Param;
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::grouped::Grouped;

pub struct Experts {
    /// Modules of the experts: `model.layers.0.mlp.experts.3.gate_proj`.
    pub names: Vec<String>,
    /// Output channels of one.
    pub O: usize,
    /// All of them, as one layer of E·O outputs.
    pub stack: Linear,
}

/// Rows sorted by expert.
pub struct Rows<'a> {
    pub M: usize,
    /// Expert e has the rows offsets[e] <= m < offsets[e+1].
    pub offsets: &'a Buf,
}

impl Experts {
    fn product(&self, M: usize, J: usize, Q: usize, alpha: f32) -> Grouped {
        Grouped { M: M as u32, E: self.names.len() as u32, J: J as u32, Q: Q as u32, alpha }
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
        let (M, O, C) = (rows.M, self.O, self.stack.C);
        let weight = self.stack.dense(b, scratch)?;
        b.grouped_nt(out, inp, &weight, rows.offsets, &self.product(M, O, C, 1.0))?;
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
        let (M, O, C) = (rows.M, self.O, self.stack.C);
        let weight = self.stack.dense(b, scratch)?;
        if add {
            b.grouped_nn_add(dinp, dout, &weight, rows.offsets, &self.product(M, C, O, 1.0))?;
        } else {
            b.grouped_nn(dinp, dout, &weight, rows.offsets, &self.product(M, C, O, 1.0))?;
        }
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
        let (M, O, C) = (rows.M, self.O, self.stack.C);
        let E = self.names.len() as u32;
        let tn = |J: usize, Q: usize, alpha| Grouped { M: M as u32, E, J: J as u32, Q: Q as u32, alpha };
        if let Weight::Dense(Param { train: Some(train), .. }) = &mut self.stack.weight {
            b.grouped_tn_add(&mut train.grad, dout, inp, rows.offsets, &tn(O, C, 1.0))?;
        }
        if let Some(lora) = &mut self.stack.lora {
            let (R, s, seen) = (lora.R, lora.scale, lora.input(b, scratch, inp, M * C)?);
            if let Some(train) = &mut lora.a.train {
                b.grouped_tn_add(&mut train.grad, &part(&scratch.p, M * R), &seen, rows.offsets, &tn(R, C, s))?;
            }
            if let Some(train) = &mut lora.b.train {
                let mut xa = part(&scratch.xa, M * R);
                b.grouped_nt(&mut xa, &seen, &lora.a.value, rows.offsets, &tn(R, C, 1.0))?;
                b.grouped_tn_add(&mut train.grad, dout, &xa, rows.offsets, &tn(O, R, s))?;
            }
        }
        Ok(())
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
        let (r, R, C, O) = (shape.r, shape.R(), self.stack.C, self.O);
        let names = |side: &str| -> Vec<String> { self.names.iter().map(|n| lora::weight_name(n, side)).collect() };
        let mut a = Param::stack(b, names("A"), &[r, C], [R, C], dtype)?;
        let mut bb = Param::stack(b, names("B"), &[O, r], [O, R], dtype)?;
        if train {
            a.unfreeze(b)?;
            bb.unfreeze(b)?;
        }
        for (i, name) in names("A").iter().enumerate() {
            a.set_part(b, i, &lora::first_values(seed, name, r, C))?;
        }
        self.stack.lora =
            Some(Lora { a, b: bb, R, scale: shape.scale, dora: None, dropout: Dropout::new(dropout, &self.names[0]) });
        Ok(())
    }
}
