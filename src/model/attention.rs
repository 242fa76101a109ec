//! Attention: projections, norms of heads, RoPE, softmax over what a token sees, output projection.
//!
//! ```text
//! forward                                        backward
//! q, k, v = qkv(x)             [N, H·D] [N, K·D] datt = o⁻(dout)
//! q, k = norm(q), norm(k)      (where there is)  dq, dk, dv = attention⁻(datt)
//! q, k = rope(q), rope(k)      (where there is)  rope⁻, norm⁻
//! att, lse = attention(q, k, v)          [N,H·D] dx = qkv⁻(dq, dk, dv)
//! att, lse = sink(att, lse)      (where there is)
//! out = o(att)                             [N,C]
//! ```
use super::batch::{Inputs, KindInputs, RopeInputs};
use super::block::same;
use super::latent::{self, Latent};
use super::linear::low::{self, Ranks, With};
use super::linear::{Linear, LinearScratch, Projections};
use super::norm::{Norm, NormParams};
use super::paged::Cache;
use super::param::Param;
use super::spec::{QkNorm, RopePairs, Spec};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::attention::Attention as Params;
use crate::ops::attention_sink::AttentionSink;
use crate::ops::rope::Rope;

pub struct Attention {
    pub qkv: Qkv,
    /// Of q and of k.
    pub head_norms: Option<[NormParams; 2]>,
    /// [H]
    pub sinks: Option<Param>,
    pub o: Linear,
}

/// What makes q, k and v.
pub enum Qkv {
    Projections(Projections),
    Latent(Box<Latent>),
}

/// What the backward needs, besides the input.
pub struct Saved {
    q: Buf,
    k: Buf,
    v: Buf,
    att: Buf,
    lse: Buf,
    head_norms: Option<[Normed; 2]>,
    latent: Option<latent::Saved>,
    /// T of the adapters of q, k and v, and of o, where it waits for the backward.
    low: [Option<Buf>; 2],
}

/// A head norm's input and statistics: of q, or of k.
struct Normed {
    inp: Buf,
    stats: Buf,
}

/// What the attentions of a model share while they run.
pub struct Scratch {
    /// Only for training.
    grads: Option<Grads>,
    latent: Option<latent::Scratch>,
}

/// Gradients on their way through attention.
pub struct Grads {
    datt: Buf,
    dq: Buf,
    dk: Buf,
    dv: Buf,
    dot: Buf,
}

impl Saved {
    /// `ranks`: of adapters whose T stays.
    pub fn new(scope: &Scope, s: &Spec, N: usize, dtype: DType, ranks: Ranks) -> Result<Saved> {
        let heads = |heads: usize| scope.alloc(N * heads * s.D, dtype);
        let stat = |rows: usize| scope.alloc(rows, DType::F32);
        let normed = |n: usize| Ok(Normed { inp: heads(n)?, stats: stat(Norm::heads(s, N, n).stats())? });
        let head_norms = match s.qk_norm {
            QkNorm::Absent => None,
            _ => Some([normed(s.H)?, normed(s.K)?]),
        };
        let latent = s.latent.as_ref().map(|l| latent::Saved::new(scope, l, N, dtype)).transpose()?;
        let (q, att, lse) = (heads(s.H)?, heads(s.H)?, stat(N * s.H)?);
        let low = [low::kept(scope, ranks.qkv, N, dtype)?, low::kept(scope, ranks.o, N, dtype)?];
        Ok(Saved { q, k: heads(s.K)?, v: heads(s.K)?, att, lse, head_norms, latent, low })
    }

    /// Other handles of the same buffers.
    pub fn share(&self) -> Saved {
        let normed = |n: &Normed| Normed { inp: same(&n.inp), stats: same(&n.stats) };
        Saved {
            q: same(&self.q),
            k: same(&self.k),
            v: same(&self.v),
            att: same(&self.att),
            lse: same(&self.lse),
            head_norms: self.head_norms.as_ref().map(|two| two.each_ref().map(normed)),
            latent: self.latent.as_ref().map(latent::Saved::share),
            low: self.low.each_ref().map(|t| t.as_ref().map(same)),
        }
    }
    /// What attention makes of q, k and v.
    pub fn boundary(&mut self) -> Vec<&mut Buf> {
        vec![&mut self.att, &mut self.lse]
    }
}

