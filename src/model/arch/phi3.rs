//! Phi-3, 3.5, 4: Llama with q, k, v in one module and gate, up in one. Abdin et al. 2024, arXiv:2404.14219.
use super::super::config::Keys;
use super::super::spec::{Names, Spec};
use super::common::{self, NAMES};
use crate::error::Result;

const QKV: &str = "self_attn.qkv_proj";
const GATE_UP: &str = "mlp.gate_up_proj";

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let names = Names { q: QKV, k: QKV, v: QKV, gate: GATE_UP, up: GATE_UP, ..NAMES };
    let mut spec = Spec { names, ..common::spec(keys, None)? };
    spec.kinds[0].window = keys.optional_size("sliding_window", None)?;
    Ok(spec)
}
