//! Qwen 3 MoE (30B-A3B, 235B-A22B, Coder): Qwen 3 with mixtures of experts. Yang et al. 2025, arXiv:2505.09388.
use super::super::config::Keys;
use super::super::spec::{MoeSpec, Names, RouterWeights, Spec};
use super::common::{NAMES, moe};
use super::qwen3;
use crate::error::Result;

const EXPERTS: Names =
    Names { gate: "mlp.experts.{}.gate_proj", up: "mlp.experts.{}.up_proj", down: "mlp.experts.{}.down_proj", ..NAMES };

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    if keys.size("decoder_sparse_step", Some(1))? != 1 {
        return keys.wrong("decoder_sparse_step", "1 is wanted: a mixture in every layer");
    }
    if let Some(layers) = keys.get("mlp_only_layers").filter(|v| v.as_array().is_none_or(|list| !list.is_empty())) {
        return keys
            .wrong("mlp_only_layers", format!("an empty list is wanted (a mixture in every layer), got {layers}"));
    }
    let (moe, names) = experts(keys, 128)?;
    let F = keys.size("moe_intermediate_size", Some(768))?;
    Ok(Spec { F, names, moe: Some(moe), ..qwen3::spec(keys)? })
}

/// The mixture and its names; `default` is how many experts there are where the config does not say.
pub(super) fn experts(keys: &Keys, default: usize) -> Result<(MoeSpec, Names)> {
    let weights = match keys.flag("norm_topk_prob", false)? {
        true => RouterWeights::Renormalised,
        false => RouterWeights::Plain,
    };
    let moe = moe(keys, (&["num_experts", "num_local_experts"], default), 8, weights, "mlp.gate")?;
    Ok((moe, EXPERTS))
}
