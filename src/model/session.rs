//! A model at work on a fixed number of tokens: all buffers are made once, before the first step.
use super::Model;
use super::batch::{Inputs, Tokens};
use super::block::{BlockScratch, Cache, Saved};
use super::head::{HeadScratch, Weights};
use super::linear::{LinearScratch, Observer};
use super::norm::Norm;
use super::param::Param;
use super::spec::Spec;
use super::table::{EmbedScratch, Table, embed};
use super::token_rows::EmbedGrad;
use super::{attention, mlp};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::embedding::Embedding;
use crate::ops::residual::Residual;
use std::rc::Rc;

/// What is kept of the forward pass for the backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: there is no backward.
    Inference,
    /// Every block's activations.
    Keep,
    /// Every block's input; the rest is computed again (activation checkpointing, Chen et al. 2016, arXiv:1604.06174).
    Recompute,
}

impl Plan {
    /// Bytes of a session of N tokens, weights not counted.
    pub fn bytes(self, s: &Spec, N: usize, dtype: DType) -> u64 {
        let train = self != Plan::Inference;
        let streams = if train { s.layers + 3 } else { 3 };
        let mlp = mlp::Scratch::bytes(s, N, dtype, train);
        let scratch = (N * s.C * dtype.size()) as u64 + attention::Scratch::bytes(s, N, dtype, train);
        let saved = match self {
            Plan::Keep => (0..s.layers).map(|l| Saved::bytes(s, &[s.mlp(l)], N, dtype)).sum(),
            Plan::Recompute | Plan::Inference => Saved::bytes(s, &s.mlps(), N, dtype),
        };
        let head = HeadScratch::bytes(s.V, N, dtype, train);
        (N * s.C * dtype.size() * streams) as u64 + scratch + mlp + saved + head
    }
}

pub struct Session<'b> {
    b: &'b dyn Backend,
    /// Owns every buffer here.
    _scope: Scope<'b>,
    plan: Plan,
    pub N: usize,
    inputs: Inputs,
    /// Residual stream: the input of each block, and the last block's output.
    x: Vec<Buf>,
    saved: Vec<Saved>,
    scratch: BlockScratch,
    /// final norm's output [N, C] and statistics; for training also the gradient of both
    h: Buf,
    stats: Buf,
    dh: Option<(Buf, Buf)>,
    embed: Option<EmbedScratch>,
    embed_rows: Option<EmbedGrad>,
    /// Of the last forward, where `embed_rows` asks for them.
    ids: Vec<u32>,
    head: HeadScratch,
}

