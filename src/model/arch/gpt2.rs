//! GPT-2: LayerNorm, learned positions instead of RoPE, weights stored input by output. Radford et al. 2019, "Language Models are
//! Unsupervised Multitask Learners".
use super::super::config::Keys;
use super::super::spec::{Bias, Gating, LayerKind, Names, NormKind, Positions, Spec, WeightLayout};
use super::common::{self, NAMES, activation, tied};
use crate::error::Result;
use serde_json::json;

const QKV: &str = "attn.c_attn";
const GPT2: Names = Names {
    embed: "transformer.wte",
    layer: "transformer.h.{}",
    positions: "transformer.wpe",
    final_norm: "transformer.ln_f",
    attention_norm: "ln_1",
    mlp_norm: "ln_2",
    q: QKV,
    k: QKV,
    v: QKV,
    o: "attn.c_proj",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    ..NAMES
};

const KEYS: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("max_position_embeddings", "n_positions"),
    ("intermediate_size", "n_inner"),
    ("num_key_value_heads", ""),
    ("head_dim", ""),
];

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let C = keys.adapted(KEYS, json!({ "n_embd": 768 })).size("hidden_size", None)?;
    let sizes = json!({ "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_inner": 4 * C });
    let keys = &keys.adapted(KEYS, sizes);
    for (key, usual) in [("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)] {
        if keys.flag(key, usual)? != usual {
            return keys.wrong(key, format!("{usual} is wanted: other models of the family are not supported"));
        }
    }
    let common = common::spec_with(keys, None, activation(keys, &["activation_function"], "gelu_new")?)?;
    Ok(Spec {
        eps: keys.positive("layer_norm_epsilon", Some(1e-5))? as f32,
        norm: NormKind::Layer(Bias::Present),
        gating: Gating::Plain,
        qkv_bias: Bias::Present,
        o_bias: Bias::Present,
        mlp_bias: Bias::Present,
        kinds: vec![LayerKind { window: None, rope: None }],
        positions: Positions::Learned,
        layout: WeightLayout::Conv1d,
        attention_scale: if keys.flag("scale_attn_weights", true)? { common.attention_scale } else { 1.0 },
        head: tied(keys, true)?,
        names: GPT2,
        ..common
    })
}
