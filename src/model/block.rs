//! A decoder block: attention and gated MLP, each behind a norm, each added to the residual stream.
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
use super::linear::{Linear, LinearScratch};
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
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
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
    gate: Buf,
    up: Buf,
}

/// What blocks share while they run.
pub struct BlockScratch {
    pub linear: LinearScratch,
    /// cos and sin of every position, f32 [T, D].
    pub rope: Buf,
    positions: usize,
    /// [N, C]: a branch's output, a norm's gradient.
    c: Buf,
    /// [N, F]: the MLP's hidden state and its gradient.
    f: Buf,
    /// The attention's gradients; only for training.
    grads: Option<AttentionGrads>,
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
            gate: buf(s.F)?,
            up: buf(s.F)?,
        })
    }

    /// Bytes of one for N tokens.
    pub fn bytes(s: &Spec, N: usize, dtype: DType) -> u64 {
        let values = 3 * s.C + 2 * s.F + 2 * (s.H + s.K) * s.D;
        (N * (values * dtype.size() + (2 + s.H) * 4)) as u64
    }
}

impl BlockScratch {
    /// For up to `N` tokens at positions below `positions`.
    pub fn new(
        scope: &Scope,
        s: &Spec,
        linear: LinearScratch,
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
            f: buf(s.F)?,
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
        self.gate.forward(b, &t.linear, &mut saved.gate, &saved.n2, N)?;
        self.up.forward(b, &t.linear, &mut saved.up, &saved.n2, N)
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
        b.swiglu_forward(&mut t.f, &saved.gate, &saved.up, &swiglu_params(s, N))?;
        self.down.forward(b, &t.linear, &mut t.c, &t.f, N)?;
        b.residual_forward(out, &saved.x2, &t.c, &Residual { P: (N * s.C) as u32 })
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
        let BlockScratch { linear, rope, positions, c: dn, f: h, grads } = t;
        let g = grads.as_mut().expect("the scratch was made for training");

        self.down.backward_input(b, linear, h, dx, N, false)?;
        b.swiglu_backward(h, &mut saved.gate, &mut saved.up, &swiglu_params(s, N))?;
        self.down.backward_weight(b, linear, dx, h, N)?;
        for (layer, dout, add) in [(&mut self.gate, &saved.gate, false), (&mut self.up, &saved.up, true)] {
            layer.backward_input(b, linear, dn, dout, N, add)?;
            layer.backward_weight(b, linear, dout, &saved.n2, N)?;
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

    pub fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let norms = [&self.attention_norm, &self.mlp_norm];
        norms.into_iter().chain(self.linears().into_iter().flat_map(Linear::params))
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let Block { attention_norm, q, k, v, o, mlp_norm, gate, up, down } = self;
        let linears = [q, k, v, o, gate, up, down];
        [attention_norm, mlp_norm].into_iter().chain(linears.into_iter().flat_map(Linear::params_mut))
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
