//! EXAONE 4: OLMo 2's norms on branches, norms of each head's q and k, windows with RoPE in three of four layers, and no RoPE in the
//! others. LG AI Research 2025, arXiv:2507.11407.
use super::super::config::Keys;
use super::super::spec::{LayerKind, QkNorm, Spec};
use super::common::{LayerType, layer_types};
use super::olmo2;
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let mut spec = Spec { qk_norm: QkNorm::PerHead, ..olmo2::spec(keys)? };
    let window = keys.optional_size("sliding_window", Some(4096))?;
    let older = match window {
        Some(_) if keys.get("layer_types").is_none() => keys.size("sliding_window_pattern", Some(4))?,
        _ => 1,
    };
    let older = |l: usize| if (l + 1).is_multiple_of(older) { LayerType::Full } else { LayerType::Sliding };
    let types = layer_types(keys, spec.layers, older)?;
    let rope = spec.kinds[0].rope.clone();
    spec.set_kinds(&types, |t| match t {
        LayerType::Sliding => LayerKind { window, rope: rope.clone() },
        LayerType::Full => LayerKind { window: None, rope: rope.clone().filter(|_| window.is_none()) },
    });
    Ok(spec)
}
