//! A model at work on a fixed number of tokens: all buffers are made once, before the first step.
use super::Model;
use super::attention::Grads;
use super::balance::Balance;
use super::batch::{Inputs, Tokens, rope_tables};
use super::block::{Block, BlockScratch, Following, same};
use super::head::{HeadScratch, Weights};
use super::kept::Kept;
use super::linear::{LinearScratch, Observer, Unpacked};
use super::mlp;
use super::neftune::Neftune;
use super::norm::Norm;
use super::paged::{Cache, Fixed, Layout, Part, Pool, Step, Tables};
use super::param::Param;
use super::plan::{Keep, Plan};
use super::spec::{ResidualKind, Spec};
use super::table::{EmbedScratch, Table, embed};
use super::token_rows::EmbedGrad;
use super::watch::{Part as Passed, Watch};
use crate::backend::{Backend, Buf, Charge, Recording, Scope, Use};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::embedding::Embedding;
use crate::ops::residual::Residual;
use std::collections::HashMap;
use std::rc::Rc;

pub struct Session<'b> {
    b: &'b dyn Backend,
    /// Paged steps, by the adapter on the model and what settles the step's calls. Before the buffers, which they use.
    steps: HashMap<(u64, Fixed), Recording>,
    /// Owns every buffer here.
    scope: Scope<'b>,
    /// Owns what other sessions could share, where no other does.
    _common: Option<Scope<'b>>,
    pub N: usize,
    inputs: Inputs,
    kept: Kept<'b>,
    scratch: BlockScratch,
    /// The final norm's output [N, C], in the blocks' scratch, and its statistics.
    h: Buf,
    stats: Buf,
    /// For training: the gradient of the residual stream, and that of h, in the blocks' scratch.
    dx: Option<(Buf, Buf)>,
    embed: Option<EmbedScratch>,
    /// Only where a run asks for it.
    neftune: Option<Neftune>,
    embed_rows: Option<EmbedGrad>,
    head: HeadScratch,
}

/// So many recorded steps are kept at a time.
const RECORDED: usize = 16;

/// What sessions of one model may have in common: RoPE tables for `positions`, and where weights are unpacked.
pub struct Common<'b> {
    scope: Scope<'b>,
    positions: usize,
    tables: Vec<Option<Buf>>,
    /// For linear layers, for experts.
    unpacked: [Option<Unpacked>; 2],
}

