//! OLMo 2: Llama with norms on what attention and MLP give, and on q and k as a whole. OLMo team 2024, arXiv:2501.00656.
use super::super::config::Keys;
use super::super::spec::{Names, NormPlace, QkNorm, Spec};
use super::common::{self, NAMES, bias};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let attention = bias(keys, "attention_bias")?;
    Ok(Spec {
        eps: keys.positive("rms_norm_eps", Some(1e-5))? as f32,
        qkv_bias: attention,
        o_bias: attention,
        norm_place: NormPlace::After,
        qk_norm: QkNorm::Whole,
        names: Names {
            attention_post_norm: "post_attention_layernorm",
            mlp_post_norm: "post_feedforward_layernorm",
            ..NAMES
        },
        ..common::spec(keys, None)?
    })
}
