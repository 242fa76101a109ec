//! Mixtures of experts: which there are, and how a token chooses.
use super::*;

/// What follows attention in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    Dense,
    Moe,
}

/// Which experts there are and how a token chooses.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// Experts.
    pub E: usize,
    /// Hidden channels of one.
    pub F: usize,
    /// Experts of a token (num_experts_per_tok).
    pub S: usize,
    pub scores: Scores,
    pub weights: RouterWeights,
    /// The router's module within the layer; its weight is [E, C].
    pub router: &'static str,
    pub router_bias: Bias,
    pub unit: GatedUnit,
    pub files: ExpertFiles,
    /// Modules of the experts, where `{}` is the expert's number.
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    /// An MLP that every token goes through, besides.
    pub shared: Option<SharedSpec>,
}

/// What an expert makes of gate and up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GatedUnit {
    /// silu(gate)·up.
    SwiGlu,
    /// g·σ(alpha·g)·(u + 1), with g = gate up to `limit` and u = up within ± `limit`. Gate and up are one module, their channels
    /// in turn.
    Clamped { alpha: f32, limit: f32 },
}

/// How files hold the experts, as modules or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertFiles {
    /// A module each, `<module>.weight` [O, C], where `{}` is the expert's number.
    Modules,
    /// One tensor for all, `<module>` [E, C, O], and `<module>_bias` [E, O].
    Stacked,
}

/// What a token's choice goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scores {
    Softmax,
    /// Sigmoids, and with a bias only for the choice: the best experts of the `kept` best of `groups` groups.
    Sigmoid {
        groups: usize,
        kept: usize,
        /// What the weights are multiplied by.
        scale: f32,
        /// The bias's name within the layer, a frozen f32 [E].
        bias: &'static str,
    },
}

/// What the output of shared experts is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighed {
    Plain,
    /// σ of this module's one output.
    Sigmoid {
        by: &'static str,
    },
}

/// The experts that all tokens share, as one gated MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedSpec {
    pub F: usize,
    pub weighed: Weighed,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

/// What the chosen experts count: their scores among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterWeights {
    Plain,
    /// Divided by their sum.
    Renormalised,
}
