//! How far a backend may be from the reference at f64: normalised mean square errors, about ten times the rounding floor.
use luthier::dtype::DType;
use luthier::ops::Op;

/// Normalised mean square error. NaN in, NaN out: compare with `!(nmse <= limit)`.
pub fn nmse(got: &[f64], want: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    // −∞ is what the log of an empty sum is: right when both say so
    let error: f64 =
        got.iter().zip(want).filter(|(g, w)| !(g.is_infinite() && g == w)).map(|(g, w)| square(g - w)).sum();
    error / want.iter().filter(|w| !w.is_infinite()).map(|w| square(*w)).sum::<f64>().max(1e-30)
}

enum Class {
    /// Copies, gathers, maxima: the very bits, once rounded to the output's storage type.
    Exact,
    Product,
    Elementwise,
    NormForward,
    /// Of a sum as it is stored.
    NormOfSum,
    NormBackward,
    /// Softmax and what is made of it: log-probabilities, cross-entropy.
    Softmax,
    AttentionForward,
    AttentionBackward,
}

fn class(op: Op) -> Class {
    match op {
        Op::embedding_forward
        | Op::cast_forward
        | Op::fill_forward
        | Op::nf4_quantize
        | Op::dyn8_quantize
        | Op::int8_quantize => Class::Exact,
        Op::pages_write | Op::route_index | Op::route_gather_forward | Op::mxfp4_dequantize => Class::Exact,
        Op::latent_query_forward | Op::latent_kv_forward | Op::latent_output_forward => Class::Exact,
        Op::latent_query_backward | Op::latent_output_backward => Class::Exact,
        Op::thin_gguf => Class::Product,
        _ if ["grouped", "thin", "fp8_matmul", "low_rank"].contains(&op.spec().file) => Class::Product,
        Op::router_forward | Op::router_backward => Class::Softmax,
        Op::balance_forward | Op::balance_backward => Class::Softmax,
        Op::group_router_forward | Op::group_router_backward => Class::Softmax,
        Op::matmul_nt | Op::matmul_nn | Op::matmul_tn | Op::matmul_nt_add | Op::matmul_nn_add | Op::matmul_tn_add => {
            Class::Product
        }
        Op::rmsnorm_forward | Op::layernorm_forward | Op::dora_norm => Class::NormForward,
        Op::rmsnorm_backward | Op::rmsnorm_backward_weight | Op::layernorm_backward | Op::layernorm_backward_weight => {
            Class::NormBackward
        }
        Op::rmsnorm_residual_forward => Class::NormOfSum,
        Op::logprob_forward | Op::logprob_backward | Op::sample_token => Class::Softmax,
        Op::attention_forward | Op::paged_attention_forward => Class::AttentionForward,
        Op::attention_backward => Class::AttentionBackward,
        _ => Class::Elementwise,
    }
}

/// (op, output, its type, limit, why): where the table does not fit.
const OVERRIDES: &[(Op, &str, DType, f64, &str)] = &[
    (Op::fp8_matmul, "out", DType::F32, 1e-5, FEW_BITS),
    (Op::fp8_matmul, "out", DType::F16, 1e-5, FEW_BITS),
    (Op::fp8_matmul_add, "out", DType::F32, 1e-5, FEW_BITS),
    (Op::fp8_matmul_add, "out", DType::F16, 1e-5, FEW_BITS),
];
const FEW_BITS: &str = "Hopper's tensor cores add products in e4m3 in fewer bits than f32 has";

/// The limit for the output `arg` stored as `out`. `coarsest` is the coarsest type among the op's floats (attention rounds its
/// probabilities to that), `inner` the length of a product's sums.
pub fn limit(op: Op, arg: &str, out: DType, coarsest: DType, inner: usize) -> f64 {
    if let Some((.., limit, _)) = OVERRIDES.iter().find(|o| (o.0, o.1, o.2) == (op, arg, out)) {
        return *limit;
    }
    let by = |dtype, [f32, f16, bf16]: [f64; 3]| match dtype {
        DType::F16 => f16,
        DType::Bf16 => bf16,
        _ => f32,
    };
    match class(op) {
        Class::Exact => 0.0,
        Class::Product => by(out, [f64::max(1e-12, inner as f64 * 4e-14), 5e-7, 3e-5]),
        Class::Elementwise | Class::NormForward => by(out, [1e-11, 5e-7, 3e-5]),
        Class::NormOfSum => by(coarsest, [1e-11, 5e-7, 3e-5]),
        Class::NormBackward | Class::Softmax => by(out, [1e-10, 5e-7, 3e-5]),
        Class::AttentionForward => by(coarsest, [1e-10, 2e-6, 1e-4]),
        Class::AttentionBackward => by(coarsest, [1e-9, 1e-5, 3e-4]),
    }
}
