//! Llama 2, 3, 3.x. Touvron et al. 2023, arXiv:2307.09288; Dubey et al. 2024, arXiv:2407.21783.
use super::super::config::Keys;
use super::super::spec::{Bias, Head, Names, Spec};
use super::rope;
use crate::error::Result;

pub(super) const NAMES: Names = Names {
    embed: "model.embed_tokens",
    layer: "model.layers.{}",
    final_norm: "model.norm",
    head: "lm_head",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
};

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let C = keys.size("hidden_size", None)?;
    let H = keys.size("num_attention_heads", None)?;
    let K = keys.size("num_key_value_heads", Some(H))?;
    if !H.is_multiple_of(K) {
        return keys.wrong("num_key_value_heads", format!("{H} query heads do not divide among {K} kv heads"));
    }
    if keys.get("head_dim").is_none() && !C.is_multiple_of(H) {
        return keys.wrong("num_attention_heads", format!("hidden_size {C} does not divide among {H} heads"));
    }
    let D = keys.size("head_dim", Some(C / H))?;
    if D % 2 == 1 || D > 256 {
        return keys.wrong("head_dim", format!("an even head size up to 256 is wanted, got {D}"));
    }
    let act = keys.text("hidden_act", Some("silu"))?;
    if act != "silu" {
        return keys.wrong("hidden_act", format!("`silu` is wanted, got `{act}`"));
    }
    let bias = |key| keys.flag(key, false).map(|b| if b { Bias::Present } else { Bias::Absent });
    let attention_bias = bias("attention_bias")?;
    Ok(Spec {
        model_type: keys.text("model_type", None)?,
        layers: keys.size("num_hidden_layers", None)?,
        C,
        F: keys.size("intermediate_size", None)?,
        H,
        K,
        D,
        V: keys.size("vocab_size", None)?,
        eps: keys.positive("rms_norm_eps", Some(1e-6))? as f32,
        rope: rope(keys)?,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: bias("mlp_bias")?,
        moe: None,
        head: if keys.flag("tie_word_embeddings", false)? { Head::Tied } else { Head::Own },
        max_positions: keys.size("max_position_embeddings", Some(2048))?,
        initializer_range: keys.positive("initializer_range", Some(0.02))? as f32,
        names: NAMES,
    })
}
