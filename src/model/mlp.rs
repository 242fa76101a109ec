//! What follows attention in a block: a gated MLP, or a mixture of them (`moe.rs`).
//!
//! ```text
//! forward                                     backward (dout: ∂L/∂out)
//! gate, up = gate(n2), up(n2)       [N,F]     dh = down⁻(dout);  h, dgate, dup = swiglu⁻(dh, gate, up)
//! out = down(swiglu(gate, up))      [N,C]     dn = gate⁻(dgate) + up⁻(dup)
//! ```
use super::experts::Experts;
use super::linear::{Linear, LinearScratch, Projections};
use super::moe::{self, Moe};
use super::param::Param;
use super::spec::Spec;
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::swiglu::SwiGlu;

pub enum Mlp {
    Dense { gate_up: Projections, down: Box<Linear> },
    Moe(Box<Moe>),
}

/// What the backward wants of the forward, besides n2.
pub enum Saved {
    Dense { gate: Buf, up: Buf },
    Moe(moe::Saved),
}

/// What the MLPs of all layers share while they run.
pub enum Scratch {
    /// [N, F]: the hidden state and its gradient.
    Dense(Buf),
    Moe(Box<moe::Scratch>),
}

impl Saved {
    pub fn new(scope: &Scope, s: &Spec, N: usize, dtype: DType) -> Result<Saved> {
        let buf = || scope.alloc(N * s.F, dtype);
        Ok(match &s.moe {
            Some(moe) => Saved::Moe(moe::Saved::new(scope, s, moe, N, dtype)?),
            None => Saved::Dense { gate: buf()?, up: buf()? },
        })
    }
    /// Bytes of one for N tokens.
    pub fn bytes(s: &Spec, N: usize, dtype: DType) -> u64 {
        match &s.moe {
            Some(moe) => moe::Saved::bytes(s, moe, N, dtype),
            None => (2 * N * s.F * dtype.size()) as u64,
        }
    }
}

impl Scratch {
    /// `experts` is for the experts' rows.
    pub fn new(
        scope: &Scope,
        s: &Spec,
        experts: LinearScratch,
        N: usize,
        dtype: DType,
        train: bool,
    ) -> Result<Scratch> {
        Ok(match &s.moe {
            Some(moe) => Scratch::Moe(Box::new(moe::Scratch::new(scope, s, moe, experts, N, dtype, train)?)),
            None => Scratch::Dense(scope.alloc(N * s.F, dtype)?),
        })
    }
    /// What the experts share.
    pub fn experts(&mut self) -> Option<&mut LinearScratch> {
        if let Scratch::Moe(moe) = self { Some(&mut moe.linear) } else { None }
    }
    /// Bytes of one for N tokens, adapters and dequantized weights not counted.
    pub fn bytes(s: &Spec, N: usize, dtype: DType, train: bool) -> u64 {
        match &s.moe {
            Some(moe) => moe::Scratch::bytes(s, moe, N, dtype, train),
            None => (N * s.F * dtype.size()) as u64,
        }
    }
}

impl Mlp {
    /// Up to gate and up: all that the backward needs.
    pub fn forward_saved(
        &self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        n2: &Buf,
        N: usize,
    ) -> Result<()> {
        match (self, saved, t) {
            (Mlp::Dense { gate_up, .. }, Saved::Dense { gate, up }, _) => {
                gate_up.forward(b, linear, &mut [gate, up], n2, N)
            }
            (Mlp::Moe(moe), Saved::Moe(saved), Scratch::Moe(t)) => moe.forward_saved(b, s, saved, (t, linear), n2, N),
            _ => unreachable!("all three are of one spec"),
        }
    }

    /// out [N, C]; right after `forward_saved`.
    pub fn output(
        &self,
        b: &dyn Backend,
        s: &Spec,
        saved: &Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        out: &mut Buf,
        N: usize,
    ) -> Result<()> {
        match (self, saved, t) {
            (Mlp::Dense { down, .. }, Saved::Dense { gate, up }, Scratch::Dense(h)) => {
                b.swiglu_forward(h, gate, up, &swiglu_params(s, N))?;
                down.forward(b, linear, &mut [out], h, N)
            }
            (Mlp::Moe(moe), Saved::Moe(saved), Scratch::Moe(t)) => moe.output(b, s, saved, t, out, N),
            _ => unreachable!("all three are of one spec"),
        }
    }

    /// The first half of the backward: what wants dout [N, C]. `saved` is used up.
    pub fn backward_output(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        dout: &Buf,
        N: usize,
    ) -> Result<()> {
        match (self, saved, t) {
            (Mlp::Dense { down, .. }, Saved::Dense { gate, up }, Scratch::Dense(h)) => {
                down.backward_input(b, linear, h, &[dout], N, false)?;
                b.swiglu_backward(h, gate, up, &swiglu_params(s, N))?;
                down.backward_weight(b, linear, &[dout], h, N)
            }
            (Mlp::Moe(moe), Saved::Moe(saved), Scratch::Moe(t)) => moe.backward_output(b, s, saved, t, dout, N),
            _ => unreachable!("all three are of one spec"),
        }
    }

    /// The second half: dn [N, C] = ∂L/∂n2.
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        saved: &Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        dn: &mut Buf,
        n2: &Buf,
        N: usize,
    ) -> Result<()> {
        match (self, saved, t) {
            (Mlp::Dense { gate_up, .. }, Saved::Dense { gate, up }, _) => {
                gate_up.backward(b, linear, dn, &[gate, up], n2, N)
            }
            (Mlp::Moe(moe), Saved::Moe(saved), Scratch::Moe(t)) => moe.backward(b, s, saved, (t, linear), dn, n2, N),
            _ => unreachable!("all three are of one spec"),
        }
    }

    /// But for those of experts.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let (many, one) = match self {
            Mlp::Dense { gate_up, down } => (gate_up.0.as_slice(), &**down),
            Mlp::Moe(moe) => ([].as_slice(), &moe.router),
        };
        many.iter().chain([one])
    }
    pub fn experts(&self) -> impl Iterator<Item = &Experts> {
        let moe = if let Mlp::Moe(moe) = self { Some(moe) } else { None };
        moe.into_iter().flat_map(|moe| moe.gate_up.iter().chain([&moe.down]))
    }
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        self.linears().chain(self.experts().map(|experts| &experts.stack)).flat_map(Linear::params)
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let all: Vec<&mut Linear> = match self {
            Mlp::Dense { gate_up, down } => gate_up.0.iter_mut().chain([&mut **down]).collect(),
            Mlp::Moe(moe) => {
                let Moe { router, gate_up, down } = &mut **moe;
                let experts = gate_up.iter_mut().chain([down]).map(|experts| &mut experts.stack);
                [router].into_iter().chain(experts).collect()
            }
        };
        all.into_iter().flat_map(Linear::params_mut)
    }
}

fn swiglu_params(s: &Spec, N: usize) -> SwiGlu {
    let (slope, cubic) = s.activation.coefficients();
    SwiGlu { N: N as u32, F: s.F as u32, ld_gate: s.F as u32, ld_up: s.F as u32, slope, cubic }
}
