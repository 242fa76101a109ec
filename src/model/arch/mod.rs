//! Architectures: from a Hugging Face config to a [`Spec`]. One file each, no maths; a row in [`ARCHITECTURES`].
use super::config::Keys;
use super::spec::Spec;
use crate::error::{Error, Result, distance};
use std::path::Path;

mod common;
mod deepseek_v3;
mod ernie4_5;
mod exaone4;
mod gemma;
mod gemma2;
mod gemma3;
mod glm;
mod glm4;
mod gpt_oss;
mod granite;
mod llama;
mod ministral;
mod mistral;
mod mixtral;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod rope;
mod seed_oss;
mod smollm3;
mod unsupported;

/// No real model has as many; keeps a hostile config from naming tensors without end.
const MAX_LAYERS: usize = 4096;

/// Reads an architecture's config.
type Read = fn(&Keys) -> Result<Spec>;

/// `model_type` and how its config is read.
const ARCHITECTURES: &[(&str, Read)] = &[
    ("deepseek_v3", deepseek_v3::spec),
    ("ernie4_5", ernie4_5::spec),
    ("exaone4", exaone4::spec),
    ("gemma", gemma::spec),
    ("gemma2", gemma2::spec),
    ("gemma3_text", gemma3::spec),
    ("glm", glm::spec),
    ("glm4", glm4::spec),
    ("granite", granite::spec),
    ("gpt_oss", gpt_oss::spec),
    ("kimi_k2", deepseek_v3::spec),
    ("llama", llama::spec),
    ("ministral", ministral::spec),
    ("mistral", mistral::spec),
    ("mixtral", mixtral::spec),
    ("olmo2", olmo2::spec),
    ("olmo3", olmo3::spec),
    ("olmoe", olmoe::spec),
    ("phi3", phi3::spec),
    ("qwen2", qwen2::spec),
    ("qwen2_moe", qwen2_moe::spec),
    ("qwen3", qwen3::spec),
    ("qwen3_moe", qwen3_moe::spec),
    ("seed_oss", seed_oss::spec),
    ("smollm3", smollm3::spec),
];

/// Every `model_type` that is supported.
pub fn model_types() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name)
}

/// The [`Spec`] of a model folder (or of a config file itself).
pub fn read_spec(path: &Path) -> Result<Spec> {
    spec(&read_keys(path)?)
}

/// The same with everything that is wrong: each wrong key is read as if it were not there, to get to the next. There is a spec
/// although something is wrong where that is only the RoPE, on which no tensor depends.
pub(super) fn read_spec_and_faults(path: &Path) -> Result<(Option<Spec>, Vec<Error>)> {
    let (mut keys, mut faults) = (read_keys(path)?, Vec::new());
    let mut removed: Vec<String> = Vec::new();
    loop {
        let fault = match spec(&keys) {
            Ok(spec) => {
                let shapes_hold = removed.iter().all(|at| at.starts_with("rope_"));
                return Ok((Some(spec).filter(|_| shapes_hold), faults));
            }
            Err(fault) => fault,
        };
        let Error::Content { at, .. } = &fault else { return Err(fault) };
        let at = at.clone();
        // a key that cannot be missing is no fault of its own once it was taken away
        if !removed.contains(&at) {
            faults.push(fault);
        }
        if !keys.remove(&at) {
            return Ok((None, faults));
        }
        removed.push(at);
    }
}

fn read_keys(path: &Path) -> Result<Keys> {
    Keys::read(&if path.is_dir() { path.join("config.json") } else { path.to_path_buf() })
}

fn spec(keys: &Keys) -> Result<Spec> {
    let model_type = keys.text("model_type", None)?;
    let Some((_, read)) = ARCHITECTURES.iter().find(|(name, _)| *name == model_type) else {
        if let Some(what) = unsupported::why(keys, &model_type) {
            return keys.wrong("model_type", what);
        }
        let what = format!("`{model_type}` is not supported, {}", nearest(&model_type));
        return keys.wrong("model_type", what);
    };
    let spec = read(keys)?;
    if spec.layers > MAX_LAYERS {
        return keys.wrong("num_hidden_layers", format!("{} layers are more than any model has", spec.layers));
    }
    Ok(spec)
}

