//! q, k and v of multi-head latent attention. DeepSeek-AI 2024, arXiv:2405.04434.
//!
//! ```text
//! forward                                               backward
//! cq = norm(q_a(x)),  q = heads(q_b(cq))     [N, H·D]   dq → q_b⁻ → norm⁻ → q_a⁻
//! c, r = kv_a(x)                 [N, rank], [N, A]      dk, dv → dkv, dr;  dc = norm⁻(kv_b⁻(dkv))
//! k, v = heads(kv_b(norm(c)), r)             [N, H·D]   dx = q⁻ + kv_a⁻(dc, dr)
//! ```
//! `heads` is ops/latent.rs: turning channels first, zeros up to D. Some models make q from x at once.
use super::block::same;
use super::linear::{Linear, LinearScratch};
use super::norm::{Norm, NormParams};
use super::param::Param;
use super::spec::{LatentSpec, Spec};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::latent::Latent as Params;

pub struct Latent {
    pub q_a: Option<Narrow>,
    pub q_b: Linear,
    pub kv_a: Narrow,
    pub kv_b: Linear,
}

/// A projection to a narrow row, and the norm of that row.
pub struct Narrow {
    pub down: Linear,
    pub norm: NormParams,
}

/// The narrow rows.
pub struct Saved {
    q: Option<Row>,
    kv: Row,
}

/// [N, rank]: what the norm made of what.
struct Row {
    inp: Buf,
    out: Buf,
    rstd: Buf,
}

/// What the layers share while they run.
pub struct Scratch {
    /// [N, H·(U + A)] or [N, H·(U + Y)]: q, or k and v, as projections have them; and gradients of it.
    raw: Buf,
    /// [N, A]: the part of k that turns, and its gradient.
    rope: Buf,
    /// [N, H·Y]: the attention's output without the zeros of its heads.
    pub(super) values: Buf,
    /// [N, rank]: gradients of a narrow row behind and before its norm. Only for training.
    grads: Option<[Buf; 2]>,
}

impl Saved {
    pub fn new(scope: &Scope, l: &LatentSpec, N: usize, dtype: DType) -> Result<Saved> {
        let row = |rank: usize| {
            let buf = || scope.alloc(N * rank, dtype);
            Ok(Row { inp: buf()?, out: buf()?, rstd: scope.alloc(N, DType::F32)? })
        };
        Ok(Saved { q: l.q_rank.map(row).transpose()?, kv: row(l.kv_rank)? })
    }
    /// Other handles of the same buffers.
    pub fn share(&self) -> Saved {
        let row = |row: &Row| Row { inp: same(&row.inp), out: same(&row.out), rstd: same(&row.rstd) };
        Saved { q: self.q.as_ref().map(row), kv: row(&self.kv) }
    }
}

/// Elements of a token in `raw`.
fn raw(s: &Spec, l: &LatentSpec) -> usize {
    s.H * (l.U + s.A.max(l.Y))
}

impl Scratch {
    pub fn new(scope: &Scope, s: &Spec, l: &LatentSpec, N: usize, dtype: DType, train: bool) -> Result<Scratch> {
        let buf = |cols: usize| scope.alloc(N * cols, dtype);
        let grads = || Ok([buf(l.widest())?, buf(l.widest())?]);
        Ok(Scratch {
            raw: buf(raw(s, l))?,
            rope: buf(s.A)?,
            values: buf(s.H * l.Y)?,
            grads: train.then(grads).transpose()?,
        })
    }
    /// The gradient of `values`, in the place of `raw`.
    pub(super) fn dvalues(&self) -> Buf {
        self.raw.view(0, self.values.len())
    }
}

/// Sizes of the ops for N tokens.
pub(super) fn params(s: &Spec, l: &LatentSpec, N: usize) -> Params {
    let [N, H, D, A, U, Y] = [N, s.H, s.D, s.A, l.U, l.Y].map(|x| x as u32);
    Params { N, H, D, A, U, Y }
}

impl Narrow {
    fn norm(s: &Spec, l: &LatentSpec, N: usize, rank: usize) -> Norm {
        Norm::of(N, rank, l.eps, s.norm_weight)
    }
    /// After its projection.
    fn forward(&self, b: &dyn Backend, s: &Spec, l: &LatentSpec, row: &mut Row, N: usize) -> Result<()> {
        let norm = Self::norm(s, l, N, row.inp.len() / N);
        norm.forward(b, &mut row.out, &mut row.rstd, &row.inp, &self.norm)
    }
    /// dinp = ∂L/∂(the norm's input) from dout.
    fn backward(
        &mut self,
        b: &dyn Backend,
        (s, l): (&Spec, &LatentSpec),
        row: &Row,
        dinp: &mut Buf,
        dout: &Buf,
        N: usize,
    ) -> Result<()> {
        let norm = Self::norm(s, l, N, row.inp.len() / N);
        b.fill(dinp, 0.0)?;
        norm.backward(b, &mut self.norm, dinp, dout, &row.inp, &row.rstd)
    }
}

