//! The ops on Burn's tape: each forward keeps what its hand-written backward wants, and no more.
//!
//! | op | kept | backward |
//! |---|---|---|
//! | `swiglu` | gate, up | one kernel gives both gradients |
//! | `rmsnorm` | x, weight, rstd [N] | dx; dweight where the weight is trained |
//! | `rope` | the positions | the turn back |
//! | `packed_linear` | the packed weight | unpacked once more, dX = G·W; it is frozen |
//! | `lora` | X, A, B, X·Aᵀ [N, R] | P = s·G·B; dA = Pᵀ·X, dB = s·Gᵀ·(X·Aᵀ), dX = P·A |
//! | `linear_logprob` | hidden, weight, lse [N] | chunk by chunk, logits are made once more |
//!
//! Gradients of gradients are not offered: a backward is no op on the tape.
use crate::kernels::{Kernels, Norm, Turn, Way};
use crate::packed::{Packed, inner};
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Parts, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Cube, TensorMetadata, backend_extension};
use burn::tensor::{DType, Scalar, Slice};
use luthier::model::spec::Activation;

/// Rows up to which a packed weight is read by the kernel for few rows, as the trainer does.
const FEW: usize = 64;

#[backend_extension(Cube, Autodiff)]
pub trait Ops: Backend {
    /// act(gate)·up.
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>, act: Activation) -> FloatTensor<Self>;
    /// x·(weight + shift)/√(mean(x²) + eps) over the last dim.
    fn rmsnorm(x: FloatTensor<Self>, weight: FloatTensor<Self>, norm: Norm) -> FloatTensor<Self>;
    /// x [.., H, D] turned at its rows' positions [..].
    fn rope(
        x: FloatTensor<Self>,
        table: FloatTensor<Self>,
        positions: IntTensor<Self>,
        turn: Turn,
    ) -> FloatTensor<Self>;
    /// x [N, C] · Wᵀ, W [O, C] packed and frozen.
    fn packed_linear(
        x: FloatTensor<Self>,
        #[extension_type] weight: Packed<Self>,
        shape: [usize; 2],
    ) -> FloatTensor<Self>;
    /// scale·(x·aᵀ)·bᵀ; x [N, C], a [R, C], b [O, R].
    fn lora(x: FloatTensor<Self>, a: FloatTensor<Self>, b: FloatTensor<Self>, scale: f32) -> FloatTensor<Self>;
    /// log softmax(softcap(hidden·weightᵀ))[label] of each row, 0 where the label is −1; hidden [N, C], weight [V, C]. No more than
    /// `chunk` rows of logits exist at a time.
    fn linear_logprob(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        softcap: f32,
        chunk: usize,
    ) -> FloatTensor<Self>;
}

/// `lhs · rhsᵀ`.
fn nt<B: Backend>(lhs: FloatTensor<B>, rhs: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(lhs, B::float_transpose(rhs))
}

/// `lhsᵀ · rhs`.
fn tn<B: Backend>(lhs: FloatTensor<B>, rhs: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(B::float_transpose(lhs), rhs)
}

fn times<B: Backend>(x: FloatTensor<B>, scale: f32) -> FloatTensor<B> {
    B::float_mul_scalar(x, Scalar::from(scale))
}

fn packed_product<B: Kernels>(x: FloatTensor<B>, weight: Packed<B>, shape: [usize; 2]) -> FloatTensor<B> {
    if x.shape()[0] <= FEW {
        return B::thin(x, weight, shape);
    }
    let dtype = x.dtype();
    nt::<B>(x, B::unpack(weight, shape, dtype))
}

/// The product, and X·Aᵀ.
fn lora_product<B: Backend>(
    x: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    scale: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let xa = nt::<B>(x, a);
    (nt::<B>(times::<B>(xa.clone(), scale), b), xa)
}

/// Rows `from..to`.
fn some_rows<B: Backend>(x: &FloatTensor<B>, from: usize, to: usize) -> FloatTensor<B> {
    B::float_slice(x.clone(), &[Slice::from(from..to)])
}

/// Where each chunk of `n` rows begins and ends.
fn chunks(n: usize, chunk: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(chunk.max(1)).map(move |from| (from, (from + chunk.max(1)).min(n)))
}

/// (logp, lse).
fn chunked_logprob<B: Kernels>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    labels: IntTensor<B>,
    softcap: f32,
    chunk: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let one = |(from, to)| {
        let logits = nt::<B>(some_rows::<B>(&hidden, from, to), weight.clone());
        B::logprob_forward(logits, B::int_slice(labels.clone(), &[Slice::from(from..to)]), softcap)
    };
    let (logp, lse): (Vec<_>, Vec<_>) = chunks(hidden.shape()[0], chunk).map(one).unzip();
    (B::float_cat(logp, 0), B::float_cat(lse, 0))
}

