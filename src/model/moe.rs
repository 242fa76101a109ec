//! A mixture of experts in the place of a block's MLP: a router gives each token to S of E gated MLPs.
//!
//! ```text
//! forward                                            backward (dout: ∂L/∂out)
//! logits = router(n2)                    [N,E]       dy = gather(dout)                        [M,C]
//! weights, experts = top S of scores     [N,S]       dh = down⁻(dy)
//! x = gather(n2), sorted by expert       [M,C]       h, dgate, dup, dweights = swiglu⁻(dh), dweights += down's bias·dy
//! gate, up = gate(x), up(x)              [M,F]       dx = gate⁻(dgate) + up⁻(dup)             [M,C]
//! h = weights·silu(gate)·up              [M,F]       dn = router⁻(top S⁻(dweights)) + gather⁻(dx)
//! out = Σ of the token's rows of down(h)  [N,C]
//! ```
//! Weighting down's input weights its output; down's bias is weighted by itself. gpt-oss has a clamped unit in the place of
//! silu(gate)·up, and makes gate and up with one product. Beside the experts there may be an MLP for all tokens; what it gives is
//! added to out, and its gradient to dn. Everything about the routing stays on the device. Shazeer et al. 2017,
//! arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088.
use super::block::same;
use super::experts::{Experts, RowScale, Rows};
use super::linear::{Linear, LinearScratch, Observer};
use super::param::Param;
use super::shared::{self, Shared};
use super::spec::{GatedUnit, MoeSpec, RouterWeights, Scores, Spec};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::clamped_swiglu::ClampedSwiGlu;
use crate::ops::group_router::GroupRouter;
use crate::ops::route::{RouteGather, RouteIndex};
use crate::ops::routed_swiglu::RoutedSwiGlu;
use crate::ops::router::Router;
use std::rc::Rc;

pub struct Moe {
    pub router: Linear,
    /// Only for the choice, f32, and never trained.
    pub bias: Option<Param>,
    /// Gate and up, or one that makes both.
    pub gate_up: Vec<Experts>,
    pub down: Experts,
    pub shared: Option<Box<Shared>>,
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
    shared: Option<Box<shared::Saved>>,
}

/// What the mixtures of all layers share while they run.
pub struct Scratch {
    /// Of the experts.
    pub(super) linear: LinearScratch,
    /// [M, C]: rows sorted by expert: the experts' inputs, outputs, and gradients of outputs.
    rows: Buf,
    /// [M, F]: the hidden state and its gradient.
    f: Buf,
    shared: Option<Box<shared::Scratch>>,
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
        let (gate_up, _) = s.expert().expect("a model with mixtures says so");
        let M = N * moe.S;
        let shared = moe.shared.as_ref().map(|shared| shared::Saved::new(scope, shared, N, dtype).map(Box::new));
        let u32s = |len| scope.alloc(len, DType::U32);
        Ok(Saved {
            logits: scope.alloc(N * moe.E, dtype)?,
            weights: scope.alloc(M, DType::F32)?,
            experts: u32s(M)?,
            rows: u32s(M)?,
            places: u32s(M)?,
            offsets: u32s(moe.E + 1)?,
            gate_up: gate_up.iter().map(|l| scope.alloc(M * l.O(), dtype)).collect::<Result<_>>()?,
            shared: shared.transpose()?,
        })
    }

    /// Other handles of the same buffers.
    pub fn share(&self) -> Saved {
        Saved {
            logits: same(&self.logits),
            weights: same(&self.weights),
            experts: same(&self.experts),
            rows: same(&self.rows),
            places: same(&self.places),
            offsets: same(&self.offsets),
            gate_up: self.gate_up.iter().map(same).collect(),
            shared: self.shared.as_ref().map(|shared| Box::new(shared.share())),
        }
    }
}

