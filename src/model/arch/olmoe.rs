//! OLMoE: Llama with norms of whole q and k, and mixtures of experts. Muennighoff et al. 2024, arXiv:2409.02060.
use super::super::config::Keys;
use super::super::spec::{QkNorm, Spec};
use super::common::{self, bias};
use super::qwen3_moe;
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    if let Some(limit) = keys.get("clip_qkv") {
        return keys.wrong("clip_qkv", format!("null is wanted: q, k and v are not clipped here, got {limit}"));
    }
    let attention = bias(keys, "attention_bias")?;
    let moe = qwen3_moe::mixture(keys, (64, 8), ("intermediate_size", 2048))?;
    Ok(Spec {
        eps: keys.positive("rms_norm_eps", Some(1e-5))? as f32,
        qkv_bias: attention,
        o_bias: attention,
        qk_norm: QkNorm::Whole,
        moe: Some(moe),
        ..common::spec(keys, None)?
    })
}