impl Grads {
    /// Lengths and types of what [`Grads::of`] wants for N tokens.
    pub fn sizes(s: &Spec, N: usize, dtype: DType) -> [(usize, DType); 5] {
        let heads = |heads: usize| (N * heads * s.D, dtype);
        [heads(s.H), heads(s.H), heads(s.K), heads(s.K), (N * s.H, DType::F32)]
    }
    pub fn of([datt, dq, dk, dv, dot]: [Buf; 5]) -> Grads {
        Grads { datt, dq, dk, dv, dot }
    }
}

impl Scratch {
    /// For up to `N` tokens; `grads` for training.
    pub fn new(scope: &Scope, s: &Spec, N: usize, dtype: DType, grads: Option<Grads>) -> Result<Scratch> {
        let new = |l| latent::Scratch::new(scope, s, l, N, dtype, grads.is_some());
        let latent = s.latent.as_ref().map(new).transpose()?;
        Ok(Scratch { grads, latent })
    }
}

impl Attention {
    /// All but the output projection: `saved.att` is made. With a cache, k and v of the new tokens go to their pages. `kind` is
    /// the layer's.
    pub fn forward(
        &self,
        b: &dyn Backend,
        s: &Spec,
        kind: usize,
        saved: &mut Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        x: &Buf,
        inputs: &Inputs,
        cache: Option<Cache>,
    ) -> Result<()> {
        self.project(b, s, kind, saved, (t, linear), x, inputs)?;
        let (N, Saved { q, k, v, att, lse, .. }) = (inputs.N, saved);
        let span = &inputs.kinds[kind].span;
        match &cache {
            Some(cache) => cache.attend(b, s, (&mut *att, &mut *lse), [q, k, v], (kind, span), N)?,
            None => b.attention_forward(att, lse, q, k, v, span, &params(s, N, N))?,
        }
        match &self.sinks {
            Some(sinks) => b.attention_sink_forward(att, lse, &sinks.value, &sink_params(s, N)),
            None => Ok(()),
        }
    }

    /// The first part of it: q, k and v as attention reads them.
    pub fn project(
        &self,
        b: &dyn Backend,
        s: &Spec,
        kind: usize,
        saved: &mut Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        x: &Buf,
        inputs: &Inputs,
    ) -> Result<()> {
        let (N, Saved { q, k, v, head_norms, latent, low: [t_qkv, _], .. }) = (inputs.N, saved);
        let linear = linear.keeping(t_qkv);
        match (&self.head_norms, head_norms) {
            (Some(weights), Some(normed)) => {
                let [nq, nk] = normed;
                self.qkv.forward(b, s, (latent, &mut t.latent), linear, [&mut nq.inp, &mut nk.inp, v], x, N)?;
                for ((out, heads), (weight, n)) in
                    [(&mut *q, s.H), (&mut *k, s.K)].into_iter().zip(weights.iter().zip(normed))
                {
                    Norm::heads(s, N, heads).forward(b, out, &mut n.stats, &n.inp, weight)?;
                }
            }
            _ => self.qkv.forward(b, s, (latent, &mut t.latent), linear, [&mut *q, &mut *k, v], x, N)?,
        }
        if let Some(rope) = &inputs.kinds[kind].rope {
            b.rope_forward(q, &rope.table, &rope.rows, &rope_params(s, N, s.H, rope))?;
            b.rope_forward(k, &rope.table, &rope.rows, &rope_params(s, N, s.K, rope))?;
        }
        Ok(())
    }

    /// out [N, C], from what `forward` left.
    pub fn output(
        &self,
        b: &dyn Backend,
        s: &Spec,
        (t, linear): (&mut Scratch, &LinearScratch),
        out: &mut Buf,
        saved: &Saved,
        N: usize,
    ) -> Result<()> {
        self.o.forward(b, linear.keeping(&saved.low[1]), &mut [out], values(b, s, &mut t.latent, saved, N)?, N)
    }

