//! A decoder block: attention and gated MLP (or a mixture of them, `moe.rs`), each behind a norm, each added to the residual stream.
//!
//! ```text
//! forward                                     backward (dx: the residual stream's gradient, in place)
//! n1, rstd1 = rmsnorm(x)            [N,C]     dh = down⁻(dx);  h, dgate, dup = swiglu⁻(dh, gate, up)
//! q, k, v = q(n1), k(n1), v(n1)               dn = gate⁻(dgate) + up⁻(dup)
//! q, k = rope(q), rope(k)                     dx += rmsnorm⁻(dn, x2)
//! att, lse = attention(q, k, v)     [N,H·D]   datt = o⁻(dx)
//! x2 = x + o(att)                   [N,C]     dq, dk, dv = attention⁻(datt);  rope⁻
//! n2, rstd2 = rmsnorm(x2)                     dn = q⁻(dq) + k⁻(dk) + v⁻(dv)
//! gate, up = gate(n2), up(n2)       [N,F]     dx += rmsnorm⁻(dn, x)
//! y = x2 + down(swiglu(gate, up))   [N,C]
//! ```
use super::batch::Inputs;
use super::experts::Experts;
use super::linear::{Linear, LinearScratch};
use super::moe::{self, Moe};
use super::param::{Param, Train};
use super::spec::Spec;
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::attention::Attention;
use crate::ops::residual::Residual;
use crate::ops::rmsnorm::RmsNorm;
use crate::ops::rope::Rope;
use crate::ops::swiglu::SwiGlu;

pub struct Block {
    pub attention_norm: Param,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub mlp_norm: Param,
    pub mlp: Mlp,
}

pub enum Mlp {
    Dense { gate: Linear, up: Linear, down: Linear },
    Moe(Box<Moe>),
}

/// What a block keeps of its forward for its backward, besides its input x.
pub struct Saved {
    n1: Buf,
    rstd1: Buf,
    q: Buf,
    k: Buf,
    v: Buf,
    att: Buf,
    lse: Buf,
    x2: Buf,
    n2: Buf,
    rstd2: Buf,
    mlp: SavedMlp,
}

enum SavedMlp {
    Dense { gate: Buf, up: Buf },
    Moe(moe::Saved),
}

/// What blocks share while they run.
pub struct BlockScratch {
    pub linear: LinearScratch,
    /// cos and sin of every position, f32 [T, D].
    pub rope: Buf,
    positions: usize,
    /// [N, C]: a branch's output, a norm's gradient.
    c: Buf,
    mlp: MlpScratch,
    /// The attention's gradients; only for training.
    grads: Option<AttentionGrads>,
}

enum MlpScratch {
    /// [N, F]: the hidden state and its gradient.
    Dense(Buf),
    Moe(Box<moe::Scratch>),
}

struct AttentionGrads {
    datt: Buf,
    dq: Buf,
    dk: Buf,
    dv: Buf,
    dot: Buf,
}

/// The keys and values a block attends to: those of its own tokens, or a cache that holds them at its end.
pub struct Cache<'a> {
    pub k: &'a Buf,
    pub v: &'a Buf,
    /// Tokens in the cache, the new ones included.
    pub T: usize,
}

impl Saved {
    pub fn new(scope: &Scope, s: &Spec, N: usize, dtype: DType) -> Result<Saved> {
        let buf = |cols: usize| scope.alloc(N * cols, dtype);
        let stat = |cols: usize| scope.alloc(N * cols, DType::F32);
        Ok(Saved {
            n1: buf(s.C)?,
            rstd1: stat(1)?,
            q: buf(s.H * s.D)?,
            k: buf(s.K * s.D)?,
            v: buf(s.K * s.D)?,
            att: buf(s.H * s.D)?,
            lse: stat(s.H)?,
            x2: buf(s.C)?,
            n2: buf(s.C)?,
            rstd2: stat(1)?,
            mlp: match &s.moe {
                Some(moe) => SavedMlp::Moe(moe::Saved::new(scope, s, moe, N, dtype)?),
                None => SavedMlp::Dense { gate: buf(s.F)?, up: buf(s.F)? },
            },
        })
    }

    /// Bytes of one for N tokens.
    pub fn bytes(s: &Spec, N: usize, dtype: DType) -> u64 {
        let values = 3 * s.C + 2 * (s.H + s.K) * s.D;
        let mlp = match &s.moe {
            Some(moe) => moe::Saved::bytes(s, moe, N, dtype),
            None => (N * 2 * s.F * dtype.size()) as u64,
        };
        (N * (values * dtype.size() + (2 + s.H) * 4)) as u64 + mlp
    }
}

