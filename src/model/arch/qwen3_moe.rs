//! Qwen 3 MoE (30B-A3B, 235B-A22B, Coder): Qwen 3 with mixtures of experts. Yang et al. 2025, arXiv:2505.09388.
use super::super::config::Keys;
use super::super::spec::{MoeSpec, Spec};
use super::common::{EXPERTS, dense_layers, moe, router_weights};
use super::qwen3;
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let moe = mixture(keys, (128, 8), ("moe_intermediate_size", 768))?;
    let qwen3 = qwen3::spec(keys)?;
    Ok(Spec { dense_layers: dense_layers(keys, qwen3.layers)?, moe: Some(moe), ..qwen3 })
}

/// `E` and `S` are how many experts there are, and of a token, where the config does not say, `ffn` the key of an expert's hidden
/// channels.
pub(super) fn mixture(keys: &Keys, (E, S): (usize, usize), (ffn, F): (&str, usize)) -> Result<MoeSpec> {
    let (weights, experts) = (router_weights(keys, false)?, (keys.size(ffn, Some(F))?, EXPERTS));
    moe(keys, (&["num_experts", "num_local_experts"], E), S, weights, "mlp.gate", experts)
}
