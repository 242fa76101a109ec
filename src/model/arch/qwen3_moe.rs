//! Qwen 3 MoE (30B-A3B, 235B-A22B, Coder): Qwen 3 with mixtures of experts. Yang et al. 2025, arXiv:2505.09388.
use super::super::config::Keys;
use super::super::spec::Spec;
use super::common::{EXPERTS, dense_layers, moe, router_weights};
use super::qwen3;
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let experts = (keys.size("moe_intermediate_size", Some(768))?, EXPERTS);
    let weights = router_weights(keys, false)?;
    let moe = moe(keys, (&["num_experts", "num_local_experts"], 128), 8, weights, "mlp.gate", experts)?;
    let qwen3 = qwen3::spec(keys)?;
    Ok(Spec { dense_layers: dense_layers(keys, qwen3.layers)?, moe: Some(moe), ..qwen3 })
}
