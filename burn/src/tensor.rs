//! The ops as functions on [`Tensor`]s, on the tape where their inputs are.
use crate::kernels::{Norm, Pairs, Turn, Way};
use crate::ops::Ops;
use burn::backend::{Dispatch, DispatchTensor, DispatchTensorKind, TensorMetadata};
use burn::tensor::kind::Basic;
use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Tensor, TensorData};
use luthier::model::rope::Rope;
use luthier::model::spec::Activation;

/// The tensor as backends see it. Burn says no more than "unsupported" of one that lies elsewhere.
pub(crate) fn ours<const D: usize, K: Basic>(tensor: Tensor<D, K>) -> DispatchTensor {
    let tensor = tensor.into_dispatch();
    let at = match &tensor.kind {
        DispatchTensorKind::Autodiff(inner) => inner,
        kind => kind,
    };
    let known = matches!(at, DispatchTensorKind::Cube(_));
    assert!(known, "luthier-burn: no kernel for {:?}: a device of burn's `wgpu` or `cuda` is wanted", at.device());
    tensor
}

/// act(gate)·up. Shazeer 2020, arXiv:2002.05202.
pub fn gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>, act: Activation) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "gated: gate and up are of one shape");
    Tensor::from_dispatch(Dispatch::swiglu(ours(gate), ours(up), act))
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
    Tensor::from_dispatch(Dispatch::rmsnorm(ours(x), ours(weight), norm))
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
        let table = Tensor::from_data(TensorData::new(values, shape), (device, DType::F32));
        RopeTable { table, channels, pairs }
    }
}

/// x [B, T, H, D], as projections make it, turned at `positions` [B, T], which the table must have. Su et al. 2021,
/// arXiv:2104.09864.
pub fn rope(x: Tensor<4>, table: &RopeTable, positions: Tensor<2, Int>) -> Tensor<4> {
    let [b, t, _, d] = x.dims();
    assert_eq!(positions.dims(), [b, t], "rope: a position for each token");
    assert!(
        table.channels <= d && d % 2 == 0,
        "rope: {} channels turn, of an even number; a head has {d}",
        table.channels
    );
    let turn = Turn { channels: table.channels, pairs: table.pairs, way: Way::Forward };
    let positions = ours(positions.cast(IntDType::I32));
    Tensor::from_dispatch(Dispatch::rope(ours(x), ours(table.table.clone()), positions, turn))
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
    let labels = ours(ignoring(labels, head).cast(IntDType::I32));
    Tensor::from_dispatch(Dispatch::linear_logprob(ours(hidden), ours(weight), labels, head.softcap, head.chunk))
}

/// The mean over all labels that count of −log softmax(hidden·weightᵀ)[label].
pub fn linear_cross_entropy(hidden: Tensor<2>, weight: Tensor<2>, labels: Tensor<1, Int>, head: &Head) -> Tensor<1> {
    // as integers, for a sum in 16 bits stops at 2,048
    let counted = ignoring(labels.clone(), head).greater_equal_elem(0).int().sum().cast(FloatDType::F32).clamp_min(1.0);
    -linear_logprob(hidden, weight, labels, head).sum() / counted
}

/// -1, the kernels' own, for labels that count for nothing.
fn ignoring(labels: Tensor<1, Int>, head: &Head) -> Tensor<1, Int> {
    let ignored = labels.clone().lower_elem(0).bool_or(labels.clone().equal_elem(head.ignore_index));
    labels.mask_fill(ignored, -1)
}
