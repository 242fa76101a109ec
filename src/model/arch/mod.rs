//! Architectures: from a Hugging Face config to a [`Spec`]. One file each, no maths; a row in [`ARCHITECTURES`].
use super::config::Keys;
use super::spec::{Rope, RopeScaling, Spec};
use crate::error::Result;
use std::path::Path;

mod llama;
mod mixtral;

/// Reads an architecture's config.
type Read = fn(&Keys) -> Result<Spec>;

/// `model_type` and how its config is read.
const ARCHITECTURES: &[(&str, Read)] = &[("llama", llama::spec), ("mixtral", mixtral::spec)];

/// The [`Spec`] of a model folder (or of a config file itself).
pub fn read_spec(path: &Path) -> Result<Spec> {
    let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    let keys = Keys::read(&file)?;
    let model_type = keys.text("model_type", None)?;
    let Some((_, read)) = ARCHITECTURES.iter().find(|(name, _)| *name == model_type) else {
        let known: Vec<_> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
        return keys.wrong("model_type", format!("`{model_type}` is not supported; supported: {}", known.join(", ")));
    };
    read(&keys)
}

/// RoPE under both key styles: `rope_parameters` (transformers 5) and `rope_theta` + `rope_scaling` (4).
fn rope(keys: &Keys) -> Result<Rope> {
    let parameters = keys.object("rope_parameters")?;
    let scaling = if parameters.is_some() { parameters } else { keys.object("rope_scaling")? };
    let top = keys.positive("rope_theta", Some(10000.0))?;
    let Some(scaling) = scaling else { return Ok(Rope { theta: top, scaling: RopeScaling::Default }) };
    let theta = scaling.positive("rope_theta", Some(top))?;
    let old = scaling.text("type", Some("default"))?;
    let scaling = match scaling.text("rope_type", Some(&old))?.as_str() {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: scaling.positive("factor", None)? },
        "llama3" => llama3(&scaling)?,
        other => {
            let what = format!("RoPE of type `{other}` is not supported; supported: default, linear, llama3");
            return scaling.wrong("rope_type", what);
        }
    };
    Ok(Rope { theta, scaling })
}

fn llama3(keys: &Keys) -> Result<RopeScaling> {
    let (low, high) = (keys.positive("low_freq_factor", None)?, keys.positive("high_freq_factor", None)?);
    if low >= high {
        return keys.wrong("low_freq_factor", format!("must be below high_freq_factor, got {low} and {high}"));
    }
    let original = keys.positive("original_max_position_embeddings", None)?;
    Ok(RopeScaling::Llama3 { factor: keys.positive("factor", None)?, low, high, original })
}