impl<'b> Common<'b> {
    /// For sessions of up to `N` tokens at positions below `positions`.
    pub fn new(b: &'b dyn Backend, model: &Model, N: usize, positions: usize) -> Result<Common<'b>> {
        let _charge = Charge::to(b, Use::Scratch);
        let scope = Scope::new(b);
        let experts = model.experts().map(|e| &e.stack);
        let tables = rope_tables(&scope, &model.spec, positions, N)?;
        let _charge = Charge::to(b, Use::Unpacked);
        let unpacked = [
            Unpacked::new(&scope, model.linears(), model.dtype, b.rules().turns())?,
            Unpacked::new(&scope, experts, model.dtype, 1)?,
        ];
        Ok(Common { positions, tables, unpacked, scope })
    }
}

/// What is wanted only for a time: by the head, by a block's MLP, by its attention in the backward. Each leaves nothing to the next.
struct Turns {
    head: Vec<Buf>,
    mlp: mlp::Room,
    grads: Option<Grads>,
}

impl Turns {
    fn new(scope: &Scope, model: &Model, (N, labels): (usize, usize), plan: &Plan) -> Result<Turns> {
        let (s, dtype) = (&model.spec, model.dtype);
        let each = plan.layers(s.layers);
        let again = each.as_ref().is_none_or(|each| each.iter().any(|keep| *keep != Keep::All));
        let head = HeadScratch::sizes(&*scope.backend().rules(), model, labels, each.is_some());
        let mut mlp = mlp::Room::sizes(s, N, dtype, plan.tile(N), again);
        let mut grads = each.map_or(Vec::new(), |_| Grads::sizes(s, N, dtype).to_vec());
        let own = mlp.len();
        // parallel branches are at work at the same time
        if s.residual != ResidualKind::Sequential {
            mlp.append(&mut grads);
        }
        let _charge = Charge::to(scope.backend(), Use::Turns);
        let mut all = scope.by_turns(&[head, mlp, grads])?.into_iter();
        let mut next = || all.next().ok_or_else(|| Error::Bug("a phase without its buffers".into()));
        let (head, mut mlp, mut grads) = (next()?, next()?, next()?);
        grads.extend(mlp.drain(own..));
        let grads = <[Buf; 5]>::try_from(grads).ok().map(Grads::of);
        Ok(Turns { head, mlp: mlp::Room::of(mlp.into_iter()), grads })
    }
}

impl<'b> Session<'b> {
    /// Buffers for steps of exactly `N` tokens at positions below `positions`.
    pub fn new(b: &'b dyn Backend, model: &Model, N: usize, positions: usize, plan: Plan) -> Result<Session<'b>> {
        let mut common = Common::new(b, model, N, positions)?;
        let mut session = Session::with(&common, model, N, N, plan)?;
        session._common = Some(std::mem::replace(&mut common.scope, Scope::new(b)));
        Ok(session)
    }

    /// For steps of `N` tokens; `common` outlives it. Logits are made of up to `labels` of them at a time.
    pub fn with(common: &Common<'b>, model: &Model, N: usize, labels: usize, plan: Plan) -> Result<Session<'b>> {
        let b = common.scope.backend();
        let (s, dtype) = (&model.spec, model.dtype);
        let train = plan != Plan::Inference;
        let _charge = Charge::to(b, Use::Scratch);
        let scope = Scope::new(b);
        let Turns { head, mlp, grads } = Turns::new(&scope, model, (N, labels), &plan)?;
        let [unpacked, unpacked_experts] = &common.unpacked;
        let linear = LinearScratch::with(&scope, model.linears(), N, dtype, unpacked)?;
        let M = N * s.moe.as_ref().map_or(0, |moe| moe.S);
        let experts = LinearScratch::with(&scope, model.experts().map(|e| &e.stack), M, dtype, unpacked_experts)?;
        let scratch = BlockScratch::new(&scope, s, (linear, experts), N, dtype, &mlp, grads)?;
        let ranks: Vec<_> = model.blocks.iter().map(Block::ranks).collect();
        Ok(Session {
            b,
            steps: HashMap::new(),
            N,
            inputs: Inputs::new(&scope, s, N, &common.tables, common.positions)?,
            kept: Kept::new(&scope, s, &ranks, N, dtype, &plan, &mlp)?,
            h: same(&scratch.n),
            stats: scope.alloc(Norm::rows(s, N).stats(), DType::F32)?,
            dx: if train { Some((scope.alloc(N * s.C, dtype)?, same(&scratch.c))) } else { None },
            scratch,
            embed: EmbedScratch::new(&scope, &model.embed, s.V, N)?,
            neftune: None,
            embed_rows: match &model.embed_rows {
                Some(_) if train => Some(EmbedGrad::new(&scope, N, s.C, dtype)?),
                _ => None,
            },
            head: HeadScratch::new(&scope, model, labels, train, head)?,
            _common: None,
            scope,
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

    /// NEFTune's alpha, and the seed of the noise on embeddings from now on; `None`, as at first: there is none.
    pub fn set_neftune(&mut self, noise: Option<(f64, u32)>) -> Result<()> {
        if noise.is_some() && self.neftune.is_none() {
            let _charge = Charge::to(self.b, Use::Scratch);
            self.neftune = Some(Neftune::new(&self.scope, self.N)?);
        }
        if let Some(neftune) = &mut self.neftune {
            neftune.seed = noise.map(|(_, seed)| seed);
            neftune.alpha = noise.map_or(neftune.alpha, |(alpha, _)| alpha);
        }
        Ok(())
    }

    /// Before a forward and its backward: the latter adds the gradient of coef·balance loss of the routers, over the tokens that
    /// count ([N]). For a model that [`Model::has_balance`].
    pub fn start_balance(&mut self, model: &Model, counts: &[bool], coef: f64) -> Result<()> {
        let (s, N) = (&model.spec, self.N);
        if let (Some(moe), Some(scratch)) = (&s.moe, self.scratch.mixtures()) {
            if scratch.balance.is_none() {
                let _charge = Charge::to(self.b, Use::Scratch);
                scratch.balance = Some(Balance::new(&self.scope, moe, (0..s.layers).map(|l| s.mlp(l)), N)?);
            }
            scratch.balance.iter_mut().try_for_each(|balance| balance.start(self.b, counts, coef))?;
        }
        Ok(())
    }
    /// The routers' balance loss of the last forward. Waits.
    pub fn balance_loss(&mut self) -> Result<Option<f64>> {
        let balance = self.scratch.mixtures().and_then(|scratch| scratch.balance.as_ref());
        balance.map(|balance| balance.loss(self.b)).transpose()
    }

    /// Embedding, blocks, final norm.
    pub fn forward(&mut self, model: &Model, tokens: &Tokens) -> Result<()> {
        self.forward_watched(model, tokens, &mut ())
    }

    /// The same, and tells what it passes.
    pub fn forward_watched(&mut self, model: &Model, tokens: &Tokens, watch: &mut dyn Watch) -> Result<()> {
        self.inputs.set(self.b, &model.spec, tokens)?;
        if let Some(neftune) = &mut self.neftune {
            neftune.set(self.b, tokens, model.spec.C)?;
        }
        self.inputs.tell(self.b, &model.spec, tokens);
        model.put_token_rows(self.b)?;
        self.run(model, None, watch)
    }

    /// The same as [`Session::forward`] for tokens that follow those in the pages of their sequences, up to N in all; those of `parts` with few tokens
    /// come first. Their own keys and values go to their pages. `adapter` tells what is on the model from what else may be.
    pub fn forward_paged(
        &mut self,
        model: &Model,
        adapter: u64,
        parts: &[Part],
        pool: &Pool,
        tables: &mut Tables,
    ) -> Result<()> {
        let layout = Layout::new(parts, self.N, model.spec.K);
        self.inputs.set_paged(self.b, &model.spec, &layout)?;
        let step = tables.set(self.b, &model.spec, &layout)?;
        model.put_token_rows(self.b)?;
        // weights that come from the host come when they are wanted
        let stays = model.streamed.is_none() && !matches!(model.embed, Table::Host(_));
        let Some(fixed) = step.fixed().filter(|_| stays) else { return self.run(model, Some((pool, &step)), &mut ()) };
        // made for tables that are no more
        self.steps.retain(|(_, other), _| other.tables == fixed.tables);
        if self.steps.len() >= RECORDED && !self.steps.contains_key(&(adapter, fixed)) {
            self.steps.clear();
        }
        let mut recording = self.steps.remove(&(adapter, fixed)).unwrap_or_default();
        let b = self.b;
        b.record(&mut recording, &mut || self.run(model, Some((pool, &step)), &mut ()))?;
        self.steps.insert((adapter, fixed), recording);
        Ok(())
    }

    fn run(&mut self, model: &Model, pool: Option<(&Pool, &Step)>, watch: &mut dyn Watch) -> Result<()> {
        let (b, s, N) = (self.b, &model.spec, self.N);
        let embedding = embedding_params(s, N, model.dtype);
        let (out, values) = (&mut self.kept.x[0], &mut self.h);
        embed(b, &model.embed, &mut self.embed, (out, values), (&self.inputs.ids, &self.inputs.host_ids), &embedding)?;
        if let Some(neftune) = &self.neftune {
            neftune.add(b, &mut self.kept.x[0], s.C)?;
        }
        if let (Some(weight), Some(positions)) = (&model.positions, &self.inputs.positions) {
            b.embedding_forward(&mut self.h, &positions.rows, &weight.value, &positions_params(s, N))?;
            b.residual_backward(&mut self.kept.x[0], &self.h, &Residual { P: (N * s.C) as u32, scale: 1.0 })?;
        }
        let mut normed = false;
        for (l, block) in model.blocks.iter().enumerate() {
            if let Some(streamed) = &model.streamed {
                streamed.want(b, l)?;
                streamed.want(b, l + 1)?;
            }
            watch.forward(l)?;
            let Kept { x, saved, .. } = &mut self.kept;
            let [x, out] = x.get_disjoint_mut([l, l + 1]).expect("an input and an output");
            let (own, others) = saved[l..].split_first_mut().expect("what a layer saves");
            let following = match (model.blocks.get(l + 1), others.first_mut()) {
                (Some(next), Some(saved)) => next.first_norm(saved),
                _ => Some(Following { weights: &model.final_norm, stats: &mut self.stats, out: Some(&mut self.h) }),
            };
            let cache = pool.map(|(pool, step)| {
                let (k, v) = pool.layer(l);
                Cache { k, v, step }
            });
            let (out, x) = ((out, following), (&*x, normed));
            normed = block.forward(b, s, own, &mut self.scratch, out, x, &self.inputs, cache)?;
            block.balance(b, own, &mut self.scratch)?;
            self.kept.leave(b, l)?;
        }
        if normed {
            return Ok(());
        }
        let last = &self.kept.x[model.blocks.len()];
        Norm::rows(s, N).forward(b, &mut self.h, &mut self.stats, last, &model.final_norm)
    }

    /// The final norm's output of the last forward, [N, C].
    pub(super) fn hidden(&self) -> &Buf {
        &self.h
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
        self.backward_watched(model, labels, coef, &mut ())
    }

    /// The same, and tells what it passes.
    pub fn backward_watched(
        &mut self,
        model: &mut Model,
        labels: &[u32],
        coef: &[f32],
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let (b, N) = (self.b, self.N);
        let Model {
            spec: s,
            dtype,
            embed,
            positions,
            blocks,
            final_norm,
            head,
            head_bias,
            embed_rows,
            head_rows,
            streamed,
            ..
        } = model;
        // whether anything that is trained lies before the first block
        let mut embeddings = embed.param().into_iter().chain(&*positions);
        let embeds = self.embed_rows.is_some() || embeddings.any(|param| param.train.is_some());
        let (dx, dh) = self.dx.as_mut().expect("a session for training");
        // a tied head's rows are the embedding's
        let rows = if head.is_some() { head_rows.as_mut() } else { embed_rows.as_mut() };
        let table = head.as_mut().unwrap_or(embed);
        watch.before(Passed::Head)?;
        self.head.backward(b, (table, head_bias.as_mut(), rows), dh, &self.h, labels, coef)?;
        watch.after(Passed::Head)?;
        b.fill(dx, 0.0)?;
        Norm::rows(s, N).backward(b, final_norm, dx, dh, &self.kept.x[blocks.len()], &self.stats)?;
        for (l, block) in blocks.iter_mut().enumerate().rev() {
            if let Some(streamed) = streamed {
                streamed.want(b, l)?;
                l.checked_sub(1).map_or(Ok(()), |next| streamed.want(b, next))?;
            }
            watch.before(Passed::Layer(l))?;
            let keep = self.kept.keep(l);
            let (x, saved, t) = (&self.kept.x[l], &mut self.kept.saved[l], &mut self.scratch);
            match keep {
                Keep::All => {}
                Keep::Input => block.forward_saved(b, s, saved, t, (x, false), &self.inputs, None)?,
                Keep::Attention | Keep::Host => block.forward_again(b, s, saved, t, x, &self.inputs)?,
            }
            block.backward(b, s, saved, t, (dx, l > 0 || embeds), x, &self.inputs, keep)?;
            self.kept.fetch(b, l)?;
            watch.after(Passed::Layer(l))?;
        }
        watch.before(Passed::Embedding)?;
        if let Table::Dense(Param { train: Some(train), .. }) = embed {
            let p = embedding_params(s, N, *dtype);
            b.embedding_backward(train.sum(b)?, dx, &self.inputs.ids, &self.inputs.order, &p)?;
        }
        if let (Some(grad), Some(rows)) = (&mut self.embed_rows, embed_rows) {
            grad.backward(b, rows, &self.inputs.host_ids, dx, dtype.round(s.embed_scale))?;
        }
        if let (Some(Param { train: Some(train), .. }), Some(own)) = (positions, &self.inputs.positions) {
            b.embedding_backward(train.sum(b)?, dx, &own.rows, &own.order, &positions_params(s, N))?;
        }
        watch.after(Passed::Embedding)
    }

    /// The log-probabilities that the last backward saw. Waits for the device.
    pub fn backward_logprobs(&self) -> Result<Vec<f32>> {
        self.head.logp(self.b)
    }
}

pub(super) fn head_of(model: &Model) -> Weights<'_> {
    Weights { table: model.head.as_ref().unwrap_or(&model.embed), bias: model.head_bias.as_ref() }
}

fn embedding_params(s: &Spec, N: usize, dtype: DType) -> Embedding {
    Embedding { N: N as u32, V: s.V as u32, C: s.C as u32, scale: dtype.round(s.embed_scale) }
}

fn positions_params(s: &Spec, N: usize) -> Embedding {
    Embedding { N: N as u32, V: s.max_positions as u32, C: s.C as u32, scale: 1.0 }
}
