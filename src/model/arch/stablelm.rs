//! StableLM 2, 3B and Zephyr, 12B: Llama with LayerNorm and partial RoPE; the 12B with parallel branches and a norm of each head's
//! q and k that has weights of its own. Bellagente et al. 2024, arXiv:2402.17834.
use super::super::config::Keys;
use super::super::spec::{Bias, Names, NormKind, QkNorm, ResidualKind, Spec};
use super::common::{self, NAMES, bias};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let keys = &keys.adapted(&[("head_dim", "")], serde_json::json!({ "partial_rotary_factor": 0.25 }));
    let residual = match keys.flag("use_parallel_residual", false)? {
        true => ResidualKind::ParallelShared,
        false => ResidualKind::Sequential,
    };
    Ok(Spec {
        eps: keys.positive("layer_norm_eps", Some(1e-5))? as f32,
        norm: NormKind::Layer(Bias::Present),
        residual,
        qk_norm: if keys.flag("qk_layernorm", false)? { QkNorm::EachHead } else { QkNorm::Absent },
        qkv_bias: bias(keys, "use_qkv_bias")?,
        names: Names { q_norm: "self_attn.q_layernorm.norms.{}", k_norm: "self_attn.k_layernorm.norms.{}", ..NAMES },
        ..common::spec(keys, None)?
    })
}
