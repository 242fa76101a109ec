//! Multi-head latent attention: q, k and v come out of rows narrower than their heads. DeepSeek-AI 2024, arXiv:2405.04434.
use super::{Bias, LinearSpec, Spec};

/// Its sizes beside H, the head size D of the attention itself, and the A channels that turn.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentSpec {
    /// q_lora_rank; `None`: q is one projection, `Names::q`.
    pub q_rank: Option<usize>,
    /// kv_lora_rank
    pub kv_rank: usize,
    /// qk_nope_head_dim: channels of a head of q and k that do not turn.
    pub U: usize,
    /// v_head_dim
    pub Y: usize,
    /// Of the norms of the narrow rows.
    pub eps: f32,
    pub names: LatentNames,
}

/// Modules within a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentNames {
    pub q_a: &'static str,
    pub q_a_norm: &'static str,
    pub q_b: &'static str,
    /// kv_rank channels and the A turning ones that all heads of k share.
    pub kv_a: &'static str,
    pub kv_a_norm: &'static str,
    /// For each head U channels of k, then Y of v.
    pub kv_b: &'static str,
}

/// A projection to a narrow row, and the name of the row's norm.
pub struct NarrowSpec {
    pub down: LinearSpec,
    pub norm: &'static str,
    pub rank: usize,
}

impl LatentSpec {
    /// To q's narrow row, if it has one.
    pub fn q_a(&self, s: &Spec) -> Option<NarrowSpec> {
        let down = |rank| LinearSpec { module: self.names.q_a, parts: vec![rank], C: s.C, bias: s.qkv_bias };
        self.q_rank.map(|rank| NarrowSpec { down: down(rank), norm: self.names.q_a_norm, rank })
    }
    /// To q, from its narrow row or the layer's input.
    pub fn q_b(&self, s: &Spec) -> LinearSpec {
        let (module, C) = self.q_rank.map_or((s.names.q, s.C), |rank| (self.names.q_b, rank));
        LinearSpec { module, parts: vec![s.H * (self.U + s.A)], C, bias: Bias::Absent }
    }
    /// To the narrow row of k and v, and to the part of k that turns.
    pub fn kv_a(&self, s: &Spec) -> NarrowSpec {
        let parts = vec![self.kv_rank, s.A];
        let down = LinearSpec { module: self.names.kv_a, parts, C: s.C, bias: s.qkv_bias };
        NarrowSpec { down, norm: self.names.kv_a_norm, rank: self.kv_rank }
    }
    /// To the rest of k, and v.
    pub fn kv_b(&self, s: &Spec) -> LinearSpec {
        let parts = vec![s.H * (self.U + self.Y)];
        LinearSpec { module: self.names.kv_b, parts, C: self.kv_rank, bias: Bias::Absent }
    }
    pub fn linears(&self, s: &Spec) -> Vec<LinearSpec> {
        let q_a = self.q_a(s).map(|q| q.down);
        q_a.into_iter().chain([self.q_b(s), self.kv_a(s).down, self.kv_b(s)]).collect()
    }
    pub(super) fn norms(&self, s: &Spec) -> impl Iterator<Item = (&'static str, usize)> {
        self.q_a(s).into_iter().chain([self.kv_a(s)]).map(|narrow| (narrow.norm, narrow.rank))
    }
    /// The longest narrow row.
    pub fn widest(&self) -> usize {
        self.kv_rank.max(self.q_rank.unwrap_or(0))
    }
    /// Lengths of the rows that are stored.
    pub fn rows(&self, s: &Spec) -> Vec<usize> {
        let heads = [self.U + s.A, self.U + self.Y, self.Y].map(|c| s.H * c);
        heads.into_iter().chain([self.kv_rank]).chain(self.q_rank).collect()
    }
}
