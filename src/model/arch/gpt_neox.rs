//! GPT-NeoX and Pythia: LayerNorm, attention and MLP in parallel, q, k and v in one module head after head.
//! Black et al. 2022, arXiv:2204.06745; Biderman et al. 2023, arXiv:2304.01373.
use super::super::config::Keys;
use super::super::spec::{Bias, Gating, Names, NormKind, ResidualKind, Spec, WeightLayout};
use super::common::{self, NAMES, activation};
use crate::error::Result;
use serde_json::json;

const QKV: &str = "attention.query_key_value";
const GPT_NEOX: Names = Names {
    embed: "gpt_neox.embed_in",
    layer: "gpt_neox.layers.{}",
    final_norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
    q: QKV,
    k: QKV,
    v: QKV,
    o: "attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    ..NAMES
};

/// The family has one head of k and v for each of q, whatever the config says.
const KEYS: &[(&str, &str)] = &[
    ("num_key_value_heads", ""),
    ("head_dim", ""),
    ("rope_theta", "rotary_emb_base"),
    ("partial_rotary_factor", "rotary_pct"),
];

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let keys = &keys.adapted(KEYS, json!({ "rotary_pct": 0.25, "rotary_emb_base": 10000 }));
    let bias = if keys.flag("attention_bias", true)? { Bias::Present } else { Bias::Absent };
    let residual = match keys.flag("use_parallel_residual", true)? {
        true => ResidualKind::Parallel,
        false => ResidualKind::Sequential,
    };
    Ok(Spec {
        eps: keys.positive("layer_norm_eps", Some(1e-5))? as f32,
        norm: NormKind::Layer(Bias::Present),
        residual,
        gating: Gating::Plain,
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: Bias::Present,
        layout: WeightLayout::PerHead,
        names: GPT_NEOX,
        ..common::spec_with(keys, None, activation(keys, &["hidden_act"], "gelu")?)?
    })
}
