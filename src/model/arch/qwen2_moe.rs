//! Qwen 1.5 MoE A2.7B, Qwen 2 57B-A14B: Qwen 2 with mixtures of experts, and one that all tokens share, weighed by a sigmoid.
//! Yang et al. 2024, arXiv:2407.10671.
use super::super::config::Keys;
use super::super::spec::{Bias, MoeSpec, SharedSpec, Spec, Weighed};
use super::common::{self, LayerType, dense_layers, layer_types};
use super::qwen3_moe::mixture;
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let shared = SharedSpec {
        F: keys.size("shared_expert_intermediate_size", Some(5632))?,
        weighed: Weighed::Sigmoid { by: "mlp.shared_expert_gate" },
        gate: "mlp.shared_expert.gate_proj",
        up: "mlp.shared_expert.up_proj",
        down: "mlp.shared_expert.down_proj",
    };
    let moe = MoeSpec { shared: Some(shared), ..mixture(keys, (60, 4), ("moe_intermediate_size", 1408))? };
    let common = common::spec(keys, None)?;
    let mut spec = Spec {
        qkv_bias: if keys.flag("qkv_bias", true)? { Bias::Present } else { Bias::Absent },
        dense_layers: dense_layers(keys, common.layers)?,
        moe: Some(moe),
        ..common
    };
    windows(keys, &mut spec)?;
    Ok(spec)
}

/// Where `use_sliding_window` is on: in every other layer below `max_window_layers`, the first included.
fn windows(keys: &Keys, spec: &mut Spec) -> Result<()> {
    if !keys.flag("use_sliding_window", false)? {
        return Ok(());
    }
    let end = keys.count("max_window_layers", 28)?;
    let older = |l: usize| if l < end && l.is_multiple_of(2) { LayerType::Sliding } else { LayerType::Full };
    let types = layer_types(keys, spec.layers, older)?;
    spec.set_windows(&types, keys.optional_size("sliding_window", Some(4096))?);
    Ok(())
}
