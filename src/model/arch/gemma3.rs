//! Gemma 3, text: Gemma 2 with a norm of each head's q and k instead of caps, and windows with a RoPE of their own in five of six
//! layers. Kamath et al. 2025, arXiv:2503.19786.
use super::super::config::Keys;
use super::super::spec::{LayerKind, QkNorm, Spec};
use super::common::{LayerType, layer_types};
use super::{gemma2, rope};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    if keys.flag("use_bidirectional_attention", false)? {
        return keys
            .wrong("use_bidirectional_attention", "false is wanted: attention here is causal, and this is an encoder");
    }
    let mut spec = Spec { qk_norm: QkNorm::PerHead, ..gemma2::sandwich(keys, None, None)? };
    let pattern = keys.size("_sliding_window_pattern", Some(keys.size("sliding_window_pattern", Some(6))?))?;
    let older = |l: usize| if (l + 1).is_multiple_of(pattern) { LayerType::Full } else { LayerType::Sliding };
    let types = layer_types(keys, spec.layers, older)?;
    let window = keys.optional_size("sliding_window", Some(4096))?;
    let full = rope::read(keys, Some("full_attention"), spec.A, 1e6)?;
    let sliding = rope::read_sliding(keys, spec.A, ("rope_local_base_freq", 1e4))?;
    spec.set_kinds(&types, |t| match t {
        LayerType::Full => LayerKind { window: None, rope: Some(full.clone()) },
        LayerType::Sliding => LayerKind { window, rope: Some(sliding.clone()) },
    });
    Ok(spec)
}
