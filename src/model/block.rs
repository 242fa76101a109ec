//! A decoder block: attention and MLP, each behind a norm, each added to the residual stream; some models norm what is
//! added, too.
//!
//! ```text
//! forward                                     backward (dx: the residual stream's gradient, in place)
//! n1, rstd1 = rmsnorm(x)            [N,C]     dm = (post-norm⁻) dx
//! a = attention(n1)                 [N,C]     dn = mlp⁻(dm);  dx += rmsnorm⁻(dn, x2)
//! x2 = x + (post-norm) a            [N,C]     da = (post-norm⁻) dx
//! n2, rstd2 = rmsnorm(x2)                     dn = attention⁻(da);  dx += rmsnorm⁻(dn, x)
//! m = mlp(n2)                       [N,C]
//! y = x2 + (post-norm) m            [N,C]
//! ```
pub use super::attention::Cache;
use super::attention::{self, Attention};
use super::batch::Inputs;
use super::experts::Experts;
use super::linear::{Linear, LinearScratch};
use super::mlp::{self, Mlp};
use super::norm::Norm;
use super::param::Param;
use super::spec::{NormPlace, Spec};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::residual::Residual;

pub struct Block {
    /// Which of the model's kinds of layers it is.
    pub kind: usize,
    pub attention_norm: Param,
    pub attention: Attention,
    pub mlp_norm: Param,
    pub mlp: Mlp,
    /// Of what attention and MLP add to the stream.
    pub post_norms: Option<[Param; 2]>,
}

/// What a block keeps of its forward for its backward, besides its input x.
pub struct Saved {
    n1: Buf,
    rstd1: Buf,
    attention: attention::Saved,
    x2: Buf,
    n2: Buf,
    rstd2: Buf,
    mlp: mlp::Saved,
    /// Of attention and MLP.
    post: Option<[Post; 2]>,
}

/// A post-norm's input and statistics.
struct Post {
    inp: Buf,
    rstd: Buf,
}

/// What blocks share while they run.
pub struct BlockScratch {
    pub linear: LinearScratch,
    attention: attention::Scratch,
    /// [N, C]: a branch's output, a norm's gradient.
    c: Buf,
    mlp: mlp::Scratch,
}

impl Saved {
    pub fn new(scope: &Scope, s: &Spec, N: usize, dtype: DType) -> Result<Saved> {
        let buf = |cols: usize| scope.alloc(N * cols, dtype);
        let stat = || scope.alloc(N, DType::F32);
        let post = || Ok(Post { inp: buf(s.C)?, rstd: stat()? });
        Ok(Saved {
            n1: buf(s.C)?,
            rstd1: stat()?,
            attention: attention::Saved::new(scope, s, N, dtype)?,
            x2: buf(s.C)?,
            n2: buf(s.C)?,
            rstd2: stat()?,
            mlp: mlp::Saved::new(scope, s, N, dtype)?,
            post: match s.norm_place {
                NormPlace::BeforeAndAfter => Some([post()?, post()?]),
                NormPlace::Before => None,
            },
        })
    }

    /// Bytes of one for N tokens.
    pub fn bytes(s: &Spec, N: usize, dtype: DType) -> u64 {
        let posts = if s.norm_place == NormPlace::BeforeAndAfter { 2 } else { 0 };
        let own = N * ((3 + posts) * s.C * dtype.size() + (2 + posts) * 4);
        own as u64 + mlp::Saved::bytes(s, N, dtype) + attention::Saved::bytes(s, N, dtype)
    }
}

impl BlockScratch {
    /// The seed of the adapters' dropout from now on; `None`: nothing is dropped.
    pub fn set_dropout(&mut self, seed: Option<u32>) {
        self.linear.dropout.seed = seed;
        if let Some(experts) = self.mlp.experts() {
            experts.dropout.seed = seed;
        }
    }

    /// For up to `N` tokens; `experts` is for the rows of experts.
    pub fn new(
        scope: &Scope,
        s: &Spec,
        (linear, experts): (LinearScratch, LinearScratch),
        N: usize,
        dtype: DType,
        train: bool,
    ) -> Result<BlockScratch> {
        Ok(BlockScratch {
            linear,
            attention: attention::Scratch::new(scope, s, N, dtype, train)?,
            c: scope.alloc(N * s.C, dtype)?,
            mlp: mlp::Scratch::new(scope, s, experts, N, dtype, train)?,
        })
    }
}

