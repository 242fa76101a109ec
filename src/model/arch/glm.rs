//! GLM-4 9B and GLM-Edge: Llama with RoPE on half of a head, in interleaved pairs, a bias on q, k, v, and gate, up in one module.
//! GLM team 2024, arXiv:2406.12793.
use super::super::config::Keys;
use super::super::spec::{Bias, LayerKind, Names, RopePairs, Spec};
use super::common::{self, NAMES};
use super::rope;
use crate::error::Result;

const GATE_UP: &str = "mlp.gate_up_proj";

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let common = common::spec(keys, Some(128))?;
    let A = rope::rotary(keys, common.D, 0.5)?;
    Ok(Spec {
        A,
        rope_pairs: RopePairs::Interleaved,
        kinds: vec![LayerKind { window: None, rope: Some(rope::read(keys, None, A, 1e4)?) }],
        eps: keys.positive("rms_norm_eps", Some(1.5625e-7))? as f32,
        qkv_bias: if keys.flag("attention_bias", true)? { Bias::Present } else { Bias::Absent },
        names: Names { gate: GATE_UP, up: GATE_UP, ..NAMES },
        ..common
    })
}