    /// datt, from dout [N, C], the gradient of `output`.
    pub fn backward_output(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        saved: &Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        dout: &Buf,
        N: usize,
    ) -> Result<()> {
        let with = linear.keeping(&saved.low[1]);
        let g = t.grads.as_mut().expect("the scratch was made for training");
        match (&s.latent, &t.latent) {
            (Some(l), Some(latent)) => {
                let mut dvalues = latent.dvalues();
                self.o.backward_input(b, with, &mut dvalues, &[dout], N, false)?;
                b.latent_output_backward(&mut g.datt, &dvalues, &latent::params(s, l, N))?;
            }
            _ => self.o.backward_input(b, with, &mut g.datt, &[dout], N, false)?,
        }
        self.o.backward_weight(b, with, &[dout], values(b, s, &mut t.latent, saved, N)?, N)
    }

    /// dx [N, C] = ∂L/∂x, if it is wanted, from the datt that `backward_output` left. `saved` is used up.
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        kind: usize,
        saved: &mut Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        dx: (&mut Buf, bool),
        x: &Buf,
        inputs: &Inputs,
    ) -> Result<()> {
        let (N, own) = (inputs.N, &inputs.kinds[kind]);
        let g = t.grads.as_mut().expect("the scratch was made for training");
        core_backward(b, s, saved, g, own, N)?;
        if let Some(Param { value, train: Some(train), .. }) = &mut self.sinks {
            let p = sink_params(s, N);
            b.attention_sink_backward(train.sum(b)?, &g.datt, &saved.att, &saved.lse, value, &p)?;
        }
        if let Some(rope) = &own.rope {
            b.rope_backward(&mut g.dq, &rope.table, &rope.rows, &rope_params(s, N, s.H, rope))?;
            b.rope_backward(&mut g.dk, &rope.table, &rope.rows, &rope_params(s, N, s.K, rope))?;
        }
        let Saved { q, k, head_norms, latent, low: [t_qkv, _], .. } = saved;
        let (mut dq, mut dk) = (&g.dq, &g.dk);
        if let (Some(weights), Some(normed)) = (&mut self.head_norms, head_norms) {
            // q and k have served: the gradients of the norms' inputs take their place
            let each = [(&mut *q, dq, s.H), (&mut *k, dk, s.K)].into_iter().zip(weights.iter_mut().zip(normed));
            for ((dinp, dout, heads), (weight, n)) in each {
                b.fill(dinp, 0.0)?;
                Norm::heads(s, N, heads).backward(b, weight, dinp, dout, &n.inp, &n.stats)?;
            }
            (dq, dk) = (q, k);
        }
        self.qkv.backward(b, s, (latent, &mut t.latent), linear.keeping(t_qkv), dx, [dq, dk, &g.dv], x, N)
    }

    /// Of adapters whose T may stay: not those of latent attention's projections.
    pub(super) fn ranks(&self) -> Ranks {
        let qkv = if let Qkv::Projections(p) = &self.qkv { low::ranks(&p.0) } else { 0 };
        Ranks { qkv, o: low::ranks([&self.o]), ..Ranks::default() }
    }
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let (projections, latent) = match &self.qkv {
            Qkv::Projections(p) => (p.0.as_slice(), None),
            Qkv::Latent(latent) => ([].as_slice(), Some(latent)),
        };
        projections.iter().chain(latent.into_iter().flat_map(|latent| latent.linears())).chain([&self.o])
    }
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all: Vec<&mut Linear> = match &mut self.qkv {
            Qkv::Projections(p) => p.0.iter_mut().collect(),
            Qkv::Latent(latent) => latent.linears_mut(),
        };
        all.push(&mut self.o);
        all
    }
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let (projections, latent) = match &self.qkv {
            Qkv::Projections(p) => (p.0.as_slice(), None),
            Qkv::Latent(latent) => ([].as_slice(), Some(latent)),
        };
        let linears = projections.iter().flat_map(Linear::params);
        let qkv = linears.chain(latent.into_iter().flat_map(|latent| latent.params()));
        self.head_norms
            .iter()
            .flatten()
            .flat_map(NormParams::params)
            .chain(&self.sinks)
            .chain(qkv)
            .chain(self.o.params())
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let Attention { qkv, head_norms, sinks, o } = self;
        let (projections, latent) = match qkv {
            Qkv::Projections(p) => (p.0.as_mut_slice(), None),
            Qkv::Latent(latent) => ([].as_mut_slice(), Some(latent)),
        };
        let linears = projections.iter_mut().flat_map(Linear::params_mut);
        let qkv = linears.chain(latent.into_iter().flat_map(|latent| latent.params_mut()));
        head_norms.iter_mut().flatten().flat_map(NormParams::params_mut).chain(sinks).chain(qkv).chain(o.params_mut())
    }
}

