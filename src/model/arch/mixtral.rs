//! Mixtral 8x7B, 8x22B. Jiang et al. 2024, arXiv:2401.04088.
use super::super::config::Keys;
use super::super::spec::{MoeSpec, Names, RouterWeights, Spec};
use super::llama;
use crate::error::Result;

const NAMES: Names = Names {
    gate: "block_sparse_moe.experts.{}.w1",
    up: "block_sparse_moe.experts.{}.w3",
    down: "block_sparse_moe.experts.{}.w2",
    ..llama::NAMES
};

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    if let Some(window) = keys.get("sliding_window") {
        return keys.wrong("sliding_window", format!("null is wanted, got {window}: windows are not supported here"));
    }
    let moe = MoeSpec::read(keys, "num_local_experts", 8, RouterWeights::Renormalised, "block_sparse_moe.gate")?;
    Ok(Spec { moe: Some(moe), names: NAMES, ..llama::spec(keys)? })
}