impl Block {
    /// All that the backward needs: up to gate and up, and with a post-norm the MLP's output. With a cache, k and v of the new
    /// tokens go to its end.
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
        let (N, norm) = (inputs.N, Norm::rows(s, inputs.N));
        let BlockScratch { linear, c, mlp, .. } = t;
        norm.forward(b, &mut saved.n1, &mut saved.rstd1, x, &self.attention_norm)?;
        self.attention.forward(b, s, self.kind, &mut saved.attention, linear, &saved.n1, inputs, cache)?;
        match (&self.post_norms, &mut saved.post) {
            (Some([weight, _]), Some([post, _])) => {
                self.attention.output(b, linear, &mut post.inp, &saved.attention, N)?;
                norm.forward(b, c, &mut post.rstd, &post.inp, weight)?;
            }
            _ => self.attention.output(b, linear, c, &saved.attention, N)?,
        }
        b.residual_forward(&mut saved.x2, x, c, &Residual { P: (N * s.C) as u32 })?;
        norm.forward(b, &mut saved.n2, &mut saved.rstd2, &saved.x2, &self.mlp_norm)?;
        self.mlp.forward_saved(b, s, &mut saved.mlp, (mlp, linear), &saved.n2, N)?;
        if let (Some([_, weight]), Some([_, post])) = (&self.post_norms, &mut saved.post) {
            self.mlp.output(b, s, &saved.mlp, (mlp, linear), &mut post.inp, N)?;
            norm.forward(b, c, &mut post.rstd, &post.inp, weight)?;
        }
        Ok(())
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
        if self.post_norms.is_none() {
            self.mlp.output(b, s, &saved.mlp, (&mut t.mlp, &t.linear), &mut t.c, N)?;
        }
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
        let (N, norm) = (inputs.N, Norm::rows(s, inputs.N));
        let BlockScratch { linear, attention, c, mlp } = t;

        let dm = self.backward_post(b, &norm, 1, saved, c, dx)?;
        let dm = if dm { &*c } else { &*dx };
        self.mlp.backward_output(b, s, &mut saved.mlp, (mlp, linear), dm, N)?;
        self.mlp.backward(b, s, &saved.mlp, (mlp, linear), c, &saved.n2, N)?;
        norm.backward(b, &mut self.mlp_norm, dx, c, &saved.x2, &saved.rstd2)?;

        let da = self.backward_post(b, &norm, 0, saved, c, dx)?;
        let da = if da { &*c } else { &*dx };
        self.attention.backward_output(b, &saved.attention, (&mut *attention, linear), da, N)?;
        let tools = (attention, &*linear);
        self.attention.backward(b, s, self.kind, &mut saved.attention, tools, c, &saved.n1, inputs)?;
        norm.backward(b, &mut self.attention_norm, dx, c, x, &saved.rstd1)
    }

    /// Where there are post-norms: dinp = the gradient through the one of attention (0) or MLP (1), and true.
    fn backward_post(
        &mut self,
        b: &dyn Backend,
        norm: &Norm,
        which: usize,
        saved: &Saved,
        dinp: &mut Buf,
        dx: &Buf,
    ) -> Result<bool> {
        let (Some(weights), Some(posts)) = (&mut self.post_norms, &saved.post) else { return Ok(false) };
        b.fill(dinp, 0.0)?;
        norm.backward(b, &mut weights[which], dinp, dx, &posts[which].inp, &posts[which].rstd)?;
        Ok(true)
    }

    /// But for those of experts.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linears().chain(self.mlp.linears())
    }
    pub fn experts(&self) -> impl Iterator<Item = &Experts> {
        self.mlp.experts()
    }
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let norms = [&self.attention_norm, &self.mlp_norm].into_iter().chain(self.post_norms.iter().flatten());
        norms.chain(self.attention.params()).chain(self.mlp.params())
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let Block { attention_norm, attention, mlp_norm, mlp, post_norms, .. } = self;
        let norms = [attention_norm, mlp_norm].into_iter().chain(post_norms.iter_mut().flatten());
        norms.chain(attention.params_mut()).chain(mlp.params_mut())
    }
}
