//! OLMo 3: OLMo 2 with windows in three of four layers, whose RoPE nothing scales.
use super::super::config::Keys;
use super::super::spec::{LayerKind, Spec};
use super::common::{LayerType, layer_types};
use super::{olmo2, rope};
use crate::error::Result;

const THETA: f64 = 500000.0;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let mut spec = olmo2::spec(keys)?;
    let older = |l: usize| if (l + 1).is_multiple_of(4) { LayerType::Full } else { LayerType::Sliding };
    let types = layer_types(keys, spec.layers, older)?;
    let window = keys.optional_size("sliding_window", Some(4096))?;
    let full = rope::read(keys, Some("full_attention"), spec.A, THETA)?;
    let sliding = rope::read_sliding(keys, spec.A, ("rope_theta", THETA))?;
    spec.set_kinds(&types, |t| match t {
        LayerType::Full => LayerKind { window: None, rope: Some(full.clone()) },
        LayerType::Sliding => LayerKind { window, rope: Some(sliding.clone()) },
    });
    Ok(spec)
}