fn nearest(model_type: &str) -> String {
    let nearest = model_types().min_by_key(|name| distance(model_type, name)).expect("there are architectures");
    format!("the nearest that is: `{nearest}`; all: {}", model_types().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The spec of a small config with these keys more.
    pub(super) fn with(model_type: &str, more: serde_json::Value) -> Result<Spec> {
        let mut config = serde_json::json!({
            "model_type": model_type, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 128
        });
        let more = more.as_object().expect("keys").clone();
        config.as_object_mut().expect("keys").extend(more);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        read_spec(dir.path())
    }

    #[test]
    fn an_unknown_architecture_is_told_the_nearest() {
        let e = with("qwen2_5", serde_json::json!({})).unwrap_err().to_string();
        assert!(e.contains("the nearest that is: `qwen2`"), "{e}");
    }

    /// Under both key styles, and with the older words for layers.
    #[test]
    fn older_configs_say_the_same() {
        let old = serde_json::json!({"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24, "sliding_window_pattern": 3,
            "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
        let types: Vec<_> = (1..7).map(|l| if l % 3 > 0 { "sliding_attention" } else { "full_attention" }).collect();
        let new = serde_json::json!({"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24, "layer_types": types,
            "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
                                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}});
        let spec = with("gemma3_text", old).unwrap();
        assert_eq!(spec, with("gemma3_text", new).unwrap());
        assert_eq!(spec.kind_of, [0, 0, 1, 0, 0, 1]);
        assert_eq!((spec.kinds[0].window, spec.kinds[1].window), (Some(8), None));
        let theta = |kind: usize| spec.kinds[kind].rope.as_ref().unwrap().theta;
        assert_eq!((theta(0), theta(1)), (1e4, 1e6));
    }

    /// As the published checkpoints of 2024 and 2025 have them.
    #[test]
    fn older_keys_of_newer_families() {
        let of = |model_type, old: serde_json::Value, new: serde_json::Value| {
            let spec = with(model_type, old).unwrap();
            assert_eq!(spec, with(model_type, new).unwrap(), "{model_type}");
            spec
        };
        let yarn = serde_json::json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64});
        let mut full = yarn.clone();
        full["rope_theta"] = 5e5.into();
        let spec = of(
            "olmo3",
            serde_json::json!({"rope_theta": 5e5, "rope_scaling": yarn, "sliding_window": 9}),
            serde_json::json!({"sliding_window": 9, "rope_parameters": {"full_attention": full,
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}}),
        );
        assert_eq!(
            (&spec.kind_of[..], spec.kinds[0].window, spec.kinds[1].window),
            (&[0, 0, 0, 1, 0, 0][..], Some(9), None)
        );
        let spec = of(
            "smollm3",
            serde_json::json!({"rope_theta": 5e6, "no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0], "rope_scaling": null,
                "use_sliding_window": false, "sliding_window": 7, "layer_types": vec!["full_attention"; 6]}),
            serde_json::json!({"rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}}),
        );
        let turned: Vec<_> = spec.kind_of.iter().map(|k| spec.kinds[*k].rope.is_some()).collect();
        assert_eq!((turned, spec.head), (vec![true, true, true, false, true, true], super::super::spec::Head::Tied));
        let half = serde_json::json!({"rope_theta": 1e4, "partial_rotary_factor": 0.5, "head_dim": 16});
        let inner = serde_json::json!({"head_dim": 16, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}});
        assert_eq!(of("glm4", half, inner).A, 8);
        assert_eq!(with("glm", serde_json::json!({"head_dim": 16})).unwrap().A, 8);
        assert!(
            with("smollm3", serde_json::json!({"no_rope_layers": [1, 0]})).unwrap_err().to_string().contains("6 ones")
        );
    }

    #[test]
    fn windows_are_where_the_config_says() {
        let window = |more| {
            let spec = with("qwen2", more).unwrap();
            spec.kind_of.iter().map(|k| spec.kinds[*k].window).collect::<Vec<_>>()
        };
        let on = serde_json::json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 4});
        assert_eq!(window(on), [None, None, None, None, Some(9), Some(9)]);
        assert_eq!(window(serde_json::json!({"sliding_window": 9})), [None; 6]);
        let mistral = |more| with("mistral", more).unwrap().kinds[0].window;
        assert_eq!(mistral(serde_json::json!({})), Some(4096));
        assert_eq!(mistral(serde_json::json!({"sliding_window": null})), None);
        assert!(with("gemma2", serde_json::json!({"layer_types": ["full_attention"]})).is_err());
        assert!(with("gemma3_text", serde_json::json!({"use_bidirectional_attention": true})).is_err());
    }

    /// As the published models' configs say it, and by the defaults alone.
    #[test]
    fn gpt_oss_by_its_keys_and_by_its_defaults() {
        let types: Vec<_> = (0..6).map(|l| if l % 2 == 0 { "sliding_attention" } else { "full_attention" }).collect();
        let published = serde_json::json!({"attention_bias": true, "head_dim": 64, "layer_types": types, "num_local_experts": 8,
            "num_experts_per_tok": 4, "experts_per_token": 4, "swiglu_limit": 7.0, "rms_norm_eps": 1e-5, "sliding_window": 128,
            "initial_context_length": 4096, "rope_theta": 150000, "hidden_act": "silu", "rope_scaling": {"beta_fast": 32.0,
            "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false}});
        let spec = with("gpt_oss", published).unwrap();
        assert_eq!(spec, with("gpt_oss", serde_json::json!({"num_experts": 8})).unwrap());
        assert_eq!(
            (spec.kinds[0].window, spec.kinds[1].window, spec.kind_of),
            (Some(128), None, vec![0, 1, 0, 1, 0, 1])
        );
        let moe = spec.moe.unwrap();
        assert_eq!(moe.unit, crate::model::spec::GatedUnit::Clamped { alpha: 1.702, limit: 7.0 });
        assert_eq!((spec.D, spec.kinds[0].rope.as_ref().unwrap().theta, moe.E, moe.S), (64, 150000.0, 8, 4));
        let e = with("gpt_oss", serde_json::json!({"num_local_experts": 5000})).unwrap_err().to_string();
        assert!(e.contains("num_local_experts: 5000 experts"), "{e}");
    }

    #[test]
    fn rope_of_every_type() {
        let rope = |scaling| {
            with("llama", serde_json::json!({"rope_scaling": scaling}))
                .map(|s| s.kinds[0].rope.clone().unwrap().scaling)
        };
        use crate::model::rope::RopeScaling as S;
        assert_eq!(rope(serde_json::json!({"type": "linear", "factor": 2})).unwrap(), S::Linear { factor: 2.0 });
        assert_eq!(
            rope(serde_json::json!({"type": "dynamic", "factor": 2})).unwrap(),
            S::Dynamic { factor: 2.0, trained: 128 }
        );
        let S::Yarn(yarn) = rope(serde_json::json!({"rope_type": "yarn", "factor": 4.0})).unwrap() else {
            panic!("yarn")
        };
        assert_eq!((yarn.fast, yarn.slow, yarn.original), (32.0, 1.0, 128.0));
        assert!((yarn.attention_factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
        let e = rope(serde_json::json!({"rope_type": "spiral"})).unwrap_err().to_string();
        assert!(e.contains("`spiral`") && e.contains("longrope"), "{e}");
        let long =
            serde_json::json!({"rope_scaling": {"type": "su", "short_factor": [1, 1, 1, 1, 1], "long_factor": [1, 1]}});
        assert!(with("phi3", long).unwrap_err().to_string().contains("6 numbers"));
    }
}
