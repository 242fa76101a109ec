//! What follows attention in a block: an MLP with a gate or without one, or a mixture of experts (`moe.rs`).
//!
//! ```text
//! forward                                     backward (dout: ∂L/∂out)
//! gate, up = gate(n2), up(n2)       [N,F]     dh = down⁻(dout);  h, dgate, dup = swiglu⁻(dh, gate, up)
//! out = down(swiglu(gate, up))      [N,C]     dn = gate⁻(dgate) + up⁻(dup)
//!
//! up = up(n2)                       [N,F]     dh = down⁻(dout);  h, dup = activation⁻(dh, up)
//! out = down(activation(up))        [N,C]     dn = up⁻(dup)
//! ```
//! In tiles: the forward makes out some tokens at a time and leaves nothing; the backward makes gate and up of the same tokens again.
use super::block::same;
use super::experts::Experts;
use super::linear::low::{self, Ranks};
use super::linear::{Linear, LinearScratch, Observer, Projections};
use super::moe::{self, Moe};
use super::param::Param;
use super::spec::{Gating, MlpKind, Spec};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::activation::Activation;
use crate::ops::swiglu::SwiGlu;
use std::rc::Rc;

pub enum Mlp {
    Dense { gate_up: Projections, down: Box<Linear> },
    Plain { up: Box<Linear>, down: Box<Linear> },
    Moe(Box<Moe>),
}

/// What the backward wants of the forward, besides n2; of layers of each kind.
pub struct Saved {
    dense: Option<Dense>,
    moe: Option<moe::Saved>,
    /// Tokens that `dense` has room for, where they are not all.
    tile: Option<usize>,
}

struct Dense {
    /// `None`: there is no gate.
    gate: Option<Buf>,
    up: Buf,
    low: Low,
}

/// T of the adapters, where it waits for the backward.
#[derive(Default)]
struct Low {
    gate_up: Option<Buf>,
    down: Option<Buf>,
}

/// What takes turns with other layers' and other parts' buffers.
pub struct Room {
    /// As in [`Scratch`].
    h: Option<Buf>,
    /// Of layers that compute gate and up again.
    dense: Option<Dense>,
}

impl Room {
    /// Lengths and types of what [`Room::of`] wants; `again`: some layer computes gate and up again.
    pub fn sizes(s: &Spec, N: usize, dtype: DType, tile: Option<usize>, again: bool) -> Vec<(usize, DType)> {
        let count = match (s.mlps().contains(&MlpKind::Dense), again, s.gating) {
            (false, ..) => 0,
            (_, false, _) => 1,
            (.., Gating::Plain) => 2,
            (.., Gating::Gated) => 3,
        };
        vec![(tile.unwrap_or(N) * s.F, dtype); count]
    }
    pub fn of(mut bufs: impl Iterator<Item = Buf>) -> Room {
        let h = bufs.next();
        let up = bufs.next();
        let gate = bufs.next();
        Room { h, dense: up.map(|up| Dense { gate, up, low: Low::default() }) }
    }
}

/// What the MLPs of all layers share while they run.
pub struct Scratch {
    /// [N, F]: the hidden state and its gradient.
    dense: Option<Buf>,
    moe: Option<Box<moe::Scratch>>,
}

