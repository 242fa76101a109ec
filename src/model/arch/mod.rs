//! Architectures: from a Hugging Face config to a [`Spec`]. One file each, no maths; a row in [`ARCHITECTURES`].
use super::config::Keys;
use super::spec::Spec;
use crate::error::{Result, distance};
use std::path::Path;

mod common;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt_oss;
mod llama;
mod mistral;
mod mixtral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope;

/// No real model has as many; keeps a hostile config from naming tensors without end.
const MAX_LAYERS: usize = 4096;

/// Reads an architecture's config.
type Read = fn(&Keys) -> Result<Spec>;

/// `model_type` and how its config is read.
const ARCHITECTURES: &[(&str, Read)] = &[
    ("gemma", gemma::spec),
    ("gemma2", gemma2::spec),
    ("gemma3_text", gemma3::spec),
    ("gpt_oss", gpt_oss::spec),
    ("llama", llama::spec),
    ("mistral", mistral::spec),
    ("mixtral", mixtral::spec),
    ("phi3", phi3::spec),
    ("qwen2", qwen2::spec),
    ("qwen3", qwen3::spec),
    ("qwen3_moe", qwen3_moe::spec),
];

/// The [`Spec`] of a model folder (or of a config file itself).
pub fn read_spec(path: &Path) -> Result<Spec> {
    let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    let keys = Keys::read(&file)?;
    let model_type = keys.text("model_type", None)?;
    let Some((_, read)) = ARCHITECTURES.iter().find(|(name, _)| *name == model_type) else {
        let known: Vec<_> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
        let nearest = known.iter().min_by_key(|name| distance(&model_type, name)).expect("there are architectures");
        let what =
            format!("`{model_type}` is not supported, the nearest that is: `{nearest}`; all: {}", known.join(", "));
        return keys.wrong("model_type", what);
    };
    let spec = read(&keys)?;
    if spec.layers > MAX_LAYERS {
        return keys.wrong("num_hidden_layers", format!("{} layers are more than any model has", spec.layers));
    }
    Ok(spec)
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
        assert_eq!((spec.kinds[0].rope.theta, spec.kinds[1].rope.theta), (1e4, 1e6));
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
        assert_eq!((spec.D, spec.kinds[0].rope.theta, moe.E, moe.S), (64, 150000.0, 8, 4));
        let e = with("gpt_oss", serde_json::json!({"num_local_experts": 5000})).unwrap_err().to_string();
        assert!(e.contains("num_local_experts: 5000 experts"), "{e}");
    }

    #[test]
    fn rope_of_every_type() {
        let rope = |scaling| {
            with("llama", serde_json::json!({"rope_scaling": scaling})).map(|s| s.kinds[0].rope.scaling.clone())
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
