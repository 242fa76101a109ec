//! What an architecture may do in one way or another: each an axis of its own.
use super::super::rope::Rope;
use crate::ops::activation;

/// What may differ between the attentions of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerKind {
    /// A token sees so many tokens back, itself included; `None`: all.
    pub window: Option<usize>,
    /// `None`: no positions.
    pub rope: Option<Rope>,
}

/// Which two channels of a head RoPE turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// d and d + A/2.
    Halves,
    /// 2d and 2d + 1.
    Interleaved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    Absent,
    Present,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm.
    Rms,
    /// LayerNorm, with or without a bias.
    Layer(Bias),
}

/// What the MLP reads and what its output is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResidualKind {
    /// The stream after attention.
    Sequential,
    /// The stream before attention, through a norm of its own.
    Parallel,
    /// The same through attention's norm.
    ParallelShared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// down(act(gate(x))·up(x))
    Gated,
    /// down(act(up(x)))
    Plain,
}

/// How tokens know where they are, RoPE aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Not otherwise.
    Implicit,
    /// A weight [max_positions, C] is added to the embedding.
    Learned,
}

/// How the file orders the weights of linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// [O, C], parts of a fused module one after the other.
    Rows,
    /// [C, O]: transformers' `Conv1D`.
    Conv1d,
    /// Rows; those of the fused q, k, v head after head.
    PerHead,
}

/// How a norm's factor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormWeight {
    Factor,
    /// As factor − 1.
    FromOne,
}

impl NormWeight {
    /// What the op adds to the stored weight.
    pub fn shift(self) -> f32 {
        if self == NormWeight::FromOne { 1.0 } else { 0.0 }
    }
}

/// The norms of attention and MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// On their input.
    Before,
    /// And on their output, before it is added to the residual stream.
    BeforeAndAfter,
    /// On their output alone.
    After,
}

impl NormPlace {
    pub fn before(self) -> bool {
        self != NormPlace::After
    }
    pub fn after(self) -> bool {
        self != NormPlace::Before
    }
}

/// A norm of q and of k, before RoPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    Absent,
    /// Each head by itself, all with one weight [D].
    PerHead,
    /// All heads as one row.
    Whole,
    /// Each head with a weight of its own: [H, D] in all. Where `{}` in its name is the head's number, each is a tensor.
    EachHead,
}

impl QkNorm {
    /// (rows, length of a row) of a norm of N tokens' `heads`.
    pub fn shape(self, N: usize, heads: usize, D: usize) -> (usize, usize) {
        if self == QkNorm::Whole { (N, heads * D) } else { (N * heads, D) }
    }
}

/// A learned score of each head that takes its share of the softmax and gives no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sinks {
    Absent,
    PerHead,
}

/// Of the MLP, or of its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// `gelu_pytorch_tanh`, `gelu_new`
    GeluTanh,
    /// Exact: `gelu`
    Gelu,
    /// x·σ(1.702·x)
    QuickGelu,
    Relu,
    /// relu(x)²
    Relu2,
}

impl Activation {
    /// (act, slope, cubic) of the ops.
    pub fn coefficients(self) -> (u32, f32, f32) {
        let gelu = (8.0 / std::f64::consts::PI).sqrt();
        match self {
            Activation::Silu => (activation::SIGMOID, 1.0, 0.0),
            Activation::GeluTanh => (activation::SIGMOID, gelu as f32, (gelu * 0.044715) as f32),
            Activation::QuickGelu => (activation::SIGMOID, 1.702, 0.0),
            Activation::Gelu => (activation::GELU, 0.0, 0.0),
            Activation::Relu => (activation::RELU, 0.0, 0.0),
            Activation::Relu2 => (activation::RELU2, 0.0, 0.0),
        }
    }
}
