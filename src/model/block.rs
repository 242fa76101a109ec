//! A decoder block: attention and MLP, each added to the residual stream; norms before them, after them or both. In parallel
//! blocks the MLP reads the stream before attention, maybe through the same norm (n2 = n1), and both branches get dx as it came.
//!
//! ```text
//! forward                                     backward (dx: the residual stream's gradient, in place)
//! n1 = (norm) x                     [N,C]     dm = (scale·, post-norm⁻) dx
//! a = attention(n1)                 [N,C]     dn = mlp⁻(dm);  dx += (norm⁻) dn
//! x2 = x + scale·(post-norm) a      [N,C]     da = (scale·, post-norm⁻) dx
//! n2 = (norm) x2, or x              dn = attention⁻(da);  dx += (norm⁻) dn
//! m = mlp(n2)                       [N,C]
//! y = x2 + scale·(post-norm) m      [N,C]
//! ```
use super::attention::{self, Attention};
use super::batch::Inputs;
use super::experts::Experts;
use super::linear::low::Ranks;
use super::linear::{Linear, LinearScratch, Observer};
use super::mlp::{self, Mlp};
use super::moe;
use super::norm::{Norm, NormParams};
use super::paged::Cache;
use super::param::Param;
use super::plan::Keep;
use super::spec::{MlpKind, ResidualKind, Spec};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::residual::Residual;
use std::rc::Rc;

pub struct Block {
    /// Which of the model's kinds of layers it is.
    pub kind: usize,
    pub attention: Attention,
    pub mlp: Mlp,
    /// Of what attention and MLP read: none, one for both, or two.
    pub pre_norms: Vec<NormParams>,
    /// Of what attention and MLP add to the stream.
    pub post_norms: Option<[NormParams; 2]>,
}

/// What a block keeps of its forward for its backward, besides its input x.
pub struct Saved {
    /// Statistics, one per norm of what attention and MLP read. The norms' outputs are made again.
    pre: Vec<Buf>,
    attention: attention::Saved,
    /// `None`: attention and MLP are parallel.
    x2: Option<Buf>,
    mlp: mlp::Saved,
    post: Option<[Post; 2]>,
}

/// A norm of the residual stream as it comes to be: of what a half of a block makes, the next half's, or the last of all.
pub(super) struct Following<'a> {
    pub weights: &'a NormParams,
    pub stats: &'a mut Buf,
    /// `None`: where the next half reads it.
    pub out: Option<&'a mut Buf>,
}

/// A post-norm's input and statistics.
struct Post {
    inp: Buf,
    stats: Buf,
}

/// What blocks share while they run.
pub struct BlockScratch {
    pub linear: LinearScratch,
    attention: attention::Scratch,
    /// [N, C]: a branch's output, a norm's gradient.
    pub(super) c: Buf,
    /// [N, C]: what attention or MLP reads, where that is normed.
    pub(super) n: Buf,
    mlp: mlp::Scratch,
}

impl Saved {
    /// For layers whose MLPs are of these kinds.
    /// With a `tile`, MLPs without experts run so many tokens at a time. `room`: where gate and up lie, if not apart.
    pub fn new(
        scope: &Scope,
        s: &Spec,
        mlps: &[MlpKind],
        N: usize,
        dtype: DType,
        tile: Option<usize>,
        room: Option<&mlp::Room>,
        ranks: Ranks,
    ) -> Result<Saved> {
        let buf = |cols: usize| scope.alloc(N * cols, dtype);
        let stats = || scope.alloc(Norm::rows(s, N).stats(), DType::F32);
        let post = || Ok(Post { inp: buf(s.C)?, stats: stats()? });
        let (after, sequential) = (s.norm_place.after(), s.residual == ResidualKind::Sequential);
        if after && s.residual_scale != 1.0 {
            return Err(Error::Bug("a scaled residual with a norm after: its gradient is not written yet".into()));
        }
        if !sequential && (after || !s.norm_place.before()) {
            return Err(Error::Bug("parallel attention and MLP have norms before, and none after".into()));
        }
        Ok(Saved {
            pre: (0..pre_norms(s)).map(|_| stats()).collect::<Result<_>>()?,
            attention: attention::Saved::new(scope, s, N, dtype, ranks)?,
            x2: if sequential { Some(buf(s.C)?) } else { None },
            mlp: mlp::Saved::new(scope, s, mlps, N, dtype, tile, room, ranks)?,
            post: if after { Some([post()?, post()?]) } else { None },
        })
    }