/// What latent attention keeps, and what it shares; nothing of other attention.
type LatentBufs<'a> = (&'a mut Option<latent::Saved>, &'a mut Option<latent::Scratch>);

impl Qkv {
    /// q, k, v from x [N, C].
    fn forward(
        &self,
        b: &dyn Backend,
        s: &Spec,
        (saved, t): LatentBufs,
        with: With,
        mut qkv: [&mut Buf; 3],
        x: &Buf,
        N: usize,
    ) -> Result<()> {
        match (self, &s.latent, saved, t) {
            (Qkv::Projections(p), ..) => p.forward(b, with, &mut qkv, x, N),
            (Qkv::Latent(latent), Some(l), Some(saved), Some(t)) => {
                latent.forward(b, (s, l), saved, (t, &with), qkv, x, N)
            }
            _ => unreachable!("all are of one spec"),
        }
    }

    /// dx [N, C] = ∂L/∂x, if it is wanted (latent attention makes it anyhow), from the gradients of q, k and v.
    fn backward(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        (saved, t): LatentBufs,
        with: With,
        (dx, wanted): (&mut Buf, bool),
        dqkv: [&Buf; 3],
        x: &Buf,
        N: usize,
    ) -> Result<()> {
        match (self, &s.latent, saved, t) {
            (Qkv::Projections(p), ..) => p.backward(b, with, (dx, wanted), &dqkv, x, N),
            (Qkv::Latent(latent), Some(l), Some(saved), Some(t)) => {
                latent.backward(b, (s, l), saved, (t, &with), dx, dqkv, x, N)
            }
            _ => unreachable!("all are of one spec"),
        }
    }
}

/// What the output projection reads: the attention's output, without the zeros of latent attention's heads.
fn values<'a>(
    b: &dyn Backend,
    s: &Spec,
    t: &'a mut Option<latent::Scratch>,
    saved: &'a Saved,
    N: usize,
) -> Result<&'a Buf> {
    let (Some(l), Some(t)) = (&s.latent, t) else { return Ok(&saved.att) };
    b.latent_output_forward(&mut t.values, &saved.att, &latent::params(s, l, N))?;
    Ok(&t.values)
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

fn rope_params(s: &Spec, N: usize, heads: usize, rope: &RopeInputs) -> Rope {
    let (rows, ld_x) = ((rope.table.len() / s.A) as u32, (heads * s.D) as u32);
    let interleaved = (s.rope_pairs == RopePairs::Interleaved) as u32;
    Rope { N: N as u32, H: heads as u32, D: s.D as u32, A: s.A as u32, T: rows, ld_x, interleaved }
}

fn sink_params(s: &Spec, N: usize) -> AttentionSink {
    AttentionSink { N: N as u32, H: s.H as u32, D: s.D as u32 }
}

fn params(s: &Spec, N: usize, T: usize) -> Params {
    let (H, K, D) = (s.H as u32, s.K as u32, s.D as u32);
    let (scale, softcap) = (s.attention_scale, s.attention_softcap);
    Params { N: N as u32, T: T as u32, H, K, D, ld_q: H * D, ld_k: K * D, ld_v: K * D, scale, softcap }
}
