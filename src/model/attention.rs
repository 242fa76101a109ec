//! Attention: projections, norms of heads, RoPE, softmax over what a token sees, output projection.
//!
//! ```text
//! forward                                        backward
//! q, k, v = qkv(x)             [N, H·D] [N, K·D] datt = o⁻(dout)
//! q, k = norm of each head     (where there is)  dq, dk, dv = attention⁻(datt)
//! q, k = rope(q), rope(k)                        rope⁻, norm⁻
//! att, lse = attention(q, k, v)          [N,H·D] dx = qkv⁻(dq, dk, dv)
//! att, lse = sink(att, lse)      (where there is)
//! out = o(att)                             [N,C]
//! ```
use super::batch::{Inputs, KindInputs};
use super::linear::{Linear, LinearScratch, Projections};
use super::norm::Norm;
use super::param::Param;
use super::spec::{QkNorm, Spec};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::attention::Attention as Params;
use crate::ops::attention_sink::AttentionSink;
use crate::ops::rope::Rope;

pub struct Attention {
    pub qkv: Projections,
    /// Of each head of q and of k.
    pub head_norms: Option<[Param; 2]>,
    /// [H]
    pub sinks: Option<Param>,
    pub o: Linear,
}

/// What the backward needs, besides the input.
pub struct Saved {
    q: Buf,
    k: Buf,
    v: Buf,
    att: Buf,
    lse: Buf,
    head_norms: Option<[Normed; 2]>,
}

/// A head norm's input and statistics: of q, or of k.
struct Normed {
    inp: Buf,
    rstd: Buf,
}

/// What the attentions of a model share while they run.
pub struct Scratch {
    /// Only for training.
    grads: Option<Grads>,
}

struct Grads {
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
        let heads = |heads: usize| scope.alloc(N * heads * s.D, dtype);
        let stat = |heads: usize| scope.alloc(N * heads, DType::F32);
        let normed = |n: usize| Ok(Normed { inp: heads(n)?, rstd: stat(n)? });
        let head_norms = match s.qk_norm {
            QkNorm::PerHead => Some([normed(s.H)?, normed(s.K)?]),
            QkNorm::Absent => None,
        };
        Ok(Saved { q: heads(s.H)?, k: heads(s.K)?, v: heads(s.K)?, att: heads(s.H)?, lse: stat(s.H)?, head_norms })
    }

    /// Bytes of one for N tokens.
    pub fn bytes(s: &Spec, N: usize, dtype: DType) -> u64 {
        let (normed, stats) = if s.qk_norm == QkNorm::PerHead { (s.H + s.K, s.H + s.K) } else { (0, 0) };
        (N * ((2 * (s.H + s.K) + normed) * s.D * dtype.size() + (s.H + stats) * 4)) as u64
    }
}

impl Scratch {
    /// For up to `N` tokens.
    pub fn new(scope: &Scope, s: &Spec, N: usize, dtype: DType, train: bool) -> Result<Scratch> {
        let heads = |heads: usize| scope.alloc(N * heads * s.D, dtype);
        let grads = |_| {
            let dot = scope.alloc(N * s.H, DType::F32)?;
            Ok(Grads { datt: heads(s.H)?, dq: heads(s.H)?, dk: heads(s.K)?, dv: heads(s.K)?, dot })
        };
        Ok(Scratch { grads: train.then_some(()).map(grads).transpose()? })
    }
}

impl Attention {
    /// All but the output projection: `saved.att` is made. With a cache, k and v of the new tokens go to its end. `kind` is the
    /// layer's.
    pub fn forward(
        &self,
        b: &dyn Backend,
        s: &Spec,
        kind: usize,
        saved: &mut Saved,
        linear: &LinearScratch,
        x: &Buf,
        inputs: &Inputs,
        cache: Option<Cache>,
    ) -> Result<()> {
        let (N, Saved { q, k, v, att, lse, head_norms }) = (inputs.N, saved);
        match (&self.head_norms, head_norms) {
            (Some(weights), Some(normed)) => {
                let [nq, nk] = normed;
                self.qkv.forward(b, linear, &mut [&mut nq.inp, &mut nk.inp, v], x, N)?;
                for ((out, heads), (weight, n)) in
                    [(&mut *q, s.H), (&mut *k, s.K)].into_iter().zip(weights.iter().zip(normed))
                {
                    Norm::heads(s, N, heads).forward(b, out, &mut n.rstd, &n.inp, weight)?;
                }
            }
            _ => self.qkv.forward(b, linear, &mut [&mut *q, &mut *k, v], x, N)?,
        }
        let own = &inputs.kinds[kind];
        b.rope_forward(q, &own.rope, &own.rope_rows, &rope_params(s, N, s.H, own))?;
        b.rope_forward(k, &own.rope, &own.rope_rows, &rope_params(s, N, s.K, own))?;
        let (k, v, T) = match &cache {
            None => (&*k, &*v, N),
            Some(c) => {
                let at = (c.T - N) * s.K * s.D;
                b.copy(&mut c.k.view(at, k.len()), k)?;
                b.copy(&mut c.v.view(at, v.len()), v)?;
                (&c.k.view(0, c.T * s.K * s.D), &c.v.view(0, c.T * s.K * s.D), c.T)
            }
        };
        b.attention_forward(att, lse, q, k, v, &own.span, &params(s, N, T))?;
        match &self.sinks {
            Some(sinks) => b.attention_sink_forward(att, lse, &sinks.value, &sink_params(s, N)),
            None => Ok(()),
        }
    }