impl<'b> Session<'b> {
    /// Buffers for steps of exactly `N` tokens at positions below `positions`.
    pub fn new(b: &'b dyn Backend, model: &Model, N: usize, positions: usize, plan: Plan) -> Result<Session<'b>> {
        let (s, dtype) = (&model.spec, model.dtype);
        let train = plan != Plan::Inference;
        let scope = Scope::new(b);
        let stream = || scope.alloc(N * s.C, dtype);
        let linear = LinearScratch::new(&scope, model.linears(), N, dtype)?;
        let M = N * s.moe.as_ref().map_or(0, |moe| moe.S);
        let experts = LinearScratch::new(&scope, model.experts().map(|e| &e.stack), M, dtype)?;
        let streams = if train { s.layers + 1 } else { 2 };
        let kept = match plan {
            Plan::Keep => (0..s.layers).map(|l| vec![s.mlp(l)]).collect(),
            Plan::Recompute | Plan::Inference => vec![s.mlps()],
        };
        Ok(Session {
            b,
            plan,
            N,
            inputs: Inputs::new(&scope, s, N, positions)?,
            x: (0..streams).map(|_| stream()).collect::<Result<_>>()?,
            saved: kept.iter().map(|mlps| Saved::new(&scope, s, mlps, N, dtype)).collect::<Result<_>>()?,
            scratch: BlockScratch::new(&scope, s, (linear, experts), N, dtype, train)?,
            h: stream()?,
            stats: scope.alloc(Norm::rows(s, N).stats(), DType::F32)?,
            dh: if train { Some((stream()?, stream()?)) } else { None },
            embed: EmbedScratch::new(&scope, &model.embed, s.V, N)?,
            embed_rows: match &model.embed_rows {
                Some(_) if train => Some(EmbedGrad::new(&scope, N, s.C, dtype)?),
                _ => None,
            },
            ids: Vec::new(),
            head: HeadScratch::new(&scope, model, N, train)?,
            _scope: scope,
        })
    }

    /// From now on `observer` sees what each linear layer is given in a forward pass; `None`: nobody does.
    pub fn observe(&mut self, observer: Option<Rc<dyn Observer>>) {
        self.scratch.observe(observer);
    }
    /// The seed of the adapters' dropout from now on; `None`, as at first: nothing is dropped.
    pub fn set_dropout(&mut self, seed: Option<u32>) {
        self.scratch.set_dropout(seed);
    }

    /// Embedding, blocks, final norm.
    pub fn forward(&mut self, model: &Model, tokens: &Tokens) -> Result<()> {
        self.inputs.set(self.b, &model.spec, tokens, 0)?;
        if self.embed_rows.is_some() {
            self.ids.clone_from(&tokens.ids);
        }
        self.run(model, None)
    }

    /// The same for tokens that follow those in `caches` (one per layer, as k and v); `T` counts both.
    pub fn forward_cached(&mut self, model: &Model, ids: &[u32], caches: &[(Buf, Buf)], T: usize) -> Result<()> {
        let first = T - ids.len();
        let mut tokens = Tokens::single(ids);
        tokens.positions.iter_mut().for_each(|p| *p += first as u32);
        self.inputs.set(self.b, &model.spec, &tokens, first)?;
        self.run(model, Some((caches, T)))
    }

    fn run(&mut self, model: &Model, caches: Option<(&[(Buf, Buf)], usize)>) -> Result<()> {
        let (b, s, N) = (self.b, &model.spec, self.N);
        model.put_token_rows(b)?;
        let embedding = embedding_params(s, N, model.dtype);
        let (out, values) = (&mut self.x[0], &mut self.h);
        embed(b, &model.embed, &mut self.embed, (out, values), &self.inputs.ids, &embedding)?;
        if let (Some(weight), Some(positions)) = (&model.positions, &self.inputs.positions) {
            b.embedding_forward(&mut self.h, &positions.rows, &weight.value, &positions_params(s, N))?;
            b.residual_backward(&mut self.x[0], &self.h, &Residual { P: (N * s.C) as u32, scale: 1.0 })?;
        }
        for (l, block) in model.blocks.iter().enumerate() {
            let saved = &mut self.saved[if self.plan == Plan::Keep { l } else { 0 }];
            let (x, out) = stream_pair(&mut self.x, l);
            let cache = caches.map(|(c, T)| Cache { k: &c[l].0, v: &c[l].1, T });
            block.forward(b, s, saved, &mut self.scratch, out, x, &self.inputs, cache)?;
        }
        let last = &self.x[model.blocks.len() % self.x.len()];
        Norm::rows(s, N).forward(b, &mut self.h, &mut self.stats, last, &model.final_norm)
    }

    /// The logits of tokens `first..first + n` of the last forward, [n, V], on the host.
    pub fn logits(&self, model: &Model, first: usize, n: usize) -> Result<Vec<f32>> {
        self.head.download_logits(self.b, head_of(model), &self.h, first, n)
    }

    /// The log-probability of each token's label after a forward; 0 where it is ignored.
    pub fn logprobs(&mut self, model: &Model, labels: &[u32]) -> Result<Vec<f32>> {
        self.head.forward(self.b, head_of(model), &self.h, labels)
    }

    /// After a forward: adds ∂(Σ coef·logp)/∂weight to the gradient of every trained weight.
    pub fn backward(&mut self, model: &mut Model, labels: &[u32], coef: &[f32]) -> Result<()> {
        let (b, N) = (self.b, self.N);
        let Model {
            spec: s, dtype, embed, positions, blocks, final_norm, head, head_bias, embed_rows, head_rows, ..
        } = model;
        let (dx, dh) = self.dh.as_mut().expect("a session for training");
        // a tied head's rows are the embedding's
        let rows = if head.is_some() { head_rows.as_mut() } else { embed_rows.as_mut() };
        let table = head.as_mut().unwrap_or(embed);
        self.head.backward(b, (table, head_bias.as_mut(), rows), dh, &self.h, labels, coef)?;
        b.fill(dx, 0.0)?;
        Norm::rows(s, N).backward(b, final_norm, dx, dh, &self.x[blocks.len()], &self.stats)?;
        for (l, block) in blocks.iter_mut().enumerate().rev() {
            let saved = &mut self.saved[if self.plan == Plan::Keep { l } else { 0 }];
            if self.plan == Plan::Recompute {
                block.forward_saved(b, s, saved, &mut self.scratch, &self.x[l], &self.inputs, None)?;
            }
            block.backward(b, s, saved, &mut self.scratch, dx, &self.x[l], &self.inputs)?;
        }
        if let Table::Dense(Param { train: Some(train), .. }) = embed {
            let p = embedding_params(s, N, *dtype);
            b.embedding_backward(&mut train.grad, dx, &self.inputs.ids, &self.inputs.order, &p)?;
        }
        if let (Some(grad), Some(rows)) = (&mut self.embed_rows, embed_rows) {
            grad.backward(b, rows, &self.ids, dx, dtype.round(s.embed_scale))?;
        }
        if let (Some(Param { train: Some(train), .. }), Some(own)) = (positions, &self.inputs.positions) {
            b.embedding_backward(&mut train.grad, dx, &own.rows, &own.order, &positions_params(s, N))?;
        }
        Ok(())
    }

    /// The log-probabilities that the last backward saw. Waits for the device.
    pub fn backward_logprobs(&self) -> Result<Vec<f32>> {
        self.head.logp(self.b)
    }
}

fn head_of(model: &Model) -> Weights<'_> {
    Weights { table: model.head.as_ref().unwrap_or(&model.embed), bias: model.head_bias.as_ref() }
}

fn embedding_params(s: &Spec, N: usize, dtype: DType) -> Embedding {
    Embedding { N: N as u32, V: s.V as u32, C: s.C as u32, scale: dtype.round(s.embed_scale) }
}

fn positions_params(s: &Spec, N: usize) -> Embedding {
    Embedding { N: N as u32, V: s.max_positions as u32, C: s.C as u32, scale: 1.0 }
}

/// Block l's input and output; with two buffers they take turns.
fn stream_pair(x: &mut [Buf], l: usize) -> (&Buf, &mut Buf) {
    let (from, to) = (l % x.len(), (l + 1) % x.len());
    let [from, to] = x.get_disjoint_mut([from, to]).expect("two streams at least");
    (from, to)
}
