//! ERNIE 4.5 (dense): Llama with RoPE in interleaved pairs. Baidu 2025, ERNIE 4.5 Technical Report.
use super::super::config::Keys;
use super::super::spec::{LayerKind, RopePairs, Spec};
use super::common::{self, bias, tied};
use super::rope;
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let (common, bias) = (common::spec(keys, Some(128))?, bias(keys, "use_bias")?);
    Ok(Spec {
        rope_pairs: RopePairs::Interleaved,
        kinds: vec![LayerKind { window: None, rope: Some(rope::read(keys, None, common.A, 5e5)?) }],
        eps: keys.positive("rms_norm_eps", Some(1e-5))? as f32,
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: bias,
        head: tied(keys, true)?,
        ..common
    })
}
