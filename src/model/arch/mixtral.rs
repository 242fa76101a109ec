//! Mixtral 8x7B, 8x22B: Mistral with mixtures of experts. Jiang et al. 2024, arXiv:2401.04088.
use super::super::config::Keys;
use super::super::spec::{RouterWeights, Spec};
use super::common::{self, moe};
use crate::error::Result;

const EXPERTS: [&str; 3] =
    ["block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3", "block_sparse_moe.experts.{}.w2"];

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let common = common::spec(keys, None)?;
    let experts = (common.F, EXPERTS);
    let moe = moe(keys, (&["num_local_experts"], 8), 2, RouterWeights::Renormalised, "block_sparse_moe.gate", experts)?;
    let mut spec = Spec { moe: Some(moe), ..common };
    spec.kinds[0].window = keys.optional_size("sliding_window", None)?;
    Ok(spec)
}
