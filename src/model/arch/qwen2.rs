//! Qwen 2, 2.5: Llama with a bias on q, k, v. Yang et al. 2024, arXiv:2407.10671.
use super::super::config::Keys;
use super::super::spec::{Bias, Spec};
use super::common::{self, qwen_windows};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let mut spec = Spec { qkv_bias: Bias::Present, ..common::spec(keys, None)? };
    qwen_windows(keys, &mut spec)?;
    Ok(spec)
}
