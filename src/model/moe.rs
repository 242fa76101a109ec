//! A mixture of experts in the place of a block's MLP: a router gives each token to S of E gated MLPs.
//!
//! ```text
//! forward                                            backward (dout: ∂L/∂out)
//! logits = router(n2)                    [N,E]       dy = gather(dout)                        [M,C]
//! weights, experts = top S of softmax    [N,S]       dh = down⁻(dy)
//! x = gather(n2), sorted by expert       [M,C]       h, dgate, dup, dweights = swiglu⁻(dh), dweights += down's bias·dy
//! gate, up = gate(x), up(x)              [M,F]       dx = gate⁻(dgate) + up⁻(dup)             [M,C]
//! h = weights·silu(gate)·up              [M,F]       dn = router⁻(top S⁻(dweights)) + gather⁻(dx)
//! out = Σ of the token's rows of down(h)  [N,C]
//! ```
//! Weighting down's input weights its output; down's bias is weighted by itself. gpt-oss has a clamped unit in the place of
//! silu(gate)·up, and makes gate and up with one product. Everything about the routing stays on the device. Shazeer et al. 2017, arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088.
use super::experts::{Experts, RowScale, Rows};
use super::linear::{Linear, LinearScratch};
use super::spec::{GatedUnit, MoeSpec, RouterWeights, Spec};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::clamped_swiglu::ClampedSwiGlu;
use crate::ops::route::{RouteGather, RouteIndex};
use crate::ops::routed_swiglu::RoutedSwiGlu;
use crate::ops::router::Router;

pub struct Moe {
    pub router: Linear,
    /// Gate and up, or one that makes both.
    pub gate_up: Vec<Experts>,
    pub down: Experts,
}

/// What the backward wants of the forward, besides n2.
pub struct Saved {
    logits: Buf,
    weights: Buf,
    experts: Buf,
    rows: Buf,
    places: Buf,
    offsets: Buf,
    /// [M, F] of gate and of up, or [M, 2F] of both.
    gate_up: Vec<Buf>,
}

/// What the mixtures of all layers share while they run.
pub struct Scratch {
    /// Of the experts.
    pub(super) linear: LinearScratch,
    /// [M, C]: rows sorted by expert: the experts' inputs, outputs, and gradients of outputs.
    rows: Buf,
    /// [M, F]: the hidden state and its gradient.
    f: Buf,
    /// Only for training.
    grads: Option<Grads>,
}

struct Grads {
    /// [M, C]: gradient of the experts' inputs.
    dx: Buf,
    dlogits: Buf,
    dweights: Buf,
}

impl Saved {
    pub fn new(scope: &Scope, s: &Spec, moe: &MoeSpec, N: usize, dtype: DType) -> Result<Saved> {
        let M = N * moe.S;
        let u32s = |len| scope.alloc(len, DType::U32);
        Ok(Saved {
            logits: scope.alloc(N * moe.E, dtype)?,
            weights: scope.alloc(M, DType::F32)?,
            experts: u32s(M)?,
            rows: u32s(M)?,
            places: u32s(M)?,
            offsets: u32s(moe.E + 1)?,
            gate_up: s.gate_up().iter().map(|l| scope.alloc(M * l.O(), dtype)).collect::<Result<_>>()?,
        })
    }

    /// Bytes of one for N tokens.
    pub fn bytes(s: &Spec, moe: &MoeSpec, N: usize, dtype: DType) -> u64 {
        (N * ((moe.E + 2 * moe.S * s.F) * dtype.size() + 4 * moe.S * 4) + (moe.E + 1) * 4) as u64
    }
}

impl Scratch {
    pub fn new(
        scope: &Scope,
        s: &Spec,
        moe: &MoeSpec,
        linear: LinearScratch,
        N: usize,
        dtype: DType,
        train: bool,
    ) -> Result<Scratch> {
        let M = N * moe.S;
        let grads = || {
            Ok(Grads {
                dx: scope.alloc(M * s.C, dtype)?,
                dlogits: scope.alloc(N * moe.E, dtype)?,
                dweights: scope.alloc(M, DType::F32)?,
            })
        };
        Ok(Scratch {
            linear,
            rows: scope.alloc(M * s.C, dtype)?,
            f: scope.alloc(M * s.F, dtype)?,
            grads: train.then(grads).transpose()?,
        })
    }

    /// Bytes of one for N tokens, adapters and dequantized weights not counted.
    pub fn bytes(s: &Spec, moe: &MoeSpec, N: usize, dtype: DType, train: bool) -> u64 {
        let rows = N * moe.S * (s.C + s.F) * dtype.size();
        let grads = N * ((moe.S * s.C + moe.E) * dtype.size() + moe.S * 4);
        (rows + if train { grads } else { 0 }) as u64
    }
}

/// The params of the ops for N tokens.
struct Sizes {
    N: usize,
    C: usize,
    F: usize,
    moe: MoeSpec,
}

impl Sizes {
    fn of(s: &Spec, N: usize) -> Sizes {
        let moe = s.moe.clone().expect("a model with mixtures says so");
        Sizes { N, C: s.C, F: s.F, moe }
    }
    fn M(&self) -> usize {
        self.N * self.moe.S
    }
    fn router(&self) -> Router {
        let norm = self.moe.weights == RouterWeights::Renormalised;
        Router { N: self.N as u32, E: self.moe.E as u32, S: self.moe.S as u32, norm: norm as u32 }
    }
    fn index(&self) -> RouteIndex {
        RouteIndex { N: self.N as u32, E: self.moe.E as u32, S: self.moe.S as u32 }
    }
    fn gather(&self) -> RouteGather {
        RouteGather { N: self.N as u32, S: self.moe.S as u32, C: self.C as u32 }
    }
    fn swiglu(&self) -> RoutedSwiGlu {
        RoutedSwiGlu { M: self.M() as u32, F: self.F as u32 }
    }
    fn clamped(&self, alpha: f32, limit: f32) -> ClampedSwiGlu {
        ClampedSwiGlu { M: self.M() as u32, F: self.F as u32, alpha, limit }
    }

