//! Seed-OSS: Llama with a bias on q, k, v. ByteDance Seed 2025.
use super::super::config::Keys;
use super::super::spec::{Bias, Spec};
use super::common::{self, bias};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let qkv = if keys.flag("attention_bias", true)? { Bias::Present } else { Bias::Absent };
    let (o_bias, mlp_bias) = (bias(keys, "attention_out_bias")?, bias(keys, "mlp_bias")?);
    Ok(Spec { qkv_bias: qkv, o_bias, mlp_bias, ..common::spec(keys, Some(128))? })
}