    /// Other handles of the same buffers.
    pub fn share(&self) -> Saved {
        Saved {
            pre: self.pre.iter().map(same).collect(),
            attention: self.attention.share(),
            x2: self.x2.as_ref().map(same),
            mlp: self.mlp.share(),
            post: self
                .post
                .as_ref()
                .map(|post| post.each_ref().map(|p| Post { inp: same(&p.inp), stats: same(&p.stats) })),
        }
    }

    /// What [`Block::forward_again`] wants to find as the forward left it, beside x: what attention and the projections that end
    /// its two halves made.
    pub fn boundary(&mut self) -> Vec<&mut Buf> {
        let Saved { attention, x2, post, .. } = self;
        let mut all = attention.boundary();
        match post {
            // x2 comes of the norm of the first
            Some([first, second]) => all.extend([&mut first.inp, &mut second.inp]),
            None => all.extend(x2),
        }
        all
    }
}

impl BlockScratch {
    pub fn observe(&mut self, observer: Option<Rc<dyn Observer>>) {
        self.linear.observer = observer.clone();
        self.mlp.observe(observer);
    }
    /// The seed of the adapters' dropout from now on; `None`: nothing is dropped.
    pub fn set_dropout(&mut self, seed: Option<u32>) {
        self.linear.dropout.seed = seed;
        if let Some(experts) = self.mlp.experts() {
            experts.dropout.seed = seed;
        }
    }

    /// What the mixtures of all layers share, if there are any.
    pub(super) fn mixtures(&mut self) -> Option<&mut moe::Scratch> {
        self.mlp.mixtures()
    }

    /// For up to `N` tokens; `experts` is for the rows of experts; `grads` for training.
    pub fn new(
        scope: &Scope,
        s: &Spec,
        (linear, experts): (LinearScratch, LinearScratch),
        N: usize,
        dtype: DType,
        room: &mlp::Room,
        grads: Option<attention::Grads>,
    ) -> Result<BlockScratch> {
        let train = grads.is_some();
        Ok(BlockScratch {
            linear,
            attention: attention::Scratch::new(scope, s, N, dtype, grads)?,
            c: scope.alloc(N * s.C, dtype)?,
            n: scope.alloc(N * s.C, dtype)?,
            mlp: mlp::Scratch::new(scope, s, experts, N, dtype, train, room)?,
        })
    }
}

impl Block {
    /// All that the backward needs: up to gate and up, and with a post-norm the MLP's output. With a cache, k and v of the new
    /// tokens go to their pages. `normed`: what attention reads was made with x.
    pub fn forward_saved(
        &self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        t: &mut BlockScratch,
        (x, normed): (&Buf, bool),
        inputs: &Inputs,
        cache: Option<Cache>,
    ) -> Result<()> {
        let (N, norm) = (inputs.N, Norm::rows(s, inputs.N));
        let BlockScratch { linear, attention: tools, c, n, mlp } = t;
        let Saved { pre, attention, x2, mlp: saved_mlp, post } = saved;
        let n1 = if normed { self.read(n, x) } else { self.normed(b, &norm, 0, pre, n, x)? };
        self.attention.forward(b, s, self.kind, attention, (&mut *tools, linear), n1, inputs, cache)?;
        if x2.is_some() {
            match (&self.post_norms, post.as_mut()) {
                (Some([weight, _]), Some([post, _])) => {
                    self.attention.output(b, s, (tools, linear), &mut post.inp, attention, N)?;
                    norm.forward(b, c, &mut post.stats, &post.inp, weight)?;
                }
                _ => self.attention.output(b, s, (tools, linear), c, attention, N)?,
            }
        }
        let n2 = self.second(b, (s, &norm), pre, n, x2, (x, c))?;
        self.mlp.forward_saved(b, s, saved_mlp, (mlp, linear), n2, N)?;
        if let (Some([_, weight]), Some([_, post])) = (&self.post_norms, post) {
            self.mlp.output(b, s, saved_mlp, (mlp, linear), &mut post.inp, n2, N)?;
            norm.forward(b, c, &mut post.stats, &post.inp, weight)?;
        }
        Ok(())
    }

