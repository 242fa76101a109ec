//! Phi-1, 1.5, 2: LayerNorm, attention and an MLP without a gate in parallel behind one norm, biases everywhere, also in the head.
//! Li et al. 2023, arXiv:2309.05463.
use super::super::config::Keys;
use super::super::spec::{Bias, Gating, Names, NormKind, QkNorm, ResidualKind, Spec};
use super::common::{self, NAMES, activation};
use crate::error::Result;

const PHI: Names = Names {
    final_norm: "model.final_layernorm",
    q_norm: "self_attn.q_layernorm",
    k_norm: "self_attn.k_layernorm",
    o: "self_attn.dense",
    up: "mlp.fc1",
    down: "mlp.fc2",
    ..NAMES
};

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let keys = &keys.adapted(&[], serde_json::json!({ "partial_rotary_factor": 0.5 }));
    Ok(Spec {
        eps: keys.positive("layer_norm_eps", Some(1e-5))? as f32,
        norm: NormKind::Layer(Bias::Present),
        residual: ResidualKind::ParallelShared,
        gating: Gating::Plain,
        qk_norm: if keys.flag("qk_layernorm", false)? { QkNorm::PerHead } else { QkNorm::Absent },
        qkv_bias: Bias::Present,
        o_bias: Bias::Present,
        mlp_bias: Bias::Present,
        head_bias: Bias::Present,
        names: PHI,
        ..common::spec_with(keys, None, activation(keys, &["hidden_act"], "gelu_new")?)?
    })
}