impl Saved {
    /// With a `tile`, MLPs without experts run so many tokens at a time. `room`: where gate and up lie, if not apart. `ranks`: of
    /// adapters whose T stays.
    pub fn new(
        scope: &Scope,
        s: &Spec,
        kinds: &[MlpKind],
        N: usize,
        dtype: DType,
        tile: Option<usize>,
        room: Option<&Room>,
        ranks: Ranks,
    ) -> Result<Saved> {
        let ranks = if tile.is_some() { Ranks::default() } else { ranks };
        let low = || {
            let kept = |ranks| low::kept(scope, ranks, N, dtype);
            Ok(Low { gate_up: kept(ranks.gate_up)?, down: kept(ranks.down)? })
        };
        let buf = || scope.alloc(tile.unwrap_or(N) * s.F, dtype);
        let gated = s.gating == Gating::Gated;
        let dense = || match room.and_then(|room| room.dense.as_ref()) {
            Some(dense) => Ok(Dense { low: low()?, ..dense.share() }),
            None => Ok(Dense { gate: gated.then(buf).transpose()?, up: buf()?, low: low()? }),
        };
        let dense = kinds.contains(&MlpKind::Dense).then(dense).transpose()?;
        let moe = s.moe.as_ref().filter(|_| kinds.contains(&MlpKind::Moe));
        Ok(Saved { dense, moe: moe.map(|moe| moe::Saved::new(scope, s, moe, N, dtype)).transpose()?, tile })
    }
    /// Other handles of the same buffers.
    pub fn share(&self) -> Saved {
        let moe = self.moe.as_ref().map(moe::Saved::share);
        Saved { dense: self.dense.as_ref().map(Dense::share), moe, tile: self.tile }
    }
    /// For n tokens of a tile.
    fn tile(&self, n: usize, F: usize) -> Saved {
        let part = |buf: &Buf| buf.view(0, n * F);
        let dense =
            |dense: &Dense| Dense { gate: dense.gate.as_ref().map(part), up: part(&dense.up), low: Low::default() };
        Saved { dense: self.dense.as_ref().map(dense), moe: None, tile: None }
    }
}

impl Dense {
    fn share(&self) -> Dense {
        let view = |buf: &Option<Buf>| buf.as_ref().map(same);
        let low = Low { gate_up: view(&self.low.gate_up), down: view(&self.low.down) };
        Dense { gate: view(&self.gate), up: same(&self.up), low }
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
        room: &Room,
    ) -> Result<Scratch> {
        let moe = s.moe.as_ref().filter(|_| s.mlps().contains(&MlpKind::Moe));
        let moe = moe.map(|moe| moe::Scratch::new(scope, s, moe, experts, N, dtype, train).map(Box::new));
        Ok(Scratch { dense: room.h.as_ref().map(same), moe: moe.transpose()? })
    }
    pub(super) fn mixtures(&mut self) -> Option<&mut moe::Scratch> {
        self.moe.as_deref_mut()
    }
    /// What the experts share.
    pub fn experts(&mut self) -> Option<&mut LinearScratch> {
        self.moe.as_mut().map(|moe| &mut moe.linear)
    }
    pub fn observe(&mut self, observer: Option<Rc<dyn Observer>>) {
        if let Some(moe) = &mut self.moe {
            moe.observe(observer);
        }
    }
}

impl Mlp {
    /// After a forward: what its router did, where the routers' balance counts.
    pub(super) fn balance(&self, b: &dyn Backend, saved: &Saved, t: &mut Scratch) -> Result<()> {
        match (self, &saved.moe, &mut t.moe) {
            (Mlp::Moe(_), Some(saved), Some(t)) => saved.balance(b, t),
            _ => Ok(()),
        }
    }

    /// Tokens that it runs at a time, where they are not all.
    fn tile(&self, saved: &Saved) -> Option<usize> {
        if let Mlp::Moe(_) = self { None } else { saved.tile }
    }

    /// Calls `then` with each tile's first token, number of tokens, and room.
    fn tiles(
        saved: &Saved,
        t: &Scratch,
        (tile, N, F): (usize, usize, usize),
        mut then: impl FnMut(usize, usize, &mut Saved, &mut Scratch) -> Result<()>,
    ) -> Result<()> {
        for first in (0..N).step_by(tile) {
            let n = tile.min(N - first);
            let mut own = Scratch { dense: t.dense.as_ref().map(|h| h.view(0, n * F)), moe: None };
            then(first, n, &mut saved.tile(n, F), &mut own)?;
        }
        Ok(())
    }

    /// Up to gate and up: all that the backward needs. Nothing in tiles.
    pub fn forward_saved(
        &self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        n2: &Buf,
        N: usize,
    ) -> Result<()> {
        if self.tile(saved).is_some() {
            return Ok(());
        }
        match (self, saved, t) {
            (Mlp::Dense { gate_up, .. }, Saved { dense: Some(Dense { gate: Some(gate), up, low }), .. }, _) => {
                gate_up.forward(b, linear.keeping(&low.gate_up), &mut [gate, up], n2, N)
            }
            (Mlp::Plain { up: linear_up, .. }, Saved { dense: Some(Dense { up, low, .. }), .. }, _) => {
                linear_up.forward(b, linear.keeping(&low.gate_up), &mut [up], n2, N)
            }
            (Mlp::Moe(moe), Saved { moe: Some(saved), .. }, Scratch { moe: Some(t), .. }) => {
                moe.forward_saved(b, s, saved, (t, linear), n2, N)
            }
            _ => unreachable!("all three are of one spec"),
        }
    }