impl Latent {
    /// q, k, v [N, H·D] from x [N, C].
    pub fn forward(
        &self,
        b: &dyn Backend,
        (s, l): (&Spec, &LatentSpec),
        saved: &mut Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        [q, k, v]: [&mut Buf; 3],
        x: &Buf,
        N: usize,
    ) -> Result<()> {
        let p = params(s, l, N);
        let mut inp = t.raw.view(0, N * self.q_b.O);
        match (&self.q_a, &mut saved.q) {
            (Some(narrow), Some(row)) => {
                narrow.down.forward(b, linear, &mut [&mut row.inp], x, N)?;
                narrow.forward(b, s, l, row, N)?;
                self.q_b.forward(b, linear, &mut [&mut inp], &row.out, N)?;
            }
            _ => self.q_b.forward(b, linear, &mut [&mut inp], x, N)?,
        }
        b.latent_query_forward(q, &inp, &p)?;

        let row = &mut saved.kv;
        self.kv_a.down.forward(b, linear, &mut [&mut row.inp, &mut t.rope], x, N)?;
        self.kv_a.forward(b, s, l, row, N)?;
        let mut kv = t.raw.view(0, N * self.kv_b.O);
        self.kv_b.forward(b, linear, &mut [&mut kv], &row.out, N)?;
        b.latent_kv_forward(k, v, &kv, &t.rope, &p)
    }

    /// dx [N, C] = ∂L/∂x from the gradients of q, k and v.
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        (s, l): (&Spec, &LatentSpec),
        saved: &Saved,
        (t, linear): (&mut Scratch, &LinearScratch),
        dx: &mut Buf,
        [dq, dk, dv]: [&Buf; 3],
        x: &Buf,
        N: usize,
    ) -> Result<()> {
        let p = params(s, l, N);
        let [behind, before] = t.grads.as_ref().expect("the scratch was made for training");
        let narrow_grads = |row: &Row| [behind.view(0, row.inp.len()), before.view(0, row.inp.len())];

        let mut dinp = t.raw.view(0, N * self.q_b.O);
        b.latent_query_backward(&mut dinp, dq, &p)?;
        match (&mut self.q_a, &saved.q) {
            (Some(narrow), Some(row)) => {
                let [mut dout, mut din] = narrow_grads(row);
                self.q_b.backward_input(b, linear, &mut dout, &[&dinp], N, false)?;
                self.q_b.backward_weight(b, linear, &[&dinp], &row.out, N)?;
                narrow.backward(b, (s, l), row, &mut din, &dout, N)?;
                narrow.down.backward_input(b, linear, dx, &[&din], N, false)?;
                narrow.down.backward_weight(b, linear, &[&din], x, N)?;
            }
            _ => {
                self.q_b.backward_input(b, linear, dx, &[&dinp], N, false)?;
                self.q_b.backward_weight(b, linear, &[&dinp], x, N)?;
            }
        }

        let (row, mut dkv) = (&saved.kv, t.raw.view(0, N * self.kv_b.O));
        b.latent_kv_backward(&mut dkv, &mut t.rope, dk, dv, &p)?;
        let [mut dout, mut din] = narrow_grads(row);
        self.kv_b.backward_input(b, linear, &mut dout, &[&dkv], N, false)?;
        self.kv_b.backward_weight(b, linear, &[&dkv], &row.out, N)?;
        self.kv_a.backward(b, (s, l), row, &mut din, &dout, N)?;
        self.kv_a.down.backward_input(b, linear, dx, &[&din, &t.rope], N, true)?;
        self.kv_a.down.backward_weight(b, linear, &[&din, &t.rope], x, N)
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let q_a = self.q_a.iter().map(|narrow| &narrow.down);
        q_a.chain([&self.q_b, &self.kv_a.down, &self.kv_b])
    }
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let Latent { q_a, q_b, kv_a, kv_b } = self;
        q_a.iter_mut().map(|narrow| &mut narrow.down).chain([q_b, &mut kv_a.down, kv_b]).collect()
    }
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let narrow = self.q_a.iter().chain([&self.kv_a]);
        let narrow = narrow.flat_map(|n| n.norm.params().chain(n.down.params()));
        narrow.chain(self.q_b.params()).chain(self.kv_b.params())
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let Latent { q_a, q_b, kv_a, kv_b } = self;
        let narrow = q_a.iter_mut().chain([kv_a]);
        let narrow = narrow.flat_map(|n| n.norm.params_mut().chain(n.down.params_mut()));
        narrow.chain(q_b.params_mut()).chain(kv_b.params_mut())
    }
}