    /// As `forward_saved` once more, from x and the boundary that it left: without attention, and without the projections that end
    /// attention and MLP.
    pub fn forward_again(
        &self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        t: &mut BlockScratch,
        x: &Buf,
        inputs: &Inputs,
    ) -> Result<()> {
        let (N, norm) = (inputs.N, Norm::rows(s, inputs.N));
        let BlockScratch { linear, attention: tools, c, n, mlp } = t;
        let Saved { pre, attention, x2, mlp: saved_mlp, post } = saved;
        let n1 = self.normed(b, &norm, 0, pre, n, x)?;
        self.attention.project(b, s, self.kind, attention, (tools, linear), n1, inputs)?;
        let n2 = match (&self.post_norms, post) {
            (Some(weights), Some(posts)) => {
                // the second only for its statistics
                for (weight, post) in weights.iter().zip(posts).rev() {
                    norm.forward(b, c, &mut post.stats, &post.inp, weight)?;
                }
                self.second(b, (s, &norm), pre, n, x2, (x, c))?
            }
            _ => self.normed(b, &norm, 1, pre, n, x2.as_ref().unwrap_or(x))?,
        };
        self.mlp.forward_saved(b, s, saved_mlp, (mlp, linear), n2, N)
    }

    /// sum = x + scale·c, and `following` of it, which is in n unless it has a place; whether there is one.
    fn sum(
        b: &dyn Backend,
        (s, norm): (&Spec, &Norm),
        (sum, n): (&mut Buf, &mut Buf),
        (x, c): (&Buf, &Buf),
        following: Option<Following>,
    ) -> Result<bool> {
        match following {
            Some(Following { weights, stats, out }) => {
                norm.forward_sum(b, (out.unwrap_or(n), stats), sum, (x, c, s.residual_scale), weights)?;
                Ok(true)
            }
            None => b.residual_forward(sum, x, c, &branch(s, sum)).map(|()| false),
        }
    }

