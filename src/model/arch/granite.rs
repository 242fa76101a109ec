//! Granite 3: Llama with multipliers of embedding, branches, scores and logits. IBM 2024, Granite 3.0 Language Models.
use super::super::config::Keys;
use super::super::spec::Spec;
use super::llama;
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let multiplier = |key| keys.positive(key, Some(1.0));
    Ok(Spec {
        embed_scale: multiplier("embedding_multiplier")? as f32,
        residual_scale: multiplier("residual_multiplier")? as f32,
        attention_scale: multiplier("attention_multiplier")? as f32,
        logit_scale: (1.0 / multiplier("logits_scaling")?) as f32,
        ..llama::spec(keys)?
    })
}