    /// out [N, C] from n2 [N, C]; right after `forward_saved`.
    pub fn output(
        &self,
        b: &dyn Backend,
        s: &Spec,
        saved: &Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        out: &mut Buf,
        n2: &Buf,
        N: usize,
    ) -> Result<()> {
        if let Some(tile) = self.tile(saved) {
            return Self::tiles(saved, t, (tile, N, s.F), |first, n, saved, t| {
                let [n2, mut out] = [n2, &*out].map(|buf| buf.view(first * s.C, n * s.C));
                self.forward_saved(b, s, saved, (t, linear), &n2, n)?;
                self.output(b, s, saved, (t, linear), &mut out, &n2, n)
            });
        }
        match (self, saved, t) {
            (
                Mlp::Dense { down, .. },
                Saved { dense: Some(Dense { gate: Some(gate), up, low }), .. },
                Scratch { dense: Some(h), .. },
            ) => {
                b.swiglu_forward(h, gate, up, &swiglu_params(s, N, down.C))?;
                down.forward(b, linear.keeping(&low.down), &mut [out], h, N)
            }
            (
                Mlp::Plain { down, .. },
                Saved { dense: Some(Dense { up, low, .. }), .. },
                Scratch { dense: Some(h), .. },
            ) => {
                b.activation_forward(h, up, &activation_params(s, N))?;
                down.forward(b, linear.keeping(&low.down), &mut [out], h, N)
            }
            (Mlp::Moe(moe), Saved { moe: Some(saved), .. }, Scratch { moe: Some(t), .. }) => {
                moe.output(b, s, saved, (t, linear), out, N)
            }
            _ => unreachable!("all three are of one spec"),
        }
    }

    /// The first half of the backward: what wants dout [N, C]. `saved` is used up. Nothing in tiles.
    pub fn backward_output(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        dout: &Buf,
        N: usize,
    ) -> Result<()> {
        if self.tile(saved).is_some() {
            return Ok(());
        }
        match (self, saved, t) {
            (
                Mlp::Dense { down, .. },
                Saved { dense: Some(Dense { gate: Some(gate), up, low }), .. },
                Scratch { dense: Some(h), .. },
            ) => {
                down.backward_input(b, linear.keeping(&low.down), h, &[dout], N, false)?;
                b.swiglu_backward(h, gate, up, &swiglu_params(s, N, down.C))?;
                down.backward_weight(b, linear.keeping(&low.down), &[dout], h, N)
            }
            (
                Mlp::Plain { down, .. },
                Saved { dense: Some(Dense { up, low, .. }), .. },
                Scratch { dense: Some(h), .. },
            ) => {
                down.backward_input(b, linear.keeping(&low.down), h, &[dout], N, false)?;
                b.activation_backward(h, up, &activation_params(s, N))?;
                down.backward_weight(b, linear.keeping(&low.down), &[dout], h, N)
            }
            (Mlp::Moe(moe), Saved { moe: Some(saved), .. }, Scratch { moe: Some(t), .. }) => {
                moe.backward_output(b, s, saved, (t, linear), dout, N)
            }
            _ => unreachable!("all three are of one spec"),
        }
    }

