//! What only some architectures have in their metadata, as the keys of their configs.
use super::config::{Metadata, short};
use super::latent;
use crate::error::Result;
use crate::io::gguf::Value as Meta;
use serde_json::{Map, Value, json};

/// No real model has as many experts; keeps a hostile file from naming tensors without end.
const MAX_EXPERTS: u64 = 4096;

/// What only some architectures have.
pub(super) fn read(
    m: &Metadata,
    keys: &mut Map<String, Value>,
    (layers, hidden, heads, head_dim): (u64, u64, u64, u64),
) -> Result<()> {
    let there = |name: &str| m.gguf.tensor(name).is_some();
    let window = m.optional("attention.sliding_window")?.filter(|n| *n > 0);
    if m.optional("expert_count")?.is_some_and(|n| n > MAX_EXPERTS) {
        return m.wrong("expert_count", format!("at most {MAX_EXPERTS} are wanted"));
    }
    let types = layer_types(m);
    let turned = m.optional("rope.dimension_count")?.unwrap_or(head_dim);
    let share = json!(turned as f64 / head_dim as f64);
    let mut put = |key: &str, value: Value| keys.insert(key.into(), value);
    let bias = |tensor: &str| json!(there(&format!("blk.0.{tensor}.bias")));
    match m.architecture {
        "llama" => {
            put("attention_bias", json!(there("blk.0.attn_output.bias")));
            put("mlp_bias", json!(there("blk.0.ffn_up.bias")));
            if there("blk.0.attn_q.bias") && !there("blk.0.attn_output.bias") {
                put("model_type", json!("qwen2"));
            }
            if window.is_some() {
                put("model_type", json!("mistral"));
                put("sliding_window", json!(window));
            }
            if let Some(experts) = m.optional("expert_count")?.filter(|n| *n > 0) {
                put("model_type", json!("mixtral"));
                put("num_local_experts", json!(experts));
                put("num_experts_per_tok", json!(m.number("expert_used_count")?));
            }
        }
        "qwen3" => drop(put("attention_bias", json!(there("blk.0.attn_q.bias")))),
        "qwen3moe" => {
            put("attention_bias", json!(there("blk.0.attn_q.bias")));
            put("num_experts", json!(m.number("expert_count")?));
            put("num_experts_per_tok", json!(m.number("expert_used_count")?));
            put("moe_intermediate_size", json!(m.number("expert_feed_forward_length")?));
            // llama.cpp renormalises always
            put("norm_topk_prob", json!(m.get("expert_weights_norm").and_then(Meta::as_bool).unwrap_or(true)));
        }
        "phi3" => drop(put("sliding_window", json!(window))),
        "granite" => {
            put("attention_bias", bias("attn_output"));
            put("mlp_bias", bias("ffn_up"));
            let usual = [
                ("attention.scale", "attention_multiplier", 1.0 / (head_dim as f64).sqrt()),
                ("embedding_scale", "embedding_multiplier", 1.0),
                ("residual_scale", "residual_multiplier", 1.0),
                ("logit_scale", "logits_scaling", 1.0),
            ];
            for (key, own, usual) in usual {
                let value = m.real(key)?.filter(|x| *x > 0.0);
                put(own, json!(short(value.unwrap_or(usual))));
            }
        }
        "olmo2" => {
            put("attention_bias", bias("attn_output"));
            if window.is_some() {
                put("model_type", json!("olmo3"));
                put("sliding_window", json!(window));
                types.map(|types| put("layer_types", types));
            }
        }
        "exaone4" | "cohere2" => {
            put("sliding_window", json!(window));
            put("attention_bias", bias("attn_output"));
            types.map(|types| put("layer_types", types));
            if let Some(scale) = m.real("logit_scale")? {
                put("logit_scale", json!(short(scale)));
            }
        }
        "command-r" => {
            put("attention_bias", bias("attn_output"));
            put("use_qk_norm", json!(there("blk.0.attn_q_norm.weight")));
            put("logit_scale", json!(short(m.real("logit_scale")?.unwrap_or(1.0))));
        }
        "olmoe" | "qwen2moe" => {
            put("num_experts", json!(m.number("expert_count")?));
            put("num_experts_per_tok", json!(m.number("expert_used_count")?));
            put("attention_bias", bias("attn_output"));
            put("qkv_bias", bias("attn_q"));
            if let Some(F) = m.optional("expert_feed_forward_length")? {
                put("moe_intermediate_size", json!(F));
            }
            if let Some(F) = m.optional("expert_shared_feed_forward_length")? {
                put("shared_expert_intermediate_size", json!(F));
            }
        }
        "seed_oss" => {
            put("attention_bias", bias("attn_q"));
            put("attention_out_bias", bias("attn_output"));
            put("mlp_bias", bias("ffn_up"));
        }
        "smollm3" => {
            put("attention_bias", bias("attn_output"));
            put("mlp_bias", bias("ffn_up"));
        }
        latent::ARCHITECTURE => latent::read(m, keys)?,
        "gpt-oss" => {
            put("attention_bias", bias("attn_output"));
            put("num_local_experts", json!(m.number("expert_count")?));
            put("num_experts_per_tok", json!(m.number("expert_used_count")?));
            put("intermediate_size", json!(m.number("expert_feed_forward_length")?));
            put("sliding_window", json!(window));
            types.map(|types| put("layer_types", types));
            // without a word about it a config means the published models' own
            let scaling = keys.entry("rope_scaling").or_insert(json!({ "rope_type": "default" }));
            // llama.cpp rounds the ends of its ramp; the models do not
            scaling["truncate"] = json!(false);
        }
        "chatglm" | "glm4" => {
            put("attention_bias", bias("attn_q"));
            put("partial_rotary_factor", share);
        }
        "ernie4_5" | "starcoder2" => drop(put("use_bias", bias("attn_output"))),
        "gptneox" => {
            put("rotary_pct", share);
            put("rotary_emb_base", json!(short(m.real("rope.freq_base")?.unwrap_or(1e4))));
            put("attention_bias", bias("attn_output"));
            put("use_parallel_residual", json!(m.flag("use_parallel_residual")?.unwrap_or(true)));
        }
        "gpt2" => {
            let sizes = [("n_embd", hidden), ("n_layer", layers), ("n_head", heads)];
            sizes.into_iter().for_each(|(key, size)| drop(put(key, json!(size))));
            put("n_positions", json!(m.number("context_length")?));
            put("n_inner", json!(m.number("feed_forward_length")?));
        }
        "phi2" => {
            put("partial_rotary_factor", share);
            put("qk_layernorm", json!(there("blk.0.attn_q_norm.weight")));
        }
        "stablelm" => {
            put("partial_rotary_factor", share);
            put("use_qkv_bias", bias("attn_q"));
            put("qk_layernorm", json!(there("blk.0.attn_q_norm.weight")));
            // its graph goes by the tensor, too
            put("use_parallel_residual", json!(!there("blk.0.ffn_norm.weight")));
        }
        "gemma2" | "gemma3" => {
            let scalar = gemma_scalar(m.architecture, layers, hidden, heads, head_dim);
            let scale = m.real("attention.scale")?.filter(|x| *x > 0.0);
            put("query_pre_attn_scalar", json!(scale.map_or(scalar, |x| 1.0 / (x * x))));
            let older = if m.architecture == "gemma2" { 4096 } else { 1024 };
            put("sliding_window", json!(window.unwrap_or(older)));
            let cap = |key| m.real(key).map(|x| json!(x.filter(|x| *x > 0.0).map(short)));
            let usual =
                if m.architecture == "gemma2" { (json!(50.0), json!(30.0)) } else { (Value::Null, Value::Null) };
            let given = |key, usual| if m.get(key).is_some() { cap(key) } else { Ok(usual) };
            put("attn_logit_softcapping", given("attn_logit_softcapping", usual.0)?);
            put("final_logit_softcapping", given("final_logit_softcapping", usual.1)?);
            if let Some(theta) = m.real("rope.freq_base_swa")? {
                put("rope_local_base_freq", json!(short(theta)));
            }
            if let Some(Meta::Unsigned(pattern)) = m.get("attention.sliding_window_pattern") {
                put("sliding_window_pattern", json!(pattern));
            }
            types.map(|types| put("layer_types", types));
        }
        _ => {}
    }
    Ok(())
}

/// `layer_types`, where the file says of each layer whether it has a window.
fn layer_types(m: &Metadata) -> Option<Value> {
    let slides = m.get("attention.sliding_window_pattern").and_then(Meta::as_array)?;
    let name = |slides: &Meta| if slides == &Meta::Bool(true) { "sliding_attention" } else { "full_attention" };
    Some(json!(slides.iter().map(name).collect::<Vec<_>>()))
}

/// `query_pre_attn_scalar`, of which no key says anything: the 27B models alone divide by the channels a head, not by the
/// head's size.
pub(super) fn gemma_scalar(architecture: &str, layers: u64, hidden: u64, heads: u64, head_dim: u64) -> f64 {
    match (architecture, layers) {
        ("gemma2", 46) | ("gemma3", 62) => hidden as f64 / heads as f64,
        _ => head_dim as f64,
    }
}
