//! Command R7B, Command A (Cohere 2): Cohere with windows, and positions in the layers with a window only.
use super::super::config::Keys;
use super::super::spec::{LayerKind, Spec};
use super::cohere;
use super::common::{LayerType, layer_types};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let mut spec = cohere::spec(keys)?;
    let pattern = keys.size("_sliding_window_pattern", Some(keys.size("sliding_window_pattern", Some(4))?))?;
    let older = |l: usize| if (l + 1).is_multiple_of(pattern) { LayerType::Full } else { LayerType::Sliding };
    let types = layer_types(keys, spec.layers, older)?;
    let window = keys.optional_size("sliding_window", Some(4096))?;
    let rope = spec.kinds[0].rope.clone();
    spec.set_kinds(&types, |t| match t {
        LayerType::Sliding if window.is_some() => LayerKind { window, rope: rope.clone() },
        _ => LayerKind { window: None, rope: None },
    });
    Ok(spec)
}
