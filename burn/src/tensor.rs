//! The ops as functions on [`Tensor`]s, on the tape where their inputs are.
use crate::kernels::{Norm, Pairs, Turn, Way};
use crate::ops::Ops;
use burn::backend::Dispatch;
use burn::tensor::{Device, Int, IntDType, Tensor, TensorData};
use luthier::model::rope::Rope;
use luthier::model::spec::Activation;

/// act(gate)·up. Shazeer 2020, arXiv:2002.05202.
pub fn gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>, act: Activation) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "gated: gate and up are of one shape");
    Tensor::from_dispatch(Dispatch::swiglu(gate.into_dispatch(), up.into_dispatch(), act))
}

/// silu(gate)·up.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gated(gate, up, Activation::Silu)
}

/// gelu(gate)·up, by the exact gelu; [`gated`] has it by its tanh formula.
pub fn geglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gated(gate, up, Activation::Gelu)
}

/// x·(weight + shift)/√(mean(x²) + eps) over the last dim. Zhang & Sennrich 2019, arXiv:1910.07467.
pub fn rmsnorm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, norm: Norm) -> Tensor<D> {
    assert_eq!(x.dims()[D - 1], weight.dims()[0], "rmsnorm: a weight for each channel");
    Tensor::from_dispatch(Dispatch::rmsnorm(x.into_dispatch(), weight.into_dispatch(), norm))
}

/// cos and sin of RoPE's angles by position: [T, A], cos of the A/2 angles and then sin.
#[derive(Clone, Debug)]
pub struct RopeTable {
    table: Tensor<2>,
    channels: usize,
    pairs: Pairs,
}

impl RopeTable {
    /// For positions below `positions`, heads whose first `channels` channels turn. `rope` may be scaled (llama3, yarn, …): the
    /// table is made as transformers makes it, on the host and in its precision.
    pub fn new(rope: &Rope, positions: usize, channels: usize, pairs: Pairs, device: &Device) -> RopeTable {
        let values = rope.table(positions, channels);
        let shape = [values.len() / channels, channels];
        RopeTable { table: Tensor::from_data(TensorData::new(values, shape), device), channels, pairs }
    }
}

/// x [B, T, H, D], as projections make it, turned at `positions` [B, T], which the table must have. Su et al. 2021,
/// arXiv:2104.09864.
pub fn rope(x: Tensor<4>, table: &RopeTable, positions: Tensor<2, Int>) -> Tensor<4> {
    let [b, t, _, d] = x.dims();
    assert_eq!(positions.dims(), [b, t], "rope: a position for each token");
    assert!(table.channels <= d, "rope: {} channels turn, a head has {d}", table.channels);
    let turn = Turn { channels: table.channels, pairs: table.pairs, way: Way::Forward };
    let positions = positions.cast(IntDType::I32).into_dispatch();
    Tensor::from_dispatch(Dispatch::rope(x.into_dispatch(), table.table.clone().into_dispatch(), positions, turn))
}

/// How a head turns hidden states into a loss.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Logits are cap·tanh(logits/cap); 0: as they are.
    pub softcap: f32,
    /// Rows of logits that exist at a time.
    pub chunk: usize,
    /// Labels that count for nothing, beside all that are negative.
    pub ignore_index: i64,
}

impl Default for Head {
    fn default() -> Self {
        Head { softcap: 0.0, chunk: 1024, ignore_index: -100 }
    }
}

/// log softmax(hidden·weightᵀ)[label] of each row, 0 where the label counts for nothing: what losses from cross-entropy to DPO and
/// GRPO are made of. hidden [N, C], weight [V, C]; [N, V] never exists. Labels must be below V.
pub fn linear_logprob(hidden: Tensor<2>, weight: Tensor<2>, labels: Tensor<1, Int>, head: &Head) -> Tensor<1> {
    let ([n, c], [_, columns]) = (hidden.dims(), weight.dims());
    assert!(c == columns && labels.dims() == [n], "linear_logprob: hidden [N, C], weight [V, C], labels [N]");
    let labels = ignoring(labels, head).cast(IntDType::I32).into_dispatch();
    let (hidden, weight) = (hidden.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::linear_logprob(hidden, weight, labels, head.softcap, head.chunk))
}

/// The mean over all labels that count of −log softmax(hidden·weightᵀ)[label].
pub fn linear_cross_entropy(hidden: Tensor<2>, weight: Tensor<2>, labels: Tensor<1, Int>, head: &Head) -> Tensor<1> {
    let counted = ignoring(labels.clone(), head).greater_equal_elem(0).float().sum().clamp_min(1.0);
    -linear_logprob(hidden, weight, labels, head).sum() / counted
}

/// -1, the kernels' own, for labels that count for nothing.
fn ignoring(labels: Tensor<1, Int>, head: &Head) -> Tensor<1, Int> {
    let ignored = labels.clone().lower_elem(0).bool_or(labels.clone().equal_elem(head.ignore_index));
    labels.mask_fill(ignored, -1)
}
