//! What a model of a kind that is not supported has that the decoder here has not; known by its config's keys, or by its name.
use super::super::config::Keys;
use super::model_types;
use serde_json::Value;

/// Keys of a config and what they mean for the model.
#[rustfmt::skip]
const KEYS: &[(&[&str], &str)] = &[
    (&["vision_config", "vision_tower", "mm_vision_tower", "visual", "image_token_id"], "a vision tower beside its decoder"),
    (&["audio_config", "audio_token_id", "thinker_config", "num_mel_bins"], "an audio tower beside its decoder"),
    (&["mamba_d_state", "mamba_expand", "mamba_num_heads", "ssm_cfg", "ssm_state_size", "state_size", "layers_block_type",
       "hybrid_override_pattern", "hybrid_layer_ids"], "state-space layers"),
    (&["linear_num_value_heads", "linear_key_head_dim", "linear_attn_config"], "linear attention in some layers"),
    (&["conv_L_cache"], "short convolutions in the place of attention in some layers"),
    (&["hidden_size_per_layer_input"], "embeddings of their own in each layer"),
    (&["lru_width"], "recurrent layers"),
];

/// The same by `model_type`, for configs that name no such key.
#[rustfmt::skip]
const NAMES: &[(&[&str], &str)] = &[
    (&["gemma3n_text", "gemma3n", "gemma4_text", "gemma4"], "embeddings of their own in each layer"),
    (&["qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "kimi_linear", "olmo_hybrid", "minimax"],
     "linear attention in some layers"),
    (&["lfm2", "lfm2_moe"], "short convolutions in the place of attention in some layers"),
    (&["mamba", "mamba2", "falcon_mamba", "jamba", "zamba", "zamba2", "nemotron_h", "falcon_h1", "bamba", "granitemoehybrid"],
     "state-space layers"),
    (&["rwkv", "rwkv7", "recurrent_gemma", "xlstm"], "recurrent layers"),
    (&["gemma3", "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "mllama", "mistral3",
       "pixtral", "paligemma", "idefics2", "idefics3", "smolvlm", "internvl", "llama4", "glm4v", "aya_vision", "phi3_v", "molmo"],
     "a vision tower beside its decoder"),
    (&["qwen2_audio", "voxtral", "granite_speech", "qwen2_5_omni", "qwen3_omni_moe", "phi4mm"], "an audio tower beside its decoder"),
    (&["whisper", "t5", "mt5", "umt5", "t5gemma", "bart", "mbart", "pegasus", "m2m_100", "seamless_m4t"], "an encoder before its decoder"),
    (&["bert", "roberta", "xlm-roberta", "modernbert", "deberta-v2", "distilbert", "albert", "electra", "nomic_bert"],
     "attention in both directions"),
    (&["bloom", "mpt"], "ALiBi in the place of RoPE"),
];

/// Why a model is not supported, if that is more than its name.
pub(super) fn why(keys: &Keys, model_type: &str) -> Option<String> {
    let missing = missing(keys, model_type);
    let inner = decoder(keys);
    if missing.is_none() && inner.is_none() {
        return own_code(keys, model_type);
    }
    let mut what = format!("`{model_type}` is not supported yet");
    if let Some(missing) = missing {
        what += &format!(": it has {missing}, which luthier has not");
    }
    if let Some((inner, supported)) = inner {
        what += &match supported {
            true => format!(
                "; the decoder in it, a `{inner}` (text_config), is supported as a folder of its own: take the model's text-only \
                 release, or save the decoder alone with its config and tokenizer (AutoModelForCausalLM in transformers does)"
            ),
            false => format!("; nor is the decoder in it, a `{inner}` (text_config)"),
        };
    }
    Some(what)
}

fn missing(keys: &Keys, model_type: &str) -> Option<&'static str> {
    let text = keys.object("text_config").ok().flatten();
    let by_key = |keys: &Keys| KEYS.iter().find(|(names, _)| names.iter().any(|key| keys.get(key).is_some()));
    let by_name = || NAMES.iter().find(|(names, _)| names.contains(&model_type));
    let encoder =
        || Some("an encoder before its decoder").filter(|_| keys.get("is_encoder_decoder") == Some(&Value::Bool(true)));
    let inner = || text.as_ref().and_then(by_key);
    by_key(keys).or_else(by_name).or_else(inner).map(|(_, what)| *what).or_else(encoder)
}

/// The `model_type` of the decoder within, and whether it is supported.
fn decoder(keys: &Keys) -> Option<(String, bool)> {
    let inner = keys.object("text_config").ok()??.text("model_type", None).ok()?;
    let supported = model_types().any(|name| name == inner);
    Some((inner, supported))
}

/// `auto_map`: Python code in the model's own folder.
fn own_code(keys: &Keys, model_type: &str) -> Option<String> {
    keys.get("auto_map")?;
    Some(format!(
        "`{model_type}` is not supported: it is defined by Python code of its own (auto_map), which is not run; take a release of it \
         in a supported architecture, if there is one; {}",
        super::nearest(model_type)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use serde_json::json;

    #[test]
    fn a_kind_that_is_not_supported_is_told_what_it_has() {
        for (model_type, more, wanted) in [
            ("qwen3_next", json!({"linear_num_value_heads": 4}), "linear attention"),
            ("a_new_hybrid", json!({"mamba_d_state": 16}), "state-space layers"),
            ("jamba", json!({}), "state-space layers"),
            ("lfm2", json!({"conv_L_cache": 3}), "short convolutions"),
            ("gemma3n_text", json!({}), "embeddings of their own in each layer"),
            ("whisper", json!({"num_mel_bins": 80, "is_encoder_decoder": true}), "an audio tower"),
            ("a_translator", json!({"is_encoder_decoder": true}), "an encoder before"),
            ("qwen2_vl", json!({"vision_config": {}}), "a vision tower"),
            ("internlm2", json!({"auto_map": {"AutoModel": "modeling.M"}}), "Python code of its own (auto_map)"),
        ] {
            let e = with(model_type, more).unwrap_err().to_string();
            assert!(e.contains(&format!("`{model_type}` is not supported")) && e.contains(wanted), "{e}");
            assert_eq!(e.contains("nearest"), wanted.contains("auto_map"), "{e}");
        }
    }

    #[test]
    fn a_decoder_within_is_named() {
        let of = |inner: &str| {
            let config = json!({"vision_config": {}, "text_config": {"model_type": inner}});
            with("gemma3", config).unwrap_err().to_string()
        };
        assert!(of("gemma3_text").contains("a `gemma3_text` (text_config), is supported as a folder of its own"));
        assert!(of("t5").contains("nor is the decoder in it, a `t5`"));
    }
}