    /// out [N, C], from what `forward` left.
    pub fn output(
        &self,
        b: &dyn Backend,
        linear: &LinearScratch,
        out: &mut Buf,
        saved: &Saved,
        N: usize,
    ) -> Result<()> {
        self.o.forward(b, linear, &mut [out], &saved.att, N)
    }

    /// datt, from dout [N, C], the gradient of `output`.
    pub fn backward_output(
        &mut self,
        b: &dyn Backend,
        saved: &Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        dout: &Buf,
        N: usize,
    ) -> Result<()> {
        let g = t.grads.as_mut().expect("the scratch was made for training");
        self.o.backward_input(b, linear, &mut g.datt, &[dout], N, false)?;
        self.o.backward_weight(b, linear, &[dout], &saved.att, N)
    }

    /// dx [N, C] = ∂L/∂x from the datt that `backward_output` left. `saved` is used up.
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        kind: usize,
        saved: &mut Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        dx: &mut Buf,
        x: &Buf,
        inputs: &Inputs,
    ) -> Result<()> {
        let (N, own) = (inputs.N, &inputs.kinds[kind]);
        let g = t.grads.as_mut().expect("the scratch was made for training");
        core_backward(b, s, saved, g, own, N)?;
        if let Some(Param { value, train: Some(train), .. }) = &mut self.sinks {
            let p = sink_params(s, N);
            b.attention_sink_backward(&mut train.grad, &g.datt, &saved.att, &saved.lse, value, &p)?;
        }
        b.rope_backward(&mut g.dq, &own.rope, &own.rope_rows, &rope_params(s, N, s.H, own))?;
        b.rope_backward(&mut g.dk, &own.rope, &own.rope_rows, &rope_params(s, N, s.K, own))?;
        let Saved { q, k, head_norms, .. } = saved;
        let (mut dq, mut dk) = (&g.dq, &g.dk);
        if let (Some(weights), Some(normed)) = (&mut self.head_norms, head_norms) {
            // q and k have served: the gradients of the norms' inputs take their place
            let each = [(&mut *q, dq, s.H), (&mut *k, dk, s.K)].into_iter().zip(weights.iter_mut().zip(normed));
            for ((dinp, dout, heads), (weight, n)) in each {
                b.fill(dinp, 0.0)?;
                Norm::heads(s, N, heads).backward(b, weight, dinp, dout, &n.inp, &n.rstd)?;
            }
            (dq, dk) = (q, k);
        }
        self.qkv.backward(b, linear, dx, &[dq, dk, &g.dv], x, N)
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.qkv.0.iter().chain([&self.o])
    }
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        self.head_norms.iter().flatten().chain(&self.sinks).chain(self.linears().flat_map(Linear::params))
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let Attention { qkv, head_norms, sinks, o } = self;
        let linears = qkv.0.iter_mut().chain([o]);
        head_norms.iter_mut().flatten().chain(sinks).chain(linears.flat_map(Linear::params_mut))
    }
}

/// dq, dk, dv of the rotated q and k.
fn core_backward(b: &dyn Backend, s: &Spec, saved: &Saved, g: &mut Grads, own: &KindInputs, N: usize) -> Result<()> {
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
        &own.span,
        &own.reach,
        &params(s, N, N),
    )
}

fn rope_params(s: &Spec, N: usize, heads: usize, own: &KindInputs) -> Rope {
    let rows = own.rope.len() / s.A;
    Rope { N: N as u32, H: heads as u32, D: s.D as u32, A: s.A as u32, T: rows as u32, ld_x: (heads * s.D) as u32 }
}

fn sink_params(s: &Spec, N: usize) -> AttentionSink {
    AttentionSink { N: N as u32, H: s.H as u32, D: s.D as u32 }
}

fn params(s: &Spec, N: usize, T: usize) -> Params {
    let (H, K, D) = (s.H as u32, s.K as u32, s.D as u32);
    let (scale, softcap) = (s.attention_scale, s.attention_softcap);
    Params { N: N as u32, T: T as u32, H, K, D, ld_q: H * D, ld_k: K * D, ld_v: K * D, scale, softcap }
}