impl Scratch {
    pub fn observe(&mut self, observer: Option<Rc<dyn Observer>>) {
        self.linear.observer = observer;
    }

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
        let shared = moe.shared.as_ref().map(|shared| shared::Scratch::new(scope, shared, N, dtype).map(Box::new));
        Ok(Scratch {
            linear,
            rows: scope.alloc(M * s.C, dtype)?,
            f: scope.alloc(M * moe.F, dtype)?,
            shared: shared.transpose()?,
            grads: train.then(grads).transpose()?,
        })
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
        Sizes { N, C: s.C, F: moe.F, moe }
    }
    fn M(&self) -> usize {
        self.N * self.moe.S
    }
    fn router(&self) -> Router {
        let norm = self.moe.weights == RouterWeights::Renormalised;
        Router { N: self.N as u32, E: self.moe.E as u32, S: self.moe.S as u32, norm: norm as u32 }
    }
    /// Where scores are sigmoids.
    fn group_router(&self) -> Option<GroupRouter> {
        let Scores::Sigmoid { groups, kept, scale, .. } = self.moe.scores else { return None };
        let Router { N, E, S, norm } = self.router();
        Some(GroupRouter { N, E, S, groups: groups as u32, kept: kept as u32, norm, scale })
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
        self.choose(b, saved, &p)?;
        b.route_index(&mut saved.rows, &mut saved.places, &mut saved.offsets, &saved.experts, &p.index())?;
        b.route_gather_forward(&mut t.rows, n2, &saved.places, &p.gather())?;
        let sorted = saved.sorted(p.M(), RowScale::Plain);
        for (experts, out) in self.gate_up.iter().zip(&saved.gate_up) {
            experts.forward(b, &t.linear, &mut out.view(0, out.len()), &t.rows, &sorted)?;
        }
        match (&self.shared, &mut saved.shared, &mut t.shared) {
            (Some(mlp), Some(saved), Some(t)) => mlp.forward_saved(b, saved, (t, linear), n2, N),
            _ => Ok(()),
        }
    }

    /// weights and experts from the logits.
    fn choose(&self, b: &dyn Backend, saved: &mut Saved, p: &Sizes) -> Result<()> {
        let Saved { logits, weights, experts, .. } = saved;
        match (p.group_router(), &self.bias) {
            (Some(groups), Some(bias)) => b.group_router_forward(weights, experts, logits, &bias.value, &groups),
            _ => b.router_forward(weights, experts, logits, &p.router()),
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
        let p = Sizes::of(s, N);
        p.unit_forward(b, &mut t.f, saved)?;
        self.down.forward(b, &t.linear, &mut t.rows, &t.f, &saved.sorted(p.M(), RowScale::Routed))?;
        match (&self.shared, &saved.shared, &mut t.shared) {
            (Some(mlp), Some(saved), Some(t)) => mlp.output(b, saved, (t, linear), out, N)?,
            _ => b.fill(out, 0.0)?,
        }
        b.route_gather_backward(out, &t.rows, &saved.places, &p.gather())
    }

    /// From dout [N, C]: gradients of down, of gate and up (in `saved`, which is used up) and of the routing weights.
    pub fn backward_output(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        dout: &Buf,
        N: usize,
    ) -> Result<()> {
        let p = Sizes::of(s, N);
        let Scratch { linear: own, rows: dy, f: h, shared, grads } = t;
        let g = grads.as_mut().expect("the scratch was made for training");
        b.route_gather_forward(dy, dout, &saved.places, &p.gather())?;
        self.down.backward_input(b, own, h, dy, &saved.sorted(p.M(), RowScale::Routed), false)?;
        p.unit_backward(b, h, saved, &mut g.dweights)?;
        let sorted = saved.sorted(p.M(), RowScale::Routed);
        self.down.backward_routing(b, &mut g.dweights, dy, &sorted)?;
        self.down.backward_weight(b, own, dy, h, &sorted)?;
        match (&mut self.shared, &mut saved.shared, shared) {
            (Some(mlp), Some(saved), Some(t)) => mlp.backward_output(b, saved, (t, linear), dout, N),
            _ => Ok(()),
        }
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
        let Saved { logits, weights, experts, places, gate_up, shared, .. } = saved;
        let Scratch { linear: own, rows: x, shared: shared_scratch, grads, .. } = t;
        let g = grads.as_mut().expect("the scratch was made for training");
        let sorted = saved.sorted(p.M(), RowScale::Plain);
        b.route_gather_forward(x, n2, places, &p.gather())?;
        for (i, (layer, dout)) in self.gate_up.iter_mut().zip(gate_up).enumerate() {
            layer.backward_input(b, own, &mut g.dx, dout, &sorted, i > 0)?;
            layer.backward_weight(b, own, dout, x, &sorted)?;
        }

        match p.group_router() {
            Some(groups) => b.group_router_backward(&mut g.dlogits, &g.dweights, weights, experts, logits, &groups)?,
            None => b.router_backward(&mut g.dlogits, &g.dweights, weights, experts, logits, &p.router())?,
        }
        if let (Some(mlp), Some(saved), Some(t)) = (&mut self.shared, shared, shared_scratch) {
            mlp.backward(b, saved, (t, linear), dn, n2, N)?;
        }
        self.router.backward_input(b, linear, dn, &[&g.dlogits], N, self.shared.is_some())?;
        self.router.backward_weight(b, linear, &[&g.dlogits], n2, N)?;
        b.route_gather_backward(dn, &g.dx, places, &p.gather())
    }
}