    /// The second half: dn [N, C] = ∂L/∂n2. dout is as the first half had it, and may be where dn goes.
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        saved: &Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        (dn, dout): (&mut Buf, &Buf),
        n2: &Buf,
        N: usize,
    ) -> Result<()> {
        if let Some(tile) = self.tile(saved) {
            return Self::tiles(saved, t, (tile, N, s.F), |first, n, saved, t| {
                let [n2, dout, mut dn] = [n2, dout, &*dn].map(|buf| buf.view(first * s.C, n * s.C));
                self.forward_saved(b, s, saved, (t, linear), &n2, n)?;
                self.backward_output(b, s, saved, (t, linear), &dout, n)?;
                self.backward(b, s, saved, (t, linear), (&mut dn, &dout), &n2, n)
            });
        }
        match (self, saved, t) {
            (Mlp::Dense { gate_up, .. }, Saved { dense: Some(Dense { gate: Some(gate), up, low }), .. }, _) => {
                gate_up.backward(b, linear.keeping(&low.gate_up), (dn, true), &[gate, up], n2, N)
            }
            (Mlp::Plain { up: linear_up, .. }, Saved { dense: Some(Dense { up, low, .. }), .. }, _) => {
                linear_up.backward_input(b, linear.keeping(&low.gate_up), dn, &[up], N, false)?;
                linear_up.backward_weight(b, linear.keeping(&low.gate_up), &[up], n2, N)
            }
            (Mlp::Moe(moe), Saved { moe: Some(saved), .. }, Scratch { moe: Some(t), .. }) => {
                moe.backward(b, s, saved, (t, linear), dn, n2, N)
            }
            _ => unreachable!("all three are of one spec"),
        }
    }

    /// Of adapters whose T may stay: not those of experts.
    pub(super) fn ranks(&self) -> Ranks {
        let (gate_up, down) = match self {
            Mlp::Dense { gate_up, down } => (low::ranks(&gate_up.0), low::ranks([&**down])),
            Mlp::Plain { up, down } => (low::ranks([&**up]), low::ranks([&**down])),
            Mlp::Moe(_) => (0, 0),
        };
        Ranks { gate_up, down, ..Ranks::default() }
    }
    /// But for those of experts.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let all: Vec<&Linear> = match self {
            Mlp::Dense { gate_up, down } => gate_up.0.iter().chain([&**down]).collect(),
            Mlp::Plain { up, down } => vec![&**up, &**down],
            Mlp::Moe(moe) => {
                [&moe.router].into_iter().chain(moe.shared.iter().flat_map(|shared| shared.linears())).collect()
            }
        };
        all.into_iter()
    }
    pub fn experts(&self) -> impl Iterator<Item = &Experts> {
        let moe = if let Mlp::Moe(moe) = self { Some(moe) } else { None };
        moe.into_iter().flat_map(|moe| moe.gate_up.iter().chain([&moe.down]))
    }
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let bias = if let Mlp::Moe(moe) = self { moe.bias.as_ref() } else { None };
        let linears = self.linears().chain(self.experts().map(|experts| &experts.stack));
        linears.flat_map(Linear::params).chain(bias)
    }
    /// Those of experts included; and what is no linear layer's.
    fn parts_mut(&mut self) -> (Vec<&mut Linear>, Option<&mut Param>) {
        match self {
            Mlp::Dense { gate_up, down } => (gate_up.0.iter_mut().chain([&mut **down]).collect(), None),
            Mlp::Plain { up, down } => (vec![&mut **up, &mut **down], None),
            Mlp::Moe(moe) => {
                let Moe { router, bias, gate_up, down, shared } = &mut **moe;
                let shared = shared.iter_mut().flat_map(|shared| shared.linears_mut());
                let experts = gate_up.iter_mut().chain([down]).map(|experts| &mut experts.stack);
                ([router].into_iter().chain(shared).chain(experts).collect(), bias.as_mut())
            }
        }
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let (linears, bias) = self.parts_mut();
        linears.into_iter().flat_map(Linear::params_mut).chain(bias)
    }
    /// Those of experts included.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.parts_mut().0
    }
}

fn activation_params(s: &Spec, N: usize) -> Activation {
    let (act, slope, cubic) = s.activation.coefficients();
    Activation { N: N as u32, F: s.F as u32, act, slope, cubic }
}

fn swiglu_params(s: &Spec, N: usize, F: usize) -> SwiGlu {
    let (act, slope, cubic) = s.activation.coefficients();
    let [N, F] = [N, F].map(|x| x as u32);
    SwiGlu { N, F, ld_gate: F, ld_up: F, act, slope, cubic }
}
