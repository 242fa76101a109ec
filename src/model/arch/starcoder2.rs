//! StarCoder 2: LayerNorm, an MLP without a gate, biases everywhere, a sliding window. Lozhkov et al. 2024, arXiv:2402.19173.
use super::super::config::Keys;
use super::super::spec::{Bias, Gating, Names, NormKind, Spec};
use super::common::{self, NAMES, activation, tied};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let bias = if keys.flag("use_bias", true)? { Bias::Present } else { Bias::Absent };
    let activation = activation(keys, &["hidden_act"], "gelu_pytorch_tanh")?;
    let mut spec = Spec {
        eps: keys.positive("norm_epsilon", Some(1e-5))? as f32,
        norm: NormKind::Layer(Bias::Present),
        gating: Gating::Plain,
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: bias,
        head: tied(keys, true)?,
        names: Names { up: "mlp.c_fc", down: "mlp.c_proj", ..NAMES },
        ..common::spec_with(keys, None, activation)?
    };
    spec.kinds[0].window = keys.optional_size("sliding_window", None)?;
    Ok(spec)
}
