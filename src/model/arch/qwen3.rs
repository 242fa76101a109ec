//! Qwen 3: Llama with a norm of each head's q and k. Yang et al. 2025, arXiv:2505.09388.
use super::super::config::Keys;
use super::super::spec::{QkNorm, Spec};
use super::common::{self, bias, qwen_windows};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let attention = bias(keys, "attention_bias")?;
    let common = common::spec(keys, Some(128))?;
    let mut spec = Spec { qkv_bias: attention, o_bias: attention, qk_norm: QkNorm::PerHead, ..common };
    qwen_windows(keys, &mut spec)?;
    Ok(spec)
}
