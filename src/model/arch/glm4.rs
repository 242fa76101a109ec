//! GLM-4-0414, GLM-Z1: GLM with norms before and after.
use super::super::config::Keys;
use super::super::spec::{Names, NormPlace, Spec};
use super::glm;
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let spec = glm::spec(keys)?;
    let names = Names {
        attention_post_norm: "post_self_attn_layernorm",
        mlp_post_norm: "post_mlp_layernorm",
        ..spec.names.clone()
    };
    Ok(Spec { norm_place: NormPlace::BeforeAndAfter, names, ..spec })
}
