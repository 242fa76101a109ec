//! Gemma 2: norms before and after, soft caps, every other layer with a window. Riviere et al. 2024, arXiv:2408.00118.
use super::super::config::Keys;
use super::super::spec::{Names, NormPlace, Spec};
use super::common::{LayerType, NAMES, inverse_root, layer_types};
use super::gemma;
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let mut spec = sandwich(keys, Some(50.0), Some(30.0))?;
    let older = |l| if l % 2 == 0 { LayerType::Sliding } else { LayerType::Full };
    let types = layer_types(keys, spec.layers, older)?;
    spec.set_windows(&types, keys.optional_size("sliding_window", Some(4096))?);
    Ok(spec)
}

/// What Gemma 2 and 3 share; the caps are what their config classes take where the keys are missing.
pub(super) fn sandwich(keys: &Keys, attention_cap: Option<f64>, logit_cap: Option<f64>) -> Result<Spec> {
    let cap = |key, default| keys.optional_positive(key, default).map(|c| c.unwrap_or(0.0) as f32);
    Ok(Spec {
        norm_place: NormPlace::BeforeAndAfter,
        attention_scale: inverse_root(keys.positive("query_pre_attn_scalar", Some(256.0))?),
        attention_softcap: cap("attn_logit_softcapping", attention_cap)?,
        logit_softcap: cap("final_logit_softcapping", logit_cap)?,
        names: Names {
            attention_post_norm: "post_attention_layernorm",
            mlp_norm: "pre_feedforward_layernorm",
            mlp_post_norm: "post_feedforward_layernorm",
            ..NAMES
        },
        ..gemma::spec(keys)?
    })
}
