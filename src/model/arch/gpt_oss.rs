//! gpt-oss (20b, 120b): sinks in every attention, every other layer with a window, clamped experts with biases. OpenAI 2025,
//! arXiv:2508.10925.
use super::super::config::Keys;
use super::super::rope::{RampEnds, Rope, RopeScaling, Yarn};
use super::super::spec::{Bias, ExpertFiles, GatedUnit, MoeSpec, RouterWeights, Sinks, Spec};
use super::common::{self, LayerType, layer_types, moe};
use super::rope;
use crate::error::Result;

const THETA: f64 = 150_000.0;
const GATE_UP: &str = "mlp.experts.gate_up_proj";

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let attention = if keys.flag("attention_bias", true)? { Bias::Present } else { Bias::Absent };
    let alpha = keys.positive("swiglu_alpha", Some(1.702))? as f32;
    let limit = keys.positive("swiglu_limit", Some(7.0))? as f32;
    let experts = (&["num_local_experts", "num_experts"][..], 128);
    let common = common::spec(keys, Some(64))?;
    let modules = (common.F, [GATE_UP, GATE_UP, "mlp.experts.down_proj"]);
    let mut spec = Spec {
        eps: keys.positive("rms_norm_eps", Some(1e-5))? as f32,
        qkv_bias: attention,
        o_bias: attention,
        mlp_bias: Bias::Present,
        sinks: Sinks::PerHead,
        moe: Some(MoeSpec {
            router_bias: Bias::Present,
            unit: GatedUnit::Clamped { alpha, limit },
            files: ExpertFiles::Stacked,
            ..moe(keys, experts, 4, RouterWeights::Renormalised, "mlp.router", modules)?
        }),
        ..common
    };
    spec.kinds[0].rope = Some(rope(keys, spec.A)?);
    let older = |l: usize| if l.is_multiple_of(2) { LayerType::Sliding } else { LayerType::Full };
    let types = layer_types(keys, spec.layers, older)?;
    spec.set_windows(&types, keys.optional_size("sliding_window", Some(128))?);
    Ok(spec)
}

/// A config that says nothing about RoPE means the published models' own.
fn rope(keys: &Keys, A: usize) -> Result<Rope> {
    if ["rope_parameters", "rope_scaling"].iter().any(|key| keys.get(key).is_some()) {
        return rope::read(keys, None, A, THETA);
    }
    let yarn = Yarn {
        factor: 32.0,
        fast: 32.0,
        slow: 1.0,
        original: 4096.0,
        ends: RampEnds::Exact,
        attention_factor: 0.1 * 32f64.ln() + 1.0,
    };
    Ok(Rope { theta: keys.positive("rope_theta", Some(THETA))?, scaling: RopeScaling::Yarn(yarn) })
}
