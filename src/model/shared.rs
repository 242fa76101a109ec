//! The experts that all tokens share, as one gated MLP beside the mixture; some models weigh it by a sigmoid per token.
//!
//! ```text
//! forward                                         backward (dout: ∂L/∂out)
//! gate, up = gate(n2), up(n2)           [N,F]     dh = down⁻(dout)
//! w = σ(weigh(n2)), or 1                [N]       h, dgate, dup, dw = swiglu⁻(dh)
//! out = down(w·silu(gate)·up)           [N,C]     dn = gate⁻(dgate) + up⁻(dup) + weigh⁻(σ⁻(dw))
//! ```
//! To weigh down's input is to weigh its output. A sigmoid is what the choice of one expert among one gives.
use super::block::same;
use super::linear::{Linear, LinearScratch, Projections};
use super::spec::{SharedSpec, Weighed};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::group_router::GroupRouter;
use crate::ops::routed_swiglu::RoutedSwiGlu;
use crate::ops::swiglu::SwiGlu;

pub struct Shared {
    pub gate_up: Projections,
    pub down: Linear,
    /// One output channel.
    pub weigh: Option<Linear>,
}

/// What the backward wants of the forward, besides n2.
pub struct Saved {
    gate: Buf,
    up: Buf,
    weight: Option<Weight>,
}

/// [N] each; `one` is the index of the only expert.
struct Weight {
    logits: Buf,
    weights: Buf,
    one: Buf,
}

/// What the layers share while they run.
pub struct Scratch {
    /// [N, F]: the hidden state and its gradient.
    h: Buf,
    weigh: Option<Weigh>,
}

struct Weigh {
    /// The sigmoid's bias, 0.
    bias: Buf,
    /// 0..N: rows are in their places.
    rows: Buf,
    dlogits: Buf,
    dweights: Buf,
}

impl Saved {
    pub fn new(scope: &Scope, shared: &SharedSpec, N: usize, dtype: DType) -> Result<Saved> {
        let buf = || scope.alloc(N * shared.F, dtype);
        // f32: in 16 bits, rows of one element could not be told apart
        let weight = || {
            let (logits, weights) = (scope.alloc(N, DType::F32)?, scope.alloc(N, DType::F32)?);
            Ok(Weight { logits, weights, one: scope.alloc(N, DType::U32)? })
        };
        let weighed = matches!(shared.weighed, Weighed::Sigmoid { .. });
        Ok(Saved { gate: buf()?, up: buf()?, weight: weighed.then(weight).transpose()? })
    }
    /// Other handles of the same buffers.
    pub fn share(&self) -> Saved {
        let weight = |w: &Weight| Weight { logits: same(&w.logits), weights: same(&w.weights), one: same(&w.one) };
        Saved { gate: same(&self.gate), up: same(&self.up), weight: self.weight.as_ref().map(weight) }
    }
}

impl Scratch {
    pub fn new(scope: &Scope, shared: &SharedSpec, N: usize, dtype: DType) -> Result<Scratch> {
        let weigh = || {
            let (f32s, mut rows) = (|len| scope.alloc(len, DType::F32), scope.alloc(N, DType::U32)?);
            scope.backend().upload_u32(&mut rows, &(0..N as u32).collect::<Vec<_>>())?;
            Ok(Weigh { bias: f32s(1)?, rows, dlogits: f32s(N)?, dweights: f32s(N)? })
        };
        let weighed = matches!(shared.weighed, Weighed::Sigmoid { .. });
        Ok(Scratch { h: scope.alloc(N * shared.F, dtype)?, weigh: weighed.then(weigh).transpose()? })
    }
}

/// The choice of one expert among one: its weight is σ(logit).
fn sigmoid(N: usize) -> GroupRouter {
    GroupRouter { N: N as u32, E: 1, S: 1, groups: 1, kept: 1, norm: 0, scale: 1.0 }
}

impl Shared {
    fn weighed(&self, N: usize) -> RoutedSwiGlu {
        RoutedSwiGlu { M: N as u32, F: self.down.C as u32 }
    }
    fn plain(&self, N: usize) -> SwiGlu {
        let F = self.down.C as u32;
        SwiGlu { N: N as u32, F, ld_gate: F, ld_up: F, act: 0, slope: 1.0, cubic: 0.0 }
    }

    /// Up to gate, up and the weight: all that the backward needs.
    pub fn forward_saved(
        &self,
        b: &dyn Backend,
        saved: &mut Saved,
        (t, linear): (&Scratch, &LinearScratch),
        n2: &Buf,
        N: usize,
    ) -> Result<()> {
        if let (Some(weigh), Some(w), Some(t)) = (&self.weigh, &mut saved.weight, &t.weigh) {
            weigh.forward(b, linear, &mut [&mut w.logits], n2, N)?;
            b.group_router_forward(&mut w.weights, &mut w.one, &w.logits, &t.bias, &sigmoid(N))?;
        }
        self.gate_up.forward(b, linear, &mut [&mut saved.gate, &mut saved.up], n2, N)
    }

    /// out [N, C].
    pub fn output(
        &self,
        b: &dyn Backend,
        saved: &Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        out: &mut Buf,
        N: usize,
    ) -> Result<()> {
        let Saved { gate, up, weight } = saved;
        match (weight, &t.weigh) {
            (Some(w), Some(weigh)) => {
                b.routed_swiglu_forward(&mut t.h, gate, up, &w.weights, &weigh.rows, &self.weighed(N))?
            }
            _ => b.swiglu_forward(&mut t.h, gate, up, &self.plain(N))?,
        }
        self.down.forward(b, linear, &mut [out], &t.h, N)
    }

    /// From dout [N, C]: gradients of down, of gate, up (in `saved`, which is used up) and of the weight.
    pub fn backward_output(
        &mut self,
        b: &dyn Backend,
        saved: &mut Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        dout: &Buf,
        N: usize,
    ) -> Result<()> {
        self.down.backward_input(b, linear, &mut t.h, &[dout], N, false)?;
        let Saved { gate, up, weight } = saved;
        match (weight, &mut t.weigh) {
            (Some(w), Some(weigh)) => {
                let Weigh { rows, dweights, .. } = weigh;
                b.routed_swiglu_backward(&mut t.h, gate, up, dweights, &w.weights, rows, &self.weighed(N))?
            }
            _ => b.swiglu_backward(&mut t.h, gate, up, &self.plain(N))?,
        }
        self.down.backward_weight(b, linear, &[dout], &t.h, N)
    }

    /// dn [N, C] = ∂L/∂n2; after `backward_output`.
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        saved: &Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        dn: &mut Buf,
        n2: &Buf,
        N: usize,
    ) -> Result<()> {
        self.gate_up.backward(b, linear, (dn, true), &[&saved.gate, &saved.up], n2, N)?;
        let (Some(weigh), Some(w), Some(t)) = (&mut self.weigh, &saved.weight, &mut t.weigh) else { return Ok(()) };
        b.group_router_backward(&mut t.dlogits, &t.dweights, &w.weights, &w.one, &w.logits, &sigmoid(N))?;
        weigh.backward_input(b, linear, dn, &[&t.dlogits], N, true)?;
        weigh.backward_weight(b, linear, &[&t.dlogits], n2, N)
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.gate_up.0.iter().chain([&self.down]).chain(&self.weigh)
    }
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.gate_up.0.iter_mut().chain([&mut self.down]).chain(&mut self.weigh)
    }
}
