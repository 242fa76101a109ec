//! luthier's kernels as a Burn backend extension: forward and backward as what they are, without a tape. [`crate::ops`] puts them
//! on it. Rows are the last dim's; a tensor of more dims is so many rows.
use crate::kernel::{bytes, cast, dense, empty, own, row_wise, run, stored, values, zeros};
use crate::packed::Packed;
#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use luthier::model::spec::Activation;
use luthier::ops::{Op, int8, logprob, nf4, rmsnorm, rope, swiglu, thin};

/// RMSNorm's constants.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    pub eps: f32,
    /// Added to the weight: 1 for Gemma, else 0.
    pub shift: f32,
}

/// How RoPE turns.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Channels of a head that turn: all, or the first ones.
    pub channels: usize,
    pub pairs: Pairs,
    pub way: Way,
}

/// Which channels turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// d and d + A/2: Llama, GPT-NeoX.
    Halves,
    /// 2d and 2d + 1: GPT-J, GLM, Cohere.
    Interleaved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Forward,
    Backward,
}

#[backend_extension(Cube, Fusion: cfg(feature = "fusion"))]
pub trait Kernels: Backend {
    /// (codes, absmax) of a weight: see [`luthier::ops::nf4`].
    #[fusion(meta = |weight| {
        let P = weight.shape.num_elements();
        (spec([P.div_ceil(8)], DType::I32), spec([P.div_ceil(nf4::BLOCK)], DType::F32))
    })]
    fn nf4_quantize(weight: FloatTensor<Self>) -> (IntTensor<Self>, FloatTensor<Self>);

    /// (codes, scb) of a weight [O, C]: see [`luthier::ops::int8`].
    #[fusion(meta = |weight| {
        (spec([weight.shape.num_elements().div_ceil(4)], DType::I32), spec([weight.shape[0]], DType::F32))
    })]
    fn int8_quantize(weight: FloatTensor<Self>) -> (IntTensor<Self>, FloatTensor<Self>);

    /// The weight [O, C] in `dtype`.
    #[fusion(meta = |_weight, shape, dtype| spec(*shape, *dtype))]
    fn unpack(#[extension_type] weight: Packed<Self>, shape: [usize; 2], dtype: DType) -> FloatTensor<Self>;

    /// x [N, C] · weightᵀ for few rows: the weight is read packed, and never unpacked to memory.
    #[fusion(meta = |x, _weight, shape| spec([x.shape[0], shape[0]], x.dtype))]
    fn thin(x: FloatTensor<Self>, #[extension_type] weight: Packed<Self>, shape: [usize; 2]) -> FloatTensor<Self>;

    /// act(gate)·up.
    #[fusion(dtype = gate, shape = gate)]
    fn swiglu_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>, act: Activation) -> FloatTensor<Self>;

    /// (dgate, dup).
    #[fusion(meta = |_dout, gate, up, _act| (gate.clone(), up.clone()))]
    fn swiglu_backward(
        dout: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        act: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// (out, rstd [N] in f32).
    #[fusion(meta = |x, _weight, _norm| (x.clone(), spec([rows(&x.shape)[0]], DType::F32)))]
    fn rmsnorm_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        norm: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// dx.
    #[fusion(meta = |_dout, x, _weight, _rstd, _norm| x.clone())]
    fn rmsnorm_backward(
        dout: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self>;

    /// dweight [C] in f32.
    #[fusion(meta = |_dout, x, _rstd, _norm| spec([rows(&x.shape)[1]], DType::F32))]
    fn rmsnorm_backward_weight(
        dout: FloatTensor<Self>,
        x: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self>;

    /// x [.., H, D], turned by the angles of its rows' positions [..], one for H heads; table [T, A] in f32.
    #[fusion(dtype = x, shape = x)]
    fn rope_turn(
        x: FloatTensor<Self>,
        table: FloatTensor<Self>,
        positions: IntTensor<Self>,
        turn: Turn,
    ) -> FloatTensor<Self>;

    /// (logp [N], lse [N]) of labels [N] under logits [N, V], in f32.
    #[fusion(meta = |logits, _labels, _softcap| {
        let one = spec([logits.shape[0]], DType::F32);
        (one.clone(), one)
    })]
    fn logprob_forward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        softcap: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// dlogits [N, V], from coef = ∂L/∂logp [N].
    #[fusion(meta = |_coef, _lse, logits, _labels, _softcap| logits.clone())]
    fn logprob_backward(
        coef: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        softcap: f32,
    ) -> FloatTensor<Self>;
}

#[cfg(feature = "fusion")]
fn spec(shape: impl Into<Shape>, dtype: DType) -> TensorSpec {
    TensorSpec::new(shape.into(), dtype)
}

/// N rows of C elements.
fn rows(shape: &Shape) -> [usize; 2] {
    let C = shape[shape.num_dims() - 1];
    [shape.num_elements() / C.max(1), C]
}

/// Sizes as the rows' params have them.
fn dims<const N: usize>(sizes: [usize; N]) -> [u32; N] {
    sizes.map(|n| u32::try_from(n).unwrap_or_else(|_| panic!("luthier-burn: {n} is more than a kernel counts to")))
}