impl BlockScratch {
    /// For up to `N` tokens at positions below `positions`; `experts` for products by group.
    pub fn new(
        scope: &Scope,
        s: &Spec,
        (linear, experts): (LinearScratch, LinearScratch),
        N: usize,
        positions: usize,
        dtype: DType,
        train: bool,
    ) -> Result<BlockScratch> {
        let buf = |cols: usize| scope.alloc(N * cols, dtype);
        let (q, kv) = (s.H * s.D, s.K * s.D);
        let grads = |_| {
            Ok(AttentionGrads {
                datt: buf(q)?,
                dq: buf(q)?,
                dk: buf(kv)?,
                dv: buf(kv)?,
                dot: scope.alloc(N * s.H, DType::F32)?,
            })
        };
        Ok(BlockScratch {
            linear,
            rope: scope.alloc_f32(&s.rope.table(positions, s.D), DType::F32)?,
            positions,
            c: buf(s.C)?,
            mlp: match &s.moe {
                Some(moe) => MlpScratch::Moe(moe::Scratch::new(scope, s, moe, experts, N, dtype, train)?),
                None => MlpScratch::Dense(buf(s.F)?),
            },
            grads: train.then_some(()).map(grads).transpose()?,
        })
    }
}

impl Block {
    /// Up to gate and up: all that the backward needs. With a cache, k and v of the new tokens go to its end.
    pub fn forward_saved(
        &self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        t: &mut BlockScratch,
        x: &Buf,
        inputs: &Inputs,
        cache: Option<Cache>,
    ) -> Result<()> {
        let N = inputs.N;
        let norm = norm_params(s, N);
        b.rmsnorm_forward(&mut saved.n1, &mut saved.rstd1, x, &self.attention_norm.value, &norm)?;
        self.q.forward(b, &t.linear, &mut saved.q, &saved.n1, N)?;
        self.k.forward(b, &t.linear, &mut saved.k, &saved.n1, N)?;
        self.v.forward(b, &t.linear, &mut saved.v, &saved.n1, N)?;
        b.rope_forward(&mut saved.q, &t.rope, &inputs.positions, &rope_params(s, N, s.H, t.positions))?;
        b.rope_forward(&mut saved.k, &t.rope, &inputs.positions, &rope_params(s, N, s.K, t.positions))?;
        let (k, v, T) = match &cache {
            None => (&saved.k, &saved.v, N),
            Some(c) => {
                let at = (c.T - N) * s.K * s.D;
                b.copy(&mut c.k.view(at, saved.k.len()), &saved.k)?;
                b.copy(&mut c.v.view(at, saved.v.len()), &saved.v)?;
                (&c.k.view(0, c.T * s.K * s.D), &c.v.view(0, c.T * s.K * s.D), c.T)
            }
        };
        b.attention_forward(&mut saved.att, &mut saved.lse, &saved.q, k, v, &inputs.span, &attention_params(s, N, T))?;
        self.o.forward(b, &t.linear, &mut t.c, &saved.att, N)?;
        b.residual_forward(&mut saved.x2, x, &t.c, &Residual { P: (N * s.C) as u32 })?;
        b.rmsnorm_forward(&mut saved.n2, &mut saved.rstd2, &saved.x2, &self.mlp_norm.value, &norm)?;
        match (&self.mlp, &mut saved.mlp, &mut t.mlp) {
            (Mlp::Dense { gate, up, .. }, SavedMlp::Dense { gate: g, up: u }, _) => {
                gate.forward(b, &t.linear, g, &saved.n2, N)?;
                up.forward(b, &t.linear, u, &saved.n2, N)
            }
            (Mlp::Moe(moe), SavedMlp::Moe(kept), MlpScratch::Moe(own)) => {
                moe.forward_saved(b, s, kept, own, &t.linear, &saved.n2, N)
            }
            _ => unreachable!("made for one spec"),
        }
    }

    /// out [N, C] = the block's output for x [N, C].
    pub fn forward(
        &self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        t: &mut BlockScratch,
        out: &mut Buf,
        x: &Buf,
        inputs: &Inputs,
        cache: Option<Cache>,
    ) -> Result<()> {
        self.forward_saved(b, s, saved, t, x, inputs, cache)?;
        let N = inputs.N;
        match (&self.mlp, &saved.mlp, &mut t.mlp) {
            (Mlp::Dense { down, .. }, SavedMlp::Dense { gate, up }, MlpScratch::Dense(h)) => {
                b.swiglu_forward(h, gate, up, &swiglu_params(s, N))?;
                down.forward(b, &t.linear, &mut t.c, h, N)?;
                b.residual_forward(out, &saved.x2, &t.c, &Residual { P: (N * s.C) as u32 })
            }
            (Mlp::Moe(moe), SavedMlp::Moe(kept), MlpScratch::Moe(own)) => {
                b.copy(out, &saved.x2)?;
                moe.forward(b, s, kept, own, out, N)
            }
            _ => unreachable!("made for one spec"),
        }
    }

