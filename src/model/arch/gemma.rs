//! Gemma: GeGLU, norm weights stored as their distance from 1, a scaled embedding. Mesnard et al. 2024, arXiv:2403.08295.
use super::super::config::Keys;
use super::super::spec::{NormWeight, Spec};
use super::common::{self, activation, bias, tied};
use crate::error::Result;

/// What all Gemmas share.
pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let attention = bias(keys, "attention_bias")?;
    let common = common::spec(keys, Some(256))?;
    Ok(Spec {
        qkv_bias: attention,
        o_bias: attention,
        norm_weight: NormWeight::FromOne,
        activation: activation(keys, &["hidden_activation", "hidden_act"], "gelu_pytorch_tanh")?,
        embed_scale: (common.C as f64).sqrt() as f32,
        head: tied(keys, true)?,
        ..common
    })
}