fn swiglu_params(shape: &Shape, act: Activation) -> swiglu::SwiGlu {
    let [n, c] = rows(shape);
    // without gaps between rows one long row is the same, and rows of 16-bit values may not be odd
    let [N, F] = dims(if c % 2 == 1 { [1, n * c] } else { [n, c] });
    let (act, slope, cubic) = act.coefficients();
    swiglu::SwiGlu { N, F, ld_gate: F, ld_up: F, act, slope, cubic }
}

fn rmsnorm_params(shape: &Shape, norm: Norm) -> rmsnorm::RmsNorm {
    let [N, C] = dims(rows(shape));
    rmsnorm::RmsNorm { N, C, eps: norm.eps, shift: norm.shift }
}

impl Kernels for CubeBackend {
    fn nf4_quantize(weight: CubeTensor) -> (CubeTensor, CubeTensor) {
        let weight = dense(weight);
        let P = weight.meta.shape().num_elements();
        let codes = zeros(&weight, [P.div_ceil(8)], DType::I32);
        let absmax = empty(&weight, [P.div_ceil(nf4::BLOCK)], DType::F32);
        let args = [bytes(&codes, P.div_ceil(2)), values(&absmax), values(&weight)];
        run(Op::nf4_quantize, &args, &nf4::Nf4 { P: dims([P])[0] });
        (codes, absmax)
    }

    fn int8_quantize(weight: CubeTensor) -> (CubeTensor, CubeTensor) {
        let [o, c] = rows(weight.meta.shape());
        let weight = row_wise(weight, c);
        let codes = zeros(&weight, [(o * c).div_ceil(4)], DType::I32);
        let scb = empty(&weight, [o], DType::F32);
        let [O, C] = dims([o, c]);
        run(Op::int8_quantize, &[bytes(&codes, o * c), values(&scb), values(&weight)], &int8::Int8 { O, C });
        (codes, scb)
    }

    fn unpack(weight: Packed<Self>, shape: [usize; 2], dtype: DType) -> CubeTensor {
        let ([o, c], [O, C, P]) = (shape, dims([shape[0], shape[1], shape[0] * shape[1]]));
        let blocks = (o * c).div_ceil(nf4::BLOCK);
        match weight {
            Packed::Nf4 { codes, absmax } => {
                let (codes, absmax) = (dense(codes), dense(absmax));
                let out = empty(&codes, shape, dtype);
                let args = [values(&out), bytes(&codes, (o * c).div_ceil(2)), values(&absmax)];
                run(Op::nf4_dequantize, &args, &nf4::Nf4 { P });
                out
            }
            Packed::Nf4Double { codes, qabsmax, nested, map, offset } => {
                let [codes, qabsmax, nested, map] = [codes, qabsmax, nested, map].map(dense);
                let out = empty(&codes, shape, dtype);
                let codes = bytes(&codes, (o * c).div_ceil(2));
                let args = [values(&out), codes, bytes(&qabsmax, blocks), values(&nested), values(&map)];
                run(Op::nf4_dequantize_double, &args, &nf4::Nf4Double { P, offset });
                out
            }
            Packed::Int8 { codes, scb } => {
                let (codes, scb) = (dense(codes), dense(scb));
                let out = empty(&codes, shape, stored(dtype, c));
                run(Op::int8_dequantize, &[values(&out), bytes(&codes, o * c), values(&scb)], &int8::Int8 { O, C });
                cast(out, dtype)
            }
        }
    }

    fn thin(x: CubeTensor, weight: Packed<Self>, shape: [usize; 2]) -> CubeTensor {
        let ([o, c], [n, _], dtype) = (shape, rows(x.meta.shape()), x.dtype);
        // odd if one of them is
        let x = row_wise(x, (o % 2) | (c % 2));
        let [N, O, C, P] = dims([n, o, c, o * c]);
        let (p, first) = (thin::Thin { N, O, C, P, first: 0 }, 0);
        let (out, blocks) = (empty(&x, [n, o], x.dtype), (o * c).div_ceil(nf4::BLOCK));
        match weight {
            Packed::Nf4 { codes, absmax } => {
                let (codes, absmax) = (dense(codes), dense(absmax));
                let args = [values(&out), values(&x), bytes(&codes, (o * c).div_ceil(2)), values(&absmax)];
                run(Op::thin_nf4, &args, &p);
            }
            Packed::Nf4Double { codes, qabsmax, nested, map, offset } => {
                let [codes, qabsmax, nested, map] = [codes, qabsmax, nested, map].map(dense);
                let (codes, qabsmax) = (bytes(&codes, (o * c).div_ceil(2)), bytes(&qabsmax, blocks));
                let args = [values(&out), values(&x), codes, qabsmax, values(&nested), values(&map)];
                run(Op::thin_nf4_double, &args, &thin::ThinDouble { N, O, C, P, first, offset });
            }
            Packed::Int8 { codes, scb } => {
                let (codes, scb) = (dense(codes), dense(scb));
                run(Op::thin_int8, &[values(&out), values(&x), bytes(&codes, o * c), values(&scb)], &p);
            }
        }
        cast(out, dtype)
    }