    /// out [M, F] from gate and up, weighted.
    fn unit_forward(&self, b: &dyn Backend, out: &mut Buf, saved: &Saved) -> Result<()> {
        let Saved { weights, rows, gate_up, .. } = saved;
        match (self.moe.unit, &gate_up[..]) {
            (GatedUnit::SwiGlu, [gate, up]) => b.routed_swiglu_forward(out, gate, up, weights, rows, &self.swiglu()),
            (GatedUnit::Clamped { alpha, limit }, [both]) => {
                b.clamped_swiglu_forward(out, both, weights, rows, &self.clamped(alpha, limit))
            }
            _ => unreachable!("made for this unit"),
        }
    }

    /// In place: dout [M, F] becomes out, gate and up become their gradients.
    fn unit_backward(&self, b: &dyn Backend, dout: &mut Buf, saved: &mut Saved, dweights: &mut Buf) -> Result<()> {
        let Saved { weights, rows, gate_up, .. } = saved;
        match (self.moe.unit, &mut gate_up[..]) {
            (GatedUnit::SwiGlu, [gate, up]) => {
                b.routed_swiglu_backward(dout, gate, up, dweights, weights, rows, &self.swiglu())
            }
            (GatedUnit::Clamped { alpha, limit }, [both]) => {
                b.clamped_swiglu_backward(dout, both, dweights, weights, rows, &self.clamped(alpha, limit))
            }
            _ => unreachable!("made for this unit"),
        }
    }
}

impl Saved {
    /// The rows sorted by expert, as they are or by their routing weights.
    fn sorted(&self, M: usize, scale: RowScale) -> Rows<'_> {
        Rows { M, offsets: &self.offsets, slots: &self.rows, weights: &self.weights, scale }
    }
}

impl Moe {
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
        let p = Sizes::of(s, N);
        self.router.forward(b, linear, &mut [&mut saved.logits], n2, N)?;
        b.router_forward(&mut saved.weights, &mut saved.experts, &saved.logits, &p.router())?;
        b.route_index(&mut saved.rows, &mut saved.places, &mut saved.offsets, &saved.experts, &p.index())?;
        b.route_gather_forward(&mut t.rows, n2, &saved.places, &p.gather())?;
        let sorted = saved.sorted(p.M(), RowScale::Plain);
        for (experts, out) in self.gate_up.iter().zip(&saved.gate_up) {
            experts.forward(b, &t.linear, &mut out.view(0, out.len()), &t.rows, &sorted)?;
        }
        Ok(())
    }

    /// out [N, C]; right after `forward_saved`.
    pub fn output(
        &self,
        b: &dyn Backend,
        s: &Spec,
        saved: &Saved,
        t: &mut Scratch,
        out: &mut Buf,
        N: usize,
    ) -> Result<()> {
        let p = Sizes::of(s, N);
        p.unit_forward(b, &mut t.f, saved)?;
        self.down.forward(b, &t.linear, &mut t.rows, &t.f, &saved.sorted(p.M(), RowScale::Routed))?;
        b.fill(out, 0.0)?;
        b.route_gather_backward(out, &t.rows, &saved.places, &p.gather())
    }

    /// From dout [N, C]: gradients of down, of gate and up (in `saved`, which is used up) and of the routing weights.
    pub fn backward_output(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        t: &mut Scratch,
        dout: &Buf,
        N: usize,
    ) -> Result<()> {
        let p = Sizes::of(s, N);
        let Scratch { linear, rows: dy, f: h, grads } = t;
        let g = grads.as_mut().expect("the scratch was made for training");
        b.route_gather_forward(dy, dout, &saved.places, &p.gather())?;
        self.down.backward_input(b, linear, h, dy, &saved.sorted(p.M(), RowScale::Routed), false)?;
        p.unit_backward(b, h, saved, &mut g.dweights)?;
        let sorted = saved.sorted(p.M(), RowScale::Routed);
        self.down.backward_routing(b, &mut g.dweights, dy, &sorted)?;
        self.down.backward_weight(b, linear, dy, h, &sorted)
    }

    /// dn [N, C] = ∂L/∂n2; right after `backward_output`.
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
        let p = Sizes::of(s, N);
        let Saved { logits, weights, experts, places, gate_up, .. } = saved;
        let Scratch { linear: own, rows: x, grads, .. } = t;
        let g = grads.as_mut().expect("the scratch was made for training");
        let sorted = saved.sorted(p.M(), RowScale::Plain);
        b.route_gather_forward(x, n2, places, &p.gather())?;
        for (i, (layer, dout)) in self.gate_up.iter_mut().zip(gate_up).enumerate() {
            layer.backward_input(b, own, &mut g.dx, dout, &sorted, i > 0)?;
            layer.backward_weight(b, own, dout, x, &sorted)?;
        }

        b.router_backward(&mut g.dlogits, &g.dweights, weights, experts, logits, &p.router())?;
        self.router.backward_input(b, linear, dn, &[&g.dlogits], N, false)?;
        self.router.backward_weight(b, linear, &[&g.dlogits], n2, N)?;
        b.route_gather_backward(dn, &g.dx, places, &p.gather())
    }
}
