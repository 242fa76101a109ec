//! The head: hidden states to log-probabilities of labels, and back, in chunks of tokens, so that [N, V] never exists.
//!
//! forward   z = softcap(scale·h·Wᵀ) [n, V] in f32,  logp = z[label] − log Σ exp z
//! backward  dz = coef·(1[label] − softmax z)·softcap′,  dh = scale·dz·W,  dW += scale·dzᵀ·h
use super::param::Param;
use super::spec::Spec;
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::logprob::LogProb;
use crate::ops::matmul::MatMul;

/// Bytes of f32 logits alive at a time, at most.
const CHUNK_BYTES: usize = 128 << 20;

pub(super) struct HeadScratch {
    V: usize,
    C: usize,
    /// Of logits.
    scale: f32,
    softcap: f32,
    /// Tokens of a chunk.
    rows: usize,
    /// Row stride of logits: V rounded up, so that rows stay aligned for 16-bit and tensor-core kernels.
    ld: usize,
    logits: Buf,
    /// Only for training.
    dlogits: Option<Buf>,
    logp: Buf,
    lse: Buf,
    labels: Buf,
    coef: Buf,
}

impl HeadScratch {
    pub fn new(scope: &Scope, s: &Spec, N: usize, dtype: DType, train: bool) -> Result<HeadScratch> {
        let (V, C, scale, softcap) = (s.V, s.C, s.logit_scale, s.logit_softcap);
        let ld = V.next_multiple_of(64);
        let rows = (CHUNK_BYTES / 4 / ld).clamp(1, N);
        let dlogits = if train { Some(scope.alloc(rows * ld, dtype)?) } else { None };
        let n = |dtype| scope.alloc(N, dtype);
        let logits = scope.alloc(rows * ld, DType::F32)?;
        let (logp, lse, coef) = (n(DType::F32)?, n(DType::F32)?, n(DType::F32)?);
        Ok(HeadScratch { V, C, scale, softcap, rows, ld, logits, dlogits, logp, lse, labels: n(DType::U32)?, coef })
    }

    pub fn bytes(V: usize, N: usize, dtype: DType, train: bool) -> u64 {
        let ld = V.next_multiple_of(64);
        let rows = (CHUNK_BYTES / 4 / ld).clamp(1, N);
        (rows * ld * (4 + if train { dtype.size() } else { 0 }) + 16 * N) as u64
    }

    fn chunks(&self, N: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let rows = self.rows;
        (0..N.div_ceil(rows)).map(move |i| (i * rows, rows.min(N - i * rows)))
    }

    /// scale·h·Wᵀ of tokens `first..first + n`; `h` is [N, C].
    fn logits(&self, b: &dyn Backend, weight: &Buf, h: &Buf, first: usize, n: usize) -> Result<Buf> {
        let (V, C) = (self.V, self.C);
        let mut z = self.logits.view(0, n * self.ld);
        let p = MatMul {
            I: n as u32,
            J: V as u32,
            Q: C as u32,
            ld_out: self.ld as u32,
            ld_a: C as u32,
            ld_b: C as u32,
            alpha: self.scale,
        };
        b.matmul_nt(&mut z, &h.view(first * C, n * C), weight, &p)?;
        Ok(z)
    }

    /// The logits of some tokens on the host, [n, V]; for generation and for looking at a model.
    pub fn download_logits(&self, b: &dyn Backend, weight: &Buf, h: &Buf, first: usize, n: usize) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(n * self.V);
        let mut at = first;
        while at < first + n {
            let rows = self.rows.min(first + n - at);
            let z = b.download_f32(&self.logits(b, weight, h, at, rows)?)?;
            z.chunks(self.ld).for_each(|row| all.extend_from_slice(&row[..self.V]));
            at += rows;
        }
        if self.softcap != 0.0 {
            all.iter_mut().for_each(|z| *z = self.softcap * (*z / self.softcap).tanh());
        }
        Ok(all)
    }

    /// logp [N] of `labels` under h [N, C].
    pub fn forward(&mut self, b: &dyn Backend, weight: &Buf, h: &Buf, labels: &[u32]) -> Result<Vec<f32>> {
        b.upload_u32(&mut self.labels, labels)?;
        for (first, n) in self.chunks(labels.len()) {
            let z = self.logits(b, weight, h, first, n)?;
            self.logprob(b, &z, first, n)?;
        }
        b.download_f32(&self.logp)
    }

    fn logprob(&mut self, b: &dyn Backend, z: &Buf, first: usize, n: usize) -> Result<()> {
        let p = self.params(n);
        let (mut logp, mut lse) = (self.logp.view(first, n), self.lse.view(first, n));
        b.logprob_forward(&mut logp, &mut lse, z, &self.labels.view(first, n), &p)
    }

    fn params(&self, n: usize) -> LogProb {
        let ld = self.ld as u32;
        LogProb { N: n as u32, V: self.V as u32, ld_logits: ld, ld_dlogits: ld, softcap: self.softcap }
    }

    /// Forward and backward in one pass: coef [N] is known. dh [N, C] is written; the weight's gradient grows if it is trained.
    /// The log-probabilities stay on the device until [`HeadScratch::logp`].
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        weight: &mut Param,
        dh: &mut Buf,
        h: &Buf,
        labels: &[u32],
        coef: &[f32],
    ) -> Result<()> {
        b.upload_u32(&mut self.labels, labels)?;
        b.upload_f32(&mut self.coef, coef)?;
        let (C, v, c, ld) = (self.C, self.V as u32, self.C as u32, self.ld as u32);
        for (first, n) in self.chunks(labels.len()) {
            let z = self.logits(b, &weight.value, h, first, n)?;
            self.logprob(b, &z, first, n)?;
            let mut dz = self.dlogits.as_ref().expect("made for training").view(0, n * self.ld);
            let (coef, lse, labels) = (self.coef.view(first, n), self.lse.view(first, n), self.labels.view(first, n));
            b.logprob_backward(&mut dz, &coef, &lse, &z, &labels, &self.params(n))?;
            let input = MatMul { I: n as u32, J: c, Q: v, ld_out: c, ld_a: ld, ld_b: c, alpha: self.scale };
            b.matmul_nn(&mut dh.view(first * C, n * C), &dz, &weight.value, &input)?;
            if let Some(train) = &mut weight.train {
                let grad = MatMul { I: v, J: c, Q: n as u32, ld_out: c, ld_a: ld, ld_b: c, alpha: self.scale };
                b.matmul_tn_add(&mut train.grad, &dz, &h.view(first * C, n * C), &grad)?;
            }
        }
        Ok(())
    }

    /// The log-probabilities of the last `backward`. Waits.
    pub fn logp(&self, b: &dyn Backend) -> Result<Vec<f32>> {
        b.download_f32(&self.logp)
    }
}
