//! The balance of a model's routers in a step: one loss over all layers that have one (`ops/balance.rs`), whose gradient joins
//! that of each layer's logits.
use super::Model;
use super::spec::{MlpKind, MoeSpec, Scores};
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::balance::{Balance as Params, BalanceBackward};
use crate::ops::expert_count::ExpertCount;

pub(super) struct Balance {
    N: usize,
    E: usize,
    S: usize,
    layers: usize,
    /// [E]: how often each expert was chosen, and the sum of its probabilities.
    count: Buf,
    prob: Buf,
    /// [N]
    lse: Buf,
    /// 1 for the tokens that count.
    mask: Buf,
    /// Tokens that count, in all layers.
    rows: f64,
    /// Of the gradient.
    scale: f64,
}

impl Model {
    /// Its routers choose by a softmax, for which the balance is defined.
    pub fn has_balance(&self) -> bool {
        self.spec.moe.as_ref().is_some_and(|moe| moe.scores == Scores::Softmax)
    }
}

impl Balance {
    /// `kinds`: of each layer.
    pub fn new(scope: &Scope, moe: &MoeSpec, kinds: impl Iterator<Item = MlpKind>, N: usize) -> Result<Balance> {
        let f32s = |len| scope.alloc(len, DType::F32);
        Ok(Balance {
            N,
            E: moe.E,
            S: moe.S,
            layers: kinds.filter(|kind| *kind == MlpKind::Moe).count(),
            count: f32s(moe.E)?,
            prob: f32s(moe.E)?,
            lse: f32s(N)?,
            mask: f32s(N)?,
            rows: 0.0,
            scale: 0.0,
        })
    }

    /// Before a forward: of these tokens, with coef·loss for the backward.
    pub fn start(&mut self, b: &dyn Backend, counts: &[bool], coef: f64) -> Result<()> {
        let mask: Vec<f32> = counts.iter().map(|counts| f32::from(u8::from(*counts))).collect();
        b.upload_f32(&mut self.mask, &mask)?;
        self.rows = (self.layers * counts.iter().filter(|counts| **counts).count()).max(1) as f64;
        self.scale = coef * self.E as f64 / self.rows.powi(2);
        b.fill(&mut self.count, 0.0)?;
        b.fill(&mut self.prob, 0.0)
    }

    /// A layer's logits [N, E] and choices [N, S].
    pub fn add(&mut self, b: &dyn Backend, logits: &Buf, experts: &Buf) -> Result<()> {
        let (N, E, S) = (self.N as u32, self.E as u32, self.S as u32);
        b.expert_count(&mut self.count, experts, &self.mask, &ExpertCount { N, E, S })?;
        b.balance_forward(&mut self.prob, &mut self.lse, logits, &self.mask, &Params { N, E })
    }

    /// dlogits [N, E] += coef·∂loss/∂logits; after all layers were added.
    pub fn backward(&self, b: &dyn Backend, dlogits: &mut Buf, logits: &Buf) -> Result<()> {
        let p = BalanceBackward { N: self.N as u32, E: self.E as u32, scale: self.scale as f32 };
        b.balance_backward(dlogits, &self.count, logits, &self.mask, &p)
    }

    /// E·Σ count·prob / rows². Waits.
    pub fn loss(&self, b: &dyn Backend) -> Result<f64> {
        let (count, prob) = (b.download_f32(&self.count)?, b.download_f32(&self.prob)?);
        let dot: f64 = count.iter().zip(&prob).map(|(c, p)| *c as f64 * *p as f64).sum();
        Ok(self.E as f64 * dot / self.rows.powi(2))
    }
}