    fn swiglu_forward(gate: CubeTensor, up: CubeTensor, act: Activation) -> CubeTensor {
        let (gate, up) = (dense(gate), dense(up));
        let p = swiglu_params(gate.meta.shape(), act);
        let out = empty(&gate, gate.meta.shape().clone(), gate.dtype);
        run(Op::swiglu_forward, &[values(&out), values(&gate), values(&up)], &p);
        out
    }

    fn swiglu_backward(
        dout: CubeTensor,
        gate: CubeTensor,
        up: CubeTensor,
        act: Activation,
    ) -> (CubeTensor, CubeTensor) {
        let [dout, gate, up] = [dout, gate, up].map(own);
        let p = swiglu_params(gate.meta.shape(), act);
        run(Op::swiglu_backward, &[values(&dout), values(&gate), values(&up)], &p);
        (gate, up)
    }

    fn rmsnorm_forward(x: CubeTensor, weight: CubeTensor, norm: Norm) -> (CubeTensor, CubeTensor) {
        let (p, dtype) = (rmsnorm_params(x.meta.shape(), norm), x.dtype);
        let (x, weight) = (row_wise(x, p.C as usize), dense(weight));
        let out = empty(&x, x.meta.shape().clone(), x.dtype);
        let rstd = empty(&x, [p.N as usize], DType::F32);
        run(Op::rmsnorm_forward, &[values(&out), values(&rstd), values(&x), values(&weight)], &p);
        (cast(out, dtype), rstd)
    }

    fn rmsnorm_backward(
        dout: CubeTensor,
        x: CubeTensor,
        weight: CubeTensor,
        rstd: CubeTensor,
        norm: Norm,
    ) -> CubeTensor {
        let (p, dtype) = (rmsnorm_params(x.meta.shape(), norm), x.dtype);
        let [dout, x] = [dout, x].map(|rows| row_wise(rows, p.C as usize));
        let (weight, rstd) = (dense(weight), dense(rstd));
        let dx = zeros(&x, x.meta.shape().clone(), x.dtype);
        let args = [values(&dx), values(&dout), values(&x), values(&weight), values(&rstd)];
        run(Op::rmsnorm_backward, &args, &p);
        cast(dx, dtype)
    }

    fn rmsnorm_backward_weight(dout: CubeTensor, x: CubeTensor, rstd: CubeTensor, norm: Norm) -> CubeTensor {
        let p = rmsnorm_params(x.meta.shape(), norm);
        let [dout, x] = [dout, x].map(|rows| row_wise(rows, p.C as usize));
        let rstd = dense(rstd);
        let dweight = zeros(&x, [p.C as usize], DType::F32);
        let args = [values(&dweight), values(&dout), values(&x), values(&rstd)];
        run(Op::rmsnorm_backward_weight, &args, &p);
        dweight
    }

    fn rope_turn(x: CubeTensor, table: CubeTensor, positions: CubeTensor, turn: Turn) -> CubeTensor {
        let (x, table, positions) = (own(x), dense(table), dense(positions));
        let shape = x.meta.shape();
        let [d, n] = [shape[shape.num_dims() - 1], positions.meta.shape().num_elements()];
        let h = shape.num_elements() / (d * n).max(1);
        let [N, H, D, A, T] = dims([n, h, d, turn.channels, table.meta.shape()[0]]);
        let p = rope::Rope { N, H, D, A, T, ld_x: H * D, interleaved: (turn.pairs == Pairs::Interleaved) as u32 };
        let op = if turn.way == Way::Forward { Op::rope_forward } else { Op::rope_backward };
        run(op, &[values(&x), values(&table), values(&positions)], &p);
        x
    }

    fn logprob_forward(logits: CubeTensor, labels: CubeTensor, softcap: f32) -> (CubeTensor, CubeTensor) {
        let p = logprob_params(&logits, softcap);
        let (logits, labels) = (row_wise(logits, p.V as usize), dense(labels));
        let [logp, lse] = [(); 2].map(|()| empty(&logits, [p.N as usize], DType::F32));
        run(Op::logprob_forward, &[values(&logp), values(&lse), values(&logits), values(&labels)], &p);
        (logp, lse)
    }

    fn logprob_backward(
        coef: CubeTensor,
        lse: CubeTensor,
        logits: CubeTensor,
        labels: CubeTensor,
        softcap: f32,
    ) -> CubeTensor {
        let (p, dtype) = (logprob_params(&logits, softcap), logits.dtype);
        let logits = row_wise(logits, p.V as usize);
        let [coef, lse, labels] = [coef, lse, labels].map(dense);
        let dlogits = empty(&logits, logits.meta.shape().clone(), logits.dtype);
        let args = [values(&dlogits), values(&coef), values(&lse), values(&logits), values(&labels)];
        run(Op::logprob_backward, &args, &p);
        cast(dlogits, dtype)
    }
}

fn logprob_params(logits: &CubeTensor, softcap: f32) -> logprob::LogProb {
    let [N, V] = dims(rows(logits.meta.shape()));
    logprob::LogProb { N, V, ld_logits: V, ld_dlogits: V, softcap }
}