impl Ops for Cube {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>, act: Activation) -> FloatTensor<Self> {
        Self::swiglu_forward(gate, up, act)
    }
    fn rmsnorm(x: FloatTensor<Self>, weight: FloatTensor<Self>, norm: Norm) -> FloatTensor<Self> {
        Self::rmsnorm_forward(x, weight, norm).0
    }
    fn rope(
        x: FloatTensor<Self>,
        table: FloatTensor<Self>,
        positions: IntTensor<Self>,
        turn: Turn,
    ) -> FloatTensor<Self> {
        Self::rope_turn(x, table, positions, turn)
    }
    fn packed_linear(x: FloatTensor<Self>, weight: Packed<Self>, shape: [usize; 2]) -> FloatTensor<Self> {
        packed_product::<Self>(x, weight, shape)
    }
    fn lora(x: FloatTensor<Self>, a: FloatTensor<Self>, b: FloatTensor<Self>, scale: f32) -> FloatTensor<Self> {
        lora_product::<Self>(x, a, b, scale).0
    }
    fn linear_logprob(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        softcap: f32,
        chunk: usize,
    ) -> FloatTensor<Self> {
        chunked_logprob::<Self>(hidden, weight, labels, softcap, chunk).0
    }
}

/// Hands `gradient` to a parent, if it wants one.
fn give<B: Backend>(grads: &mut Gradients, to: Option<NodeId>, gradient: impl FnOnce() -> FloatTensor<B>) {
    if let Some(id) = to {
        grads.register::<B>(id, gradient());
    }
}

#[derive(Debug)]
struct SwigluGrad;
impl<B: Kernels> Backward<B, 2> for SwigluGrad {
    type State = ([NodeId; 2], Activation);
    fn backward(self, ops: Parts<Self::State, 2>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let ([gate, up], act) = ops.state;
        let dout = grads.consume::<B>(&ops.node);
        let wants = ops.parents.map(|node| node.map(|node| node.id));
        let (gate, up) = (kept.retrieve_node_output(gate), kept.retrieve_node_output(up));
        let (dgate, dup) = B::swiglu_backward(dout, gate, up, act);
        give::<B>(grads, wants[0], || dgate);
        give::<B>(grads, wants[1], || dup);
    }
}

#[derive(Debug)]
struct RmsNormGrad;
impl<B: Kernels> Backward<B, 2> for RmsNormGrad {
    type State = ([NodeId; 2], FloatTensor<B>, Norm);
    fn backward(self, ops: Parts<Self::State, 2>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let ([x, weight], rstd, norm) = ops.state;
        let dout = grads.consume::<B>(&ops.node);
        let wants = ops.parents.map(|node| node.map(|node| node.id));
        let x: FloatTensor<B> = kept.retrieve_node_output(x);
        let weight: FloatTensor<B> = kept.retrieve_node_output(weight);
        let dtype = weight.dtype();
        give::<B>(grads, wants[1], || {
            let sum = B::rmsnorm_backward_weight(dout.clone(), x.clone(), rstd.clone(), norm);
            if dtype == DType::F32 { sum } else { B::float_cast(sum, dtype.into()) }
        });
        give::<B>(grads, wants[0], || B::rmsnorm_backward(dout, x, weight, rstd, norm));
    }
}

#[derive(Debug)]
struct RopeGrad;
impl<B: Kernels> Backward<B, 1> for RopeGrad {
    type State = (FloatTensor<B>, IntTensor<B>, Turn);
    fn backward(self, ops: Parts<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (table, positions, turn) = ops.state;
        let dout = grads.consume::<B>(&ops.node);
        let wants = ops.parents.map(|node| node.map(|node| node.id));
        let back = Turn { way: Way::Backward, ..turn };
        give::<B>(grads, wants[0], || B::rope_turn(dout, table, positions, back));
    }
}

#[derive(Debug)]
struct PackedLinearGrad;
impl<B: Kernels> Backward<B, 1> for PackedLinearGrad {
    type State = (Packed<B>, [usize; 2]);
    fn backward(self, ops: Parts<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (weight, shape) = ops.state;
        let dout = grads.consume::<B>(&ops.node);
        let wants = ops.parents.map(|node| node.map(|node| node.id));
        let dtype = dout.dtype();
        give::<B>(grads, wants[0], || B::float_matmul(dout, B::unpack(weight, shape, dtype)));
    }
}

#[derive(Debug)]
struct LoraGrad;
impl<B: Kernels> Backward<B, 3> for LoraGrad {
    type State = ([NodeId; 3], FloatTensor<B>, f32);
    fn backward(self, ops: Parts<Self::State, 3>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let ([x, a, b], xa, scale) = ops.state;
        let dout = grads.consume::<B>(&ops.node);
        let wants = ops.parents.map(|node| node.map(|node| node.id));
        let x: FloatTensor<B> = kept.retrieve_node_output(x);
        let a: FloatTensor<B> = kept.retrieve_node_output(a);
        let b: FloatTensor<B> = kept.retrieve_node_output(b);
        give::<B>(grads, wants[2], || tn::<B>(dout.clone(), times::<B>(xa, scale)));
        let p = times::<B>(B::float_matmul(dout, b), scale);
        give::<B>(grads, wants[1], || tn::<B>(p.clone(), x));
        give::<B>(grads, wants[0], || B::float_matmul(p, a));
    }
}