    /// dx [N, C] comes in as ∂L/∂out and leaves as ∂L/∂x. `saved` is used up.
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        t: &mut BlockScratch,
        dx: &mut Buf,
        x: &Buf,
        inputs: &Inputs,
    ) -> Result<()> {
        let N = inputs.N;
        let BlockScratch { linear, rope, positions, c: dn, mlp, grads } = t;
        let g = grads.as_mut().expect("the scratch was made for training");

        match (&mut self.mlp, &mut saved.mlp, mlp) {
            (Mlp::Dense { gate, up, down }, SavedMlp::Dense { gate: g, up: u }, MlpScratch::Dense(h)) => {
                down.backward_input(b, linear, h, dx, N, false)?;
                b.swiglu_backward(h, g, u, &swiglu_params(s, N))?;
                down.backward_weight(b, linear, dx, h, N)?;
                for (layer, dout, add) in [(gate, &*g, false), (up, &*u, true)] {
                    layer.backward_input(b, linear, dn, dout, N, add)?;
                    layer.backward_weight(b, linear, dout, &saved.n2, N)?;
                }
            }
            (Mlp::Moe(moe), SavedMlp::Moe(kept), MlpScratch::Moe(own)) => {
                moe.backward(b, s, kept, own, linear, dn, dx, &saved.n2, N)?
            }
            _ => unreachable!("made for one spec"),
        }
        norm_backward(b, s, N, &mut self.mlp_norm, dx, dn, &saved.x2, &saved.rstd2)?;

        self.o.backward_input(b, linear, &mut g.datt, dx, N, false)?;
        self.o.backward_weight(b, linear, dx, &saved.att, N)?;
        b.attention_backward(
            &mut g.dq,
            &mut g.dk,
            &mut g.dv,
            &mut g.dot,
            &g.datt,
            &saved.att,
            &saved.lse,
            &saved.q,
            &saved.k,
            &saved.v,
            &inputs.span,
            &inputs.reach,
            &attention_params(s, N, N),
        )?;
        b.rope_backward(&mut g.dq, rope, &inputs.positions, &rope_params(s, N, s.H, *positions))?;
        b.rope_backward(&mut g.dk, rope, &inputs.positions, &rope_params(s, N, s.K, *positions))?;
        for (layer, dout, add) in [(&mut self.q, &g.dq, false), (&mut self.k, &g.dk, true), (&mut self.v, &g.dv, true)]
        {
            layer.backward_input(b, linear, dn, dout, N, add)?;
            layer.backward_weight(b, linear, dout, &saved.n1, N)?;
        }
        norm_backward(b, s, N, &mut self.attention_norm, dx, dn, x, &saved.rstd1)
    }

    /// But for those of experts.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let mlp = match &self.mlp {
            Mlp::Dense { gate, up, down } => vec![gate, up, down],
            Mlp::Moe(moe) => vec![&moe.router],
        };
        [&self.q, &self.k, &self.v, &self.o].into_iter().chain(mlp)
    }
    pub fn experts(&self) -> impl Iterator<Item = &Experts> {
        let moe = if let Mlp::Moe(moe) = &self.mlp { Some(moe) } else { None };
        moe.into_iter().flat_map(Moe::experts)
    }
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let norms = [&self.attention_norm, &self.mlp_norm];
        let stacks = self.experts().map(|experts| &experts.stack);
        norms.into_iter().chain(self.linears().chain(stacks).flat_map(Linear::params))
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let Block { attention_norm, q, k, v, o, mlp_norm, mlp } = self;
        let mlp = match mlp {
            Mlp::Dense { gate, up, down } => vec![gate, up, down],
            Mlp::Moe(Moe { router, gate, up, down }) => {
                vec![router, &mut gate.stack, &mut up.stack, &mut down.stack]
            }
        };
        [attention_norm, mlp_norm].into_iter().chain([q, k, v, o].into_iter().chain(mlp).flat_map(Linear::params_mut))
    }
}

/// dx += the gradient through the norm of x; the norm's own gradient when it is trained.
pub(super) fn norm_backward(
    b: &dyn Backend,
    s: &Spec,
    N: usize,
    norm: &mut Param,
    dx: &mut Buf,
    dout: &Buf,
    x: &Buf,
    rstd: &Buf,
) -> Result<()> {
    let p = norm_params(s, N);
    if let Some(Train { grad, .. }) = &mut norm.train {
        b.rmsnorm_backward_weight(grad, dout, x, rstd, &p)?;
    }
    b.rmsnorm_backward(dx, dout, x, &norm.value, rstd, &p)
}

pub(super) fn norm_params(s: &Spec, N: usize) -> RmsNorm {
    RmsNorm { N: N as u32, C: s.C as u32, eps: s.eps }
}
fn rope_params(s: &Spec, N: usize, heads: usize, positions: usize) -> Rope {
    Rope { N: N as u32, H: heads as u32, D: s.D as u32, T: positions as u32, ld_x: (heads * s.D) as u32 }
}
fn swiglu_params(s: &Spec, N: usize) -> SwiGlu {
    SwiGlu { N: N as u32, F: s.F as u32, ld_gate: s.F as u32, ld_up: s.F as u32 }
}
fn attention_params(s: &Spec, N: usize, T: usize) -> Attention {
    let (H, K, D) = (s.H as u32, s.K as u32, s.D as u32);
    let scale = 1.0 / (s.D as f64).sqrt();
    Attention { N: N as u32, T: T as u32, H, K, D, ld_q: H * D, ld_k: K * D, ld_v: K * D, scale: scale as f32 }
}
