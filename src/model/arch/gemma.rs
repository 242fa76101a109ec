//! Gemma: GeGLU, norm weights stored as their distance from 1, a scaled embedding. Mesnard et al. 2024, arXiv:2403.08295.
use super::super::config::Keys;
use super::super::spec::{Activation, NormWeight, Spec};
use super::common::{activation, bias, spec_with, tied};
use crate::error::Result;

/// What all Gemmas share.
pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let attention = bias(keys, "attention_bias")?;
    let old = keys.get("hidden_activation").is_none() && keys.get("hidden_act").is_some_and(|act| act == "gelu");
    let activation = match old {
        // the first releases call the tanh formula so
        true => Activation::GeluTanh,
        false => activation(keys, &["hidden_activation", "hidden_act"], "gelu_pytorch_tanh")?,
    };
    let common = spec_with(keys, Some(256), activation)?;
    Ok(Spec {
        qkv_bias: attention,
        o_bias: attention,
        norm_weight: NormWeight::FromOne,
        embed_scale: (common.C as f64).sqrt() as f32,
        head: tied(keys, true)?,
        ..common
    })
}