/// What a chunk of logits is made of again.
#[derive(Clone, Debug)]
struct Head<B: Backend> {
    labels: IntTensor<B>,
    lse: FloatTensor<B>,
    softcap: f32,
    chunk: usize,
}

#[derive(Debug)]
struct LinearLogprobGrad;
impl<B: Kernels> Backward<B, 2> for LinearLogprobGrad {
    type State = ([NodeId; 2], Head<B>);
    fn backward(self, ops: Parts<Self::State, 2>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let ([hidden, weight], head) = ops.state;
        let coef = grads.consume::<B>(&ops.node);
        let wants = ops.parents.map(|node| node.map(|node| node.id));
        let hidden: FloatTensor<B> = kept.retrieve_node_output(hidden);
        let weight: FloatTensor<B> = kept.retrieve_node_output(weight);
        let (mut dhidden, mut dweight) = (Vec::new(), None);
        for (from, to) in chunks(hidden.shape()[0], head.chunk) {
            let some = some_rows::<B>(&hidden, from, to);
            let labels = B::int_slice(head.labels.clone(), &[Slice::from(from..to)]);
            let (coef, lse) = (some_rows::<B>(&coef, from, to), some_rows::<B>(&head.lse, from, to));
            let logits = nt::<B>(some.clone(), weight.clone());
            let dlogits = B::logprob_backward(coef, lse, logits, labels, head.softcap);
            if wants[1].is_some() {
                let part = tn::<B>(dlogits.clone(), some);
                dweight = Some(match dweight {
                    None => part,
                    Some(sum) => B::float_add(sum, part),
                });
            }
            if wants[0].is_some() {
                dhidden.push(B::float_matmul(dlogits, weight.clone()));
            }
        }
        give::<B>(grads, wants[0], || B::float_cat(dhidden, 0));
        if let Some(dweight) = dweight {
            give::<B>(grads, wants[1], || dweight);
        }
    }
}

impl<B: Kernels + Ops, C: CheckpointStrategy> Ops for Autodiff<B, C> {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>, act: Activation) -> FloatTensor<Self> {
        match SwigluGrad.prepare::<C>([gate.node(), up.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let kept = [prep.checkpoint(&gate), prep.checkpoint(&up)];
                prep.finish((kept, act), B::swiglu(gate.into_primitive(), up.into_primitive(), act))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::swiglu(gate.into_primitive(), up.into_primitive(), act)),
        }
    }

    fn rmsnorm(x: FloatTensor<Self>, weight: FloatTensor<Self>, norm: Norm) -> FloatTensor<Self> {
        match RmsNormGrad.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let kept = [prep.checkpoint(&x), prep.checkpoint(&weight)];
                let (out, rstd) = B::rmsnorm_forward(x.into_primitive(), weight.into_primitive(), norm);
                prep.finish((kept, rstd, norm), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rmsnorm(x.into_primitive(), weight.into_primitive(), norm)),
        }
    }

    fn rope(
        x: FloatTensor<Self>,
        table: FloatTensor<Self>,
        positions: IntTensor<Self>,
        turn: Turn,
    ) -> FloatTensor<Self> {
        let table = table.into_primitive();
        match RopeGrad.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::rope(x.into_primitive(), table.clone(), positions.clone(), turn);
                prep.finish((table, positions, turn), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rope(x.into_primitive(), table, positions, turn)),
        }
    }

    fn packed_linear(x: FloatTensor<Self>, weight: Packed<Self>, shape: [usize; 2]) -> FloatTensor<Self> {
        let weight = inner(weight);
        match PackedLinearGrad.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::packed_linear(x.into_primitive(), weight.clone(), shape);
                prep.finish((weight, shape), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::packed_linear(x.into_primitive(), weight, shape)),
        }
    }

    fn lora(x: FloatTensor<Self>, a: FloatTensor<Self>, b: FloatTensor<Self>, scale: f32) -> FloatTensor<Self> {
        match LoraGrad.prepare::<C>([x.node(), a.node(), b.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let kept = [prep.checkpoint(&x), prep.checkpoint(&a), prep.checkpoint(&b)];
                let (out, xa) = lora_product::<B>(x.into_primitive(), a.into_primitive(), b.into_primitive(), scale);
                prep.finish((kept, xa, scale), out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::lora(x.into_primitive(), a.into_primitive(), b.into_primitive(), scale))
            }
        }
    }

    fn linear_logprob(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: IntTensor<Self>,
        softcap: f32,
        chunk: usize,
    ) -> FloatTensor<Self> {
        match LinearLogprobGrad.prepare::<C>([hidden.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let kept = [prep.checkpoint(&hidden), prep.checkpoint(&weight)];
                let (hidden, weight) = (hidden.into_primitive(), weight.into_primitive());
                let (logp, lse) = chunked_logprob::<B>(hidden, weight, labels.clone(), softcap, chunk);
                prep.finish((kept, Head { labels, lse, softcap, chunk }), logp)
            }
            OpsKind::UnTracked(prep) => {
                let (hidden, weight) = (hidden.into_primitive(), weight.into_primitive());
                prep.finish(B::linear_logprob(hidden, weight, labels, softcap, chunk))
            }
        }
    }
}
