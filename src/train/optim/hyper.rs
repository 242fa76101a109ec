//! What an optimizer is told.
use super::gradients::Stay;
use super::rates::Rates;
use crate::train::config::AdjustLr;

/// What moves the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    AdamW,
    Sgd,
    Lion,
    /// The matrices of the blocks; everything else by AdamW.
    Muon,
}

/// How an optimizer's states are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    /// Block-wise, those of larger tensors.
    Bits8,
}

/// Where they lie between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    Device,
    /// In host memory; of each kind of weights so many values' states are on the device at a time, twice. A multiple of 4096.
    Host {
        page: usize,
    },
}

impl Home {
    /// The host, in pages that the bus takes some milliseconds for.
    pub const HOST: Home = Home::Host { page: 1 << 23 };
}

/// Which weights decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// transformers' rule: all but norms and biases.
    Weights,
    /// As a bare torch optimizer.
    All,
}

impl AdjustLr {
    /// For a matrix of A outputs and B inputs.
    pub(super) fn factor(self, [A, B]: [usize; 2]) -> f64 {
        let (A, B) = (A as f64, B as f64);
        match self {
            AdjustLr::Original => (A / B).max(1.0).sqrt(),
            // updates as large as AdamW's: arXiv:2502.16982
            AdjustLr::MatchRmsAdamw => 0.2 * A.max(B).sqrt(),
            AdjustLr::SpectralUnclamped => (A / B).sqrt(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Hyper {
    pub rule: Rule,
    pub precision: Precision,
    pub home: Home,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Of SGD, where 0 means none, or of Muon.
    pub momentum: f64,
    pub dampening: f64,
    pub nesterov: bool,
    /// Newton–Schulz steps of Muon.
    pub ns_steps: usize,
    pub adjust_lr: AdjustLr,
    pub weight_decay: f64,
    /// 0: no clipping.
    pub max_grad_norm: f64,
    pub decay: Decay,
    pub rates: Rates,
    pub stay: Stay,
    /// Of weights that are rounded by chance.
    pub seed: u64,
}

/// AdamW, as transformers' trainer has it.
impl Default for Hyper {
    fn default() -> Hyper {
        Hyper {
            rule: Rule::AdamW,
            precision: Precision::F32,
            home: Home::Device,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            momentum: 0.0,
            dampening: 0.0,
            nesterov: false,
            ns_steps: 5,
            adjust_lr: AdjustLr::Original,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            decay: Decay::Weights,
            rates: Rates::default(),
            stay: Stay::Device,
            seed: 0,
        }
    }
}
