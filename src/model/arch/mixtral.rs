//! Mixtral 8x7B, 8x22B: Mistral with mixtures of experts. Jiang et al. 2024, arXiv:2401.04088.
use super::super::config::Keys;
use super::super::spec::{Names, RouterWeights, Spec};
use super::common::{self, NAMES, moe};
use crate::error::Result;

const EXPERTS: Names = Names {
    gate: "block_sparse_moe.experts.{}.w1",
    up: "block_sparse_moe.experts.{}.w3",
    down: "block_sparse_moe.experts.{}.w2",
    ..NAMES
};

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let moe = moe(keys, (&["num_local_experts"], 8), 2, RouterWeights::Renormalised, "block_sparse_moe.gate")?;
    let mut spec = Spec { names: EXPERTS, moe: Some(moe), ..common::spec(keys, None)? };
    spec.kinds[0].window = keys.optional_size("sliding_window", None)?;
    Ok(spec)
}
