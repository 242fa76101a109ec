//! Command R (Cohere): LayerNorm without bias, attention and MLP in parallel behind one norm, scaled logits.
use super::super::config::Keys;
use super::super::spec::{Bias, NormKind, QkNorm, ResidualKind, RopePairs, Spec};
use super::common::{self, bias, tied};
use crate::error::Result;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let keys = &keys.adapted(&[], serde_json::json!({ "rope_theta": 500000.0 }));
    let attention = bias(keys, "attention_bias")?;
    Ok(Spec {
        eps: keys.positive("layer_norm_eps", Some(1e-5))? as f32,
        norm: NormKind::Layer(Bias::Absent),
        residual: ResidualKind::ParallelShared,
        rope_pairs: RopePairs::Interleaved,
        qk_norm: if keys.flag("use_qk_norm", false)? { QkNorm::EachHead } else { QkNorm::Absent },
        qkv_bias: attention,
        o_bias: attention,
        logit_scale: keys.positive("logit_scale", Some(0.0625))? as f32,
        head: tied(keys, true)?,
        ..common::spec(keys, None)?
    })
}
