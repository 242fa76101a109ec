//! Llama 2, 3, 3.x. Touvron et al. 2023, arXiv:2307.09288; Dubey et al. 2024, arXiv:2407.21783.
use super::super::config::Keys;
use super::super::spec::Spec;
use super::common::{self, bias};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let (attention, mlp_bias) = (bias(keys, "attention_bias")?, bias(keys, "mlp_bias")?);
    Ok(Spec { qkv_bias: attention, o_bias: attention, mlp_bias, ..common::spec(keys, None)? })
}
