//! RoPE under both key styles: `rope_parameters` (transformers 5), maybe one per layer type, and `rope_theta` +
//! `rope_scaling` (4).
use super::super::config::Keys;
use super::super::rope::{RampEnds, Rope, RopeScaling, Yarn};
use crate::error::Result;

const TYPES: &str = "default, linear, dynamic, llama3, yarn, longrope";

/// The object that describes RoPE, for layers of one type where types differ.
fn parameters(keys: &Keys, layer_type: Option<&str>) -> Result<Option<Keys>> {
    let Some(all) = keys.object("rope_parameters")? else { return keys.object("rope_scaling") };
    match layer_type {
        Some(name) if all.get(name).is_some() => all.object(name),
        _ => Ok(Some(all)),
    }
}

/// Channels of a head of D that turn: `partial_rotary_factor` of them, or `part` where the config has no such key.
pub(super) fn rotary(keys: &Keys, D: usize, part: f64) -> Result<usize> {
    let top = keys.positive("partial_rotary_factor", Some(part))?;
    let inner = parameters(keys, None)?;
    let factor = inner.map_or(Ok(top), |p| p.positive("partial_rotary_factor", Some(top)))?;
    let A = (D as f64 * factor) as usize;
    if factor > 1.0 || A % 2 == 1 || A == 0 {
        return keys
            .wrong("partial_rotary_factor", format!("an even part of {D} channels is wanted, got {factor} of them"));
    }
    Ok(A)
}

/// The RoPE of `A` channels; `theta` where the config names none.
pub(super) fn read(keys: &Keys, layer_type: Option<&str>, A: usize, theta: f64) -> Result<Rope> {
    let top = keys.positive("rope_theta", Some(theta))?;
    let Some(p) = parameters(keys, layer_type)? else { return Ok(Rope { theta: top, scaling: RopeScaling::Default }) };
    let theta = p.positive("rope_theta", Some(top))?;
    let old = p.text("type", Some("default"))?;
    let scaling = match p.text("rope_type", Some(&old))?.as_str() {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: p.positive("factor", None)? },
        "dynamic" => RopeScaling::Dynamic { factor: p.positive("factor", None)?, trained: trained(keys)? },
        "llama3" => llama3(&p)?,
        "yarn" => yarn(keys, &p)?,
        "longrope" | "su" => longrope(keys, &p, A)?,
        other => {
            let what = format!("RoPE of type `{other}` is not supported; supported: {TYPES}");
            return p.wrong("rope_type", what);
        }
    };
    Ok(Rope { theta, scaling })
}

/// The RoPE of layers with a window where those have their own: `rope_parameters.sliding_attention`, or in older configs one with
/// the theta under this key, which nothing scales.
pub(super) fn read_sliding(keys: &Keys, A: usize, (key, theta): (&str, f64)) -> Result<Rope> {
    if let Some(all) = keys.object("rope_parameters")?
        && all.get("sliding_attention").is_some()
    {
        return read(keys, Some("sliding_attention"), A, theta);
    }
    Ok(Rope { theta: keys.positive(key, Some(theta))?, scaling: RopeScaling::Default })
}

fn trained(keys: &Keys) -> Result<usize> {
    keys.size("max_position_embeddings", None)
}

/// The length before scaling; the key may be in either object.
fn original(keys: &Keys, p: &Keys) -> Result<usize> {
    let name = "original_max_position_embeddings";
    if p.get(name).is_some() {
        return p.size(name, None);
    }
    if keys.get(name).is_some() { keys.size(name, None) } else { trained(keys) }
}

fn llama3(keys: &Keys) -> Result<RopeScaling> {
    let (low, high) = (keys.positive("low_freq_factor", None)?, keys.positive("high_freq_factor", None)?);
    if low >= high {
        return keys.wrong("low_freq_factor", format!("must be below high_freq_factor, got {low} and {high}"));
    }
    let original = keys.positive("original_max_position_embeddings", None)?;
    Ok(RopeScaling::Llama3 { factor: keys.positive("factor", None)?, low, high, original })
}

/// YaRN's growth of scores with the context: 0.1·weight·ln(factor) + 1.
fn mscale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

/// A weight of `mscale`; 0 is none.
fn mscale_weight(p: &Keys, key: &str) -> Result<Option<f64>> {
    match p.get(key).and_then(|v| v.as_f64()) {
        Some(0.0) => Ok(None),
        _ => p.optional_positive(key, None),
    }
}

fn yarn_factor(keys: &Keys, p: &Keys) -> Result<f64> {
    let usual = trained(keys)? as f64 / original(keys, p)? as f64;
    p.positive("factor", Some(usual))
}

/// What DeepSeek's scores are multiplied by where RoPE is scaled: mscale(mscale_all_dim)².
pub(super) fn score_scale(keys: &Keys) -> Result<f64> {
    let Some(p) = parameters(keys, None)? else { return Ok(1.0) };
    let old = p.text("type", Some("default"))?;
    let weight = mscale_weight(&p, "mscale_all_dim")?;
    match (p.text("rope_type", Some(&old))?.as_str(), weight) {
        ("default", _) | (_, None) => Ok(1.0),
        (_, Some(weight)) => Ok(mscale(yarn_factor(keys, &p)?, weight).powi(2)),
    }
}

fn yarn(keys: &Keys, p: &Keys) -> Result<RopeScaling> {
    let (original, factor) = (original(keys, p)? as f64, yarn_factor(keys, p)?);
    let usual = match (mscale_weight(p, "mscale")?, mscale_weight(p, "mscale_all_dim")?) {
        (Some(weight), Some(all)) => mscale(factor, weight) / mscale(factor, all),
        _ => mscale(factor, 1.0),
    };
    Ok(RopeScaling::Yarn(Yarn {
        factor,
        fast: p.positive("beta_fast", Some(32.0))?,
        slow: p.positive("beta_slow", Some(1.0))?,
        original,
        ends: if p.flag("truncate", true)? { RampEnds::Whole } else { RampEnds::Exact },
        attention_factor: p.positive("attention_factor", Some(usual))?,
    }))
}

/// Phi-3's configs name no factor: it is the ratio of the two lengths.
fn longrope(keys: &Keys, p: &Keys, A: usize) -> Result<RopeScaling> {
    let original = original(keys, p)?;
    let factor = p.positive("factor", Some(trained(keys)? as f64 / original as f64))?;
    let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    Ok(RopeScaling::LongRope {
        short: p.positives("short_factor", A / 2)?,
        long: p.positives("long_factor", A / 2)?,
        original,
        attention_factor: p.positive("attention_factor", Some(usual))?,
    })
}
