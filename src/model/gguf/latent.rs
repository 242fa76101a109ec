//! Multi-head latent attention and experts chosen in groups, as the metadata of llama.cpp's `deepseek2`.
//!
//! ```text
//! attention.key_length, value_length          kv_rank + A, kv_rank: of the narrow row, which its cache holds
//! attention.key_length_mla, value_length_mla  U + A, Y: of a head. Files of before 2025 have these under the names above,
//!                                             and kv_b as one tensor
//! rope.scaling.yarn_log_multiplier            a tenth of mscale_all_dim = (√(scale·√(U + A)) − 1)/(0.1·ln factor)
//! ```
//! Its norms of narrow rows have the model's epsilon, where the models' own have 1e-6: the same in DeepSeek V3 and Kimi K2.
use super::config::{Metadata, short};
use super::describe::{Keys, refuse};
use crate::error::Result;
use crate::io::gguf::{Item, Value as Meta};
use crate::model::rope::{Rope, RopeScaling};
use crate::model::spec::{LatentSpec, MoeSpec, RouterWeights, Scores, Spec};
use serde_json::{Map, Value, json};

pub(super) const ARCHITECTURE: &str = "deepseek2";

/// `expert_gating_func`
const SIGMOID: u32 = 2;

/// What the scale of scores may be off by, relatively: the key is an f32.
const CLOSE: f64 = 1e-5;

/// In the place of head sizes and heads of k and v.
pub(super) fn write_sizes(spec: &Spec, latent: &LatentSpec, keys: &mut Keys) {
    keys.size("attention.head_count_kv", 1);
    keys.size("attention.key_length", latent.kv_rank + spec.A);
    keys.size("attention.value_length", latent.kv_rank);
    keys.size("attention.key_length_mla", latent.U + spec.A);
    keys.size("attention.value_length_mla", latent.Y);
    // 0, for llama.cpp wants it of all but some sizes
    keys.size("attention.q_lora_rank", latent.q_rank.unwrap_or(0));
    keys.size("attention.kv_lora_rank", latent.kv_rank);
    keys.size("leading_dense_block_count", spec.dense_layers.len());
}

pub(super) fn write_experts(moe: &MoeSpec, keys: &mut Keys) {
    let Scores::Sigmoid { groups, kept, scale, .. } = moe.scores else { return };
    keys.size("expert_shared_count", moe.shared.as_ref().map_or(0, |shared| shared.F / moe.F));
    keys.size("expert_group_count", groups);
    keys.size("expert_group_used_count", kept);
    keys.real("expert_weights_scale", scale.into());
    keys.put("expert_weights_norm", Item::Bool(moe.weights == RouterWeights::Renormalised));
    keys.put("expert_gating_func", Item::U32(SIGMOID));
}

/// The multiplier, which also says how scores grow; an error where they grow otherwise.
pub(super) fn write_yarn(spec: &Spec, latent: &LatentSpec, rope: &Rope, keys: &mut Keys) -> Result<()> {
    let grown = f64::from(spec.attention_scale) * ((latent.U + spec.A) as f64).sqrt();
    match &rope.scaling {
        RopeScaling::Yarn(yarn) if yarn.factor > 1.0 && (yarn.attention_factor - 1.0).abs() < CLOSE => {
            let weight = (grown.sqrt() - 1.0) / (0.1 * yarn.factor.ln());
            keys.real("rope.scaling.yarn_log_multiplier", 0.1 * weight);
            Ok(())
        }
        RopeScaling::Yarn(_) => refuse(spec, "llama.cpp wants YaRN's mscale and mscale_all_dim to be the same"),
        _ if (grown - 1.0).abs() > CLOSE => refuse(spec, "llama.cpp scales scores with YaRN alone (mscale_all_dim)"),
        _ => Ok(()),
    }
}

/// The keys of a config, but for those of every architecture.
pub(super) fn read(m: &Metadata, keys: &mut Map<String, Value>) -> Result<()> {
    let sizes = |name: &str| match m.optional(&format!("attention.{name}_mla"))? {
        Some(size) => Ok(size),
        None => m.number(&format!("attention.{name}")),
    };
    let (head, turned) = (sizes("key_length")?, m.number("rope.dimension_count")?);
    let Some(plain) = head.checked_sub(turned) else {
        return m.wrong("rope.dimension_count", format!("at most a head's {head} channels are wanted, got {turned}"));
    };
    let rank = m.optional("attention.q_lora_rank")?.filter(|rank| *rank > 0);
    // without it llama.cpp takes softmax, as of DeepSeek V2
    let sigmoid = m.optional("expert_gating_func")? == Some(u64::from(SIGMOID));
    let own = json!({
        "num_key_value_heads": m.number("attention.head_count")?,
        "q_lora_rank": rank,
        "kv_lora_rank": m.number("attention.kv_lora_rank")?,
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": plain,
        "v_head_dim": sizes("value_length")?,
        "rope_interleave": true,
        "attention_bias": false,
        "first_k_dense_replace": m.optional("leading_dense_block_count")?.unwrap_or(0),
        "num_nextn_predict_layers": 0,
        "scoring_func": if sigmoid { "sigmoid" } else { "softmax" },
        "moe_intermediate_size": m.number("expert_feed_forward_length")?,
        "n_routed_experts": m.number("expert_count")?,
        "num_experts_per_tok": m.number("expert_used_count")?,
        "n_shared_experts": m.optional("expert_shared_count")?.filter(|n| *n > 0),
        "n_group": m.optional("expert_group_count")?.unwrap_or(1).max(1),
        "topk_group": m.optional("expert_group_used_count")?.unwrap_or(1).max(1),
        "norm_topk_prob": m.get("expert_weights_norm").and_then(Meta::as_bool).unwrap_or(false),
        "routed_scaling_factor": short(m.real("expert_weights_scale")?.filter(|x| *x > 0.0).unwrap_or(1.0)),
    });
    keys.extend(own.as_object().cloned().unwrap_or_default());
    for key in ["head_dim", "partial_rotary_factor"] {
        keys.remove(key);
    }
    read_yarn(m, keys)
}

fn read_yarn(m: &Metadata, keys: &mut Map<String, Value>) -> Result<()> {
    let Some(scaling) = keys.get_mut("rope_scaling").filter(|scaling| scaling["rope_type"] == "yarn") else {
        return Ok(());
    };
    let Some(multiplier) = m.real("rope.scaling.yarn_log_multiplier")? else {
        return m.wrong("rope.scaling.yarn_log_multiplier", "is missing: take a newer conversion of the model");
    };
    let weight = short(multiplier) * 10.0;
    (scaling["mscale"], scaling["mscale_all_dim"]) = (json!(weight), json!(weight));
    Ok(())
}