    /// x2, if there is one, from x and the branch c, and what the MLP reads.
    fn second<'a>(
        &self,
        b: &dyn Backend,
        (s, norm): (&Spec, &Norm),
        pre: &mut [Buf],
        n: &'a mut Buf,
        x2: &'a mut Option<Buf>,
        (x, c): (&'a Buf, &Buf),
    ) -> Result<&'a Buf> {
        let Some(x2) = x2 else { return self.normed(b, norm, 1, pre, n, x) };
        Self::sum(b, (s, norm), (&mut *x2, &mut *n), (x, c), self.pre_norm(1, pre))?;
        Ok(self.read(n, x2))
    }

    /// What attention (0) or MLP (1) reads: inp, or its norm in n; where they share one, attention's turn makes it.
    fn normed<'a>(
        &self,
        b: &dyn Backend,
        norm: &Norm,
        which: usize,
        pre: &mut [Buf],
        n: &'a mut Buf,
        inp: &'a Buf,
    ) -> Result<&'a Buf> {
        if let Some(Following { weights, stats, .. }) = self.pre_norm(which, pre) {
            norm.forward(b, n, stats, inp, weights)?;
        }
        Ok(self.read(n, inp))
    }

    /// What attention or MLP has read of inp, right after it was made.
    fn read<'a>(&self, n: &'a Buf, inp: &'a Buf) -> &'a Buf {
        if self.pre_norms.is_empty() { inp } else { n }
    }

    /// The norm of its input, with the statistics in `saved`.
    pub(super) fn first_norm<'a>(&'a self, saved: &'a mut Saved) -> Option<Following<'a>> {
        self.pre_norm(0, &mut saved.pre)
    }

    /// The norm of what attention (0) or MLP (1) reads, if it has one of its own.
    fn pre_norm<'a>(&'a self, which: usize, pre: &'a mut [Buf]) -> Option<Following<'a>> {
        Some(Following { weights: self.pre_norms.get(which)?, stats: pre.get_mut(which)?, out: None })
    }

    /// out [N, C] = the block's output for x [N, C], of which `normed` is as in `forward_saved`. Whether `following` was made, too.
    pub(super) fn forward(
        &self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        t: &mut BlockScratch,
        (out, following): (&mut Buf, Option<Following>),
        (x, normed): (&Buf, bool),
        inputs: &Inputs,
        cache: Option<Cache>,
    ) -> Result<bool> {
        self.forward_saved(b, s, saved, t, (x, normed), inputs, cache)?;
        let N = inputs.N;
        let BlockScratch { linear, attention: tools, c, n, mlp } = t;
        let Some(x2) = &saved.x2 else {
            self.attention.output(b, s, (tools, linear), c, &saved.attention, N)?;
            b.residual_forward(out, x, c, &branch(s, x))?;
            self.mlp.output(b, s, &saved.mlp, (mlp, linear), c, self.read(n, x), N)?;
            b.residual_backward(out, c, &branch(s, x))?;
            return Ok(false);
        };
        if self.post_norms.is_none() {
            self.mlp.output(b, s, &saved.mlp, (mlp, linear), c, self.read(n, x2), N)?;
        }
        Self::sum(b, (s, &Norm::rows(s, N)), (out, n), (x2, c), following)
    }

    /// After a forward: what its router did, where the routers' balance counts.
    pub(super) fn balance(&self, b: &dyn Backend, saved: &Saved, t: &mut BlockScratch) -> Result<()> {
        self.mlp.balance(b, &saved.mlp, &mut t.mlp)
    }

    /// dx [N, C] comes in as ∂L/∂out and leaves as ∂L/∂x, unless that is not `wanted`. `saved` is used up. With anything but
    /// [`Keep::All`], the forward has just run again, as far as `keep` says.
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        saved: &mut Saved,
        t: &mut BlockScratch,
        (dx, wanted): (&mut Buf, bool),
        x: &Buf,
        inputs: &Inputs,
        keep: Keep,
    ) -> Result<()> {
        let (N, norm) = (inputs.N, Norm::rows(s, inputs.N));
        let BlockScratch { linear, attention, c, n, mlp } = t;

        let dm = self.backward_out(b, s, &norm, 1, saved, c, dx)?;
        let dm = same(if dm { &*c } else { &*dx });
        self.mlp.backward_output(b, s, &mut saved.mlp, (mlp, linear), &dm, N)?;
        if saved.x2.is_none() {
            self.attention.backward_output(b, s, &saved.attention, (&mut *attention, linear), &dm, N)?;
        }
        let x2 = same(saved.x2.as_ref().unwrap_or(x));
        let last = self.pre_norms.len().saturating_sub(1);
        let n2 = match keep {
            Keep::All => self.normed(b, &norm, last, &mut saved.pre, n, &x2)?,
            // it is still there
            _ => self.read(n, &x2),
        };
        self.mlp.backward(b, s, &saved.mlp, (mlp, linear), (&mut *c, &dm), n2, N)?;
        self.backward_normed(b, &norm, 1, saved, dx, c, &x2)?;

        if saved.x2.is_some() {
            let da = self.backward_out(b, s, &norm, 0, saved, c, dx)?;
            let da = if da { &*c } else { &*dx };
            self.attention.backward_output(b, s, &saved.attention, (&mut *attention, linear), da, N)?;
        }
        let tools = (attention, &*linear);
        let n1 = self.normed(b, &norm, 0, &mut saved.pre, n, x)?;
        // the gradient of a norm that is trained comes of what goes through it
        let wanted = wanted || self.pre_norms.iter().any(NormParams::is_trained);
        self.attention.backward(b, s, self.kind, &mut saved.attention, tools, (&mut *c, wanted), n1, inputs)?;
        if wanted { self.backward_normed(b, &norm, 0, saved, dx, c, x) } else { Ok(()) }
    }

    /// dx += the gradient dn of what attention (0) or MLP (1) read, through the norm of inp if there is one.
    fn backward_normed(
        &mut self,
        b: &dyn Backend,
        norm: &Norm,
        which: usize,
        saved: &Saved,
        dx: &mut Buf,
        dn: &Buf,
        inp: &Buf,
    ) -> Result<()> {
        let which = which.min(self.pre_norms.len().saturating_sub(1));
        match (self.pre_norms.get_mut(which), saved.pre.get(which)) {
            (Some(weights), Some(stats)) => norm.backward(b, weights, dx, dn, inp, stats),
            _ => b.residual_backward(dx, dn, &Residual { P: dx.len() as u32, scale: 1.0 }),
        }
    }

    /// Where the output of attention (0) or MLP (1) is normed or scaled: dinp = its gradient, and true.
    fn backward_out(
        &mut self,
        b: &dyn Backend,
        s: &Spec,
        norm: &Norm,
        which: usize,
        saved: &Saved,
        dinp: &mut Buf,
        dx: &Buf,
    ) -> Result<bool> {
        match (&mut self.post_norms, &saved.post) {
            (Some(weights), Some(posts)) => {
                b.fill(dinp, 0.0)?;
                norm.backward(b, &mut weights[which], dinp, dx, &posts[which].inp, &posts[which].stats)?;
            }
            _ if s.residual_scale == 1.0 => return Ok(false),
            _ => {
                b.fill(dinp, 0.0)?;
                b.residual_backward(dinp, dx, &Residual { P: dx.len() as u32, scale: s.residual_scale })?;
            }
        }
        Ok(true)
    }

    /// Of adapters whose T may stay from the forward to the backward.
    pub fn ranks(&self) -> Ranks {
        self.attention.ranks().max(self.mlp.ranks())
    }
    /// But for those of experts.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linears().chain(self.mlp.linears())
    }
    pub fn experts(&self) -> impl Iterator<Item = &Experts> {
        self.mlp.experts()
    }
    /// What the weights of linear layers and experts lie in that are not trained.
    pub fn frozen_mut(&mut self) -> Vec<&mut Buf> {
        let linears = self.attention.linears_mut().into_iter().chain(self.mlp.linears_mut());
        linears.flat_map(|linear| linear.weight.frozen_mut()).collect()
    }
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let norms = self.pre_norms.iter().chain(self.post_norms.iter().flatten());
        norms.flat_map(NormParams::params).chain(self.attention.params()).chain(self.mlp.params())
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let Block { attention, mlp, pre_norms, post_norms, .. } = self;
        let norms = pre_norms.iter_mut().chain(post_norms.iter_mut().flatten());
        norms.flat_map(NormParams::params_mut).chain(attention.params_mut()).chain(mlp.params_mut())
    }
}

/// Another handle of a buffer.
pub(super) fn same(buf: &Buf) -> Buf {
    buf.view(0, buf.len())
}

/// Norms of what attention and MLP read.
fn pre_norms(s: &Spec) -> usize {
    match s.residual {
        _ if !s.norm_place.before() => 0,
        ResidualKind::ParallelShared => 1,
        _ => 2,
    }
}

/// The stream plus what a branch adds to it.
fn branch(s: &Spec, stream: &Buf) -> Residual {
    Residual { P: stream.len() as u32, scale: s.residual_scale }
}
