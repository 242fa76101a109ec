//! Mistral: Llama with a sliding window in all layers. Jiang et al. 2023, arXiv:2310.06825.
use super::super::config::Keys;
use super::super::spec::Spec;
use super::common;
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let mut spec = common::spec(keys, None)?;
    spec.kinds[0].window = keys.optional_size("sliding_window", Some(4096))?;
    Ok(spec)
}
