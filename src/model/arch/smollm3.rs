//! SmolLM 3: Llama with layers that have no RoPE, as Yang et al. 2025, arXiv:2501.18795; those may have windows.
use super::super::config::Keys;
use super::super::spec::{LayerKind, Spec};
use super::common::{LayerType, layer_types, tied};
use super::{llama, rope};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let mut spec = Spec { head: tied(keys, true)?, ..llama::spec(keys)? };
    let interval = keys.size("no_rope_layer_interval", Some(4))?;
    let turned = match keys.flags("no_rope_layers", spec.layers)? {
        Some(flags) => flags,
        None => (1..=spec.layers).map(|l| !l.is_multiple_of(interval)).collect(),
    };
    let windows = keys.flag("use_sliding_window", false)?;
    let window = if windows { keys.optional_size("sliding_window", None)? } else { None };
    let older = |l: usize| if window.is_some() && !turned[l] { LayerType::Sliding } else { LayerType::Full };
    let types = layer_types(keys, spec.layers, older)?;
    let rope = rope::read(keys, None, spec.A, 2e6)?;
    let layers: Vec<_> = types.into_iter().zip(turned).collect();
    spec.set_kinds(&layers, |(t, turned)| LayerKind {
        window: window.filter(|_| t == LayerType::Sliding),
        rope: turned.then(|| rope.clone()),
    });
    Ok(spec)
}
