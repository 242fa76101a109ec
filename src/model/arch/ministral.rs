//! Ministral 8B: Mistral with windows in some layers.
use super::super::config::Keys;
use super::super::spec::Spec;
use super::common::{self, LayerType, layer_types};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let mut spec = common::spec(keys, None)?;
    let window = keys.optional_size("sliding_window", Some(4096))?;
    let older = |_| if window.is_some() { LayerType::Sliding } else { LayerType::Full };
    let types = layer_types(keys, spec.layers, older)?;
    spec.set_windows(&types, window);
    Ok(spec)
}
