//! The metadata of a GGUF file as the Hugging Face config it was made from, as far as it can be told.
use crate::error::Result;
use crate::io::gguf::{Gguf, Value as Meta};
use serde_json::{Map, Value, json};

/// RoPE factors of long and short texts.
pub(super) const LONG: &str = "rope_factors_long.weight";
pub(super) const SHORT: &str = "rope_factors_short.weight";

/// `general.architecture` and the `model_type` it stands for; llama with experts is mixtral.
const ARCHITECTURES: &[(&str, &str)] = &[
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
    ("llama", "llama"),
    ("phi3", "phi3"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen3moe", "qwen3_moe"),
];

/// No real model has as many experts; keeps a hostile file from naming tensors without end.
const MAX_EXPERTS: u64 = 4096;

/// The keys `<architecture>.*`.
struct Metadata<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Metadata<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }
    fn get(&self, key: &str) -> Option<&Meta> {
        self.gguf.get(&self.key(key))
    }
    fn wrong<T>(&self, key: &str, what: impl std::fmt::Display) -> Result<T> {
        self.gguf.wrong(&self.key(key), what)
    }
    /// A whole number; or one for each layer, all the same.
    fn optional(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let one = match value {
            Meta::Array(all) if all.windows(2).all(|pair| pair[0] == pair[1]) => all.first().and_then(Meta::as_u64),
            Meta::Array(_) => return self.wrong(key, "differs between layers, which is not supported"),
            value => value.as_u64(),
        };
        one.map_or_else(|| self.wrong(key, "a whole number is wanted"), |n| Ok(Some(n)))
    }
    fn number(&self, key: &str) -> Result<u64> {
        self.optional(key)?.map_or_else(|| self.wrong(key, "is missing"), Ok)
    }
    /// A finite number.
    fn real(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite());
        number.map_or_else(|| self.wrong(key, "a number is wanted"), |x| Ok(Some(x)))
    }
}

/// An object with the keys of `config.json`.
pub fn config(gguf: &Gguf) -> Result<Value> {
    let key = "general.architecture";
    let Some(architecture) = gguf.get(key).and_then(Meta::as_text) else {
        return gguf.wrong(key, "is missing: this GGUF file holds no language model");
    };
    let Some((_, model_type)) = ARCHITECTURES.iter().find(|(name, _)| *name == architecture) else {
        let known: Vec<_> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
        return gguf.wrong(key, format!("`{architecture}` is not supported; supported: {}", known.join(", ")));
    };
    let m = Metadata { gguf, architecture };
    let (layers, hidden, heads) =
        (m.number("block_count")?, m.number("embedding_length")?, m.number("attention.head_count")?);
    let head_dim = match m.optional("attention.key_length")? {
        Some(length) => length,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => return m.wrong("attention.head_count", format!("{heads} heads do not divide {hidden}")),
    };
    if m.optional("attention.value_length")?.is_some_and(|length| length != head_dim) {
        return m.wrong("attention.value_length", "differs from attention.key_length, which is not supported");
    }
    let Some([vocabulary, _]) = gguf.tensor("token_embd.weight").map(|t| t.shape) else {
        return gguf.wrong("token_embd.weight", "a matrix is wanted");
    };
    let mut config = json!({
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": m.number("feed_forward_length")?,
        "num_attention_heads": heads,
        "num_key_value_heads": m.optional("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": m.number("context_length")?,
        "rms_norm_eps": short(m.real("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6)),
        "rope_theta": short(m.real("rope.freq_base")?.unwrap_or(1e4)),
        "tie_word_embeddings": gguf.tensor("output.weight").is_none(),
    });
    let keys = config.as_object_mut().expect("an object");
    if let Some(turned) = m.optional("rope.dimension_count")?.filter(|n| *n != head_dim) {
        keys.insert("partial_rotary_factor".into(), json!(turned as f64 / head_dim as f64));
    }
    if let Some(scaling) = rope_scaling(&m)? {
        keys.insert("rope_scaling".into(), scaling);
    }
    family(&m, keys, (layers, hidden, heads, head_dim))?;
    Ok(config)
}

/// What only some architectures have.
fn family(
    m: &Metadata,
    keys: &mut Map<String, Value>,
    (layers, hidden, heads, head_dim): (u64, u64, u64, u64),
) -> Result<()> {
    let there = |name: &str| m.gguf.tensor(name).is_some();
    let window = m.optional("attention.sliding_window")?.filter(|n| *n > 0);
    if m.optional("expert_count")?.is_some_and(|n| n > MAX_EXPERTS) {
        return m.wrong("expert_count", format!("at most {MAX_EXPERTS} are wanted"));
    }
    let mut put = |key: &str, value: Value| keys.insert(key.into(), value);
    match m.architecture {
        "llama" => {
            put("attention_bias", json!(there("blk.0.attn_output.bias")));
            put("mlp_bias", json!(there("blk.0.ffn_up.bias")));
            if there("blk.0.attn_q.bias") && !there("blk.0.attn_output.bias") {
                put("model_type", json!("qwen2"));
            }
            if window.is_some() {
                put("model_type", json!("mistral"));
                put("sliding_window", json!(window));
            }
            if let Some(experts) = m.optional("expert_count")?.filter(|n| *n > 0) {
                put("model_type", json!("mixtral"));
                put("num_local_experts", json!(experts));
                put("num_experts_per_tok", json!(m.number("expert_used_count")?));
            }
        }
        "qwen3" => drop(put("attention_bias", json!(there("blk.0.attn_q.bias")))),
        "qwen3moe" => {
            put("attention_bias", json!(there("blk.0.attn_q.bias")));
            put("num_experts", json!(m.number("expert_count")?));
            put("num_experts_per_tok", json!(m.number("expert_used_count")?));
            put("moe_intermediate_size", json!(m.number("expert_feed_forward_length")?));
            // llama.cpp renormalises always
            put("norm_topk_prob", json!(m.get("expert_weights_norm").and_then(Meta::as_bool).unwrap_or(true)));
        }
        "phi3" => drop(put("sliding_window", json!(window))),
        "gemma2" | "gemma3" => {
            // no key says so: the 27B models alone divide by the channels a head, not by the head's size
            let scalar = match (m.architecture, layers) {
                ("gemma2", 46) | ("gemma3", 62) => hidden as f64 / heads as f64,
                _ => head_dim as f64,
            };
            let scale = m.real("attention.scale")?.filter(|x| *x > 0.0);
            put("query_pre_attn_scalar", json!(scale.map_or(scalar, |x| 1.0 / (x * x))));
            let older = if m.architecture == "gemma2" { 4096 } else { 1024 };
            put("sliding_window", json!(window.unwrap_or(older)));
            let cap = |key| m.real(key).map(|x| json!(x.filter(|x| *x > 0.0).map(short)));
            let usual =
                if m.architecture == "gemma2" { (json!(50.0), json!(30.0)) } else { (Value::Null, Value::Null) };
            let given = |key, usual| if m.get(key).is_some() { cap(key) } else { Ok(usual) };
            put("attn_logit_softcapping", given("attn_logit_softcapping", usual.0)?);
            put("final_logit_softcapping", given("final_logit_softcapping", usual.1)?);
            if let Some(theta) = m.real("rope.freq_base_swa")? {
                put("rope_local_base_freq", json!(short(theta)));
            }
            if let Some(Meta::Unsigned(pattern)) = m.get("attention.sliding_window_pattern") {
                put("sliding_window_pattern", json!(pattern));
            }
            if let Some(types) = m.get("attention.sliding_window_pattern").and_then(Meta::as_array) {
                let name =
                    |slides: &Meta| if slides == &Meta::Bool(true) { "sliding_attention" } else { "full_attention" };
                put("layer_types", json!(types.iter().map(name).collect::<Vec<_>>()));
            }
        }
        _ => {}
    }
    Ok(())
}

/// f32 metadata as the decimal that a config has: 1e-5, not 9.99999974e-6.
fn short(x: f64) -> f64 {
    if (x as f32) as f64 == x { (x as f32).to_string().parse().unwrap_or(x) } else { x }
}

/// `rope_scaling`: under its type, or as one factor for each pair of channels.
fn rope_scaling(m: &Metadata) -> Result<Option<Value>> {
    let context = m.number("context_length")?;
    let original = m.optional("rope.scaling.original_context_length")?;
    if let (Some(long), Some(short)) = (factors(m, LONG)?, factors(m, SHORT)?) {
        let mut scaling = json!({ "rope_type": "longrope", "long_factor": long, "short_factor": short,
            "original_max_position_embeddings": original.unwrap_or(context) });
        if let Some(factor) = m.real("rope.scaling.attn_factor")?.filter(|x| *x > 0.0) {
            scaling["attention_factor"] = json!(factor);
        }
        return Ok(Some(scaling));
    }
    // llama3's factors, made from its four numbers by the conversion: the same for texts of any length
    if let Some(factors) = factors(m, "rope_freqs.weight")? {
        return Ok(Some(json!({ "rope_type": "longrope", "long_factor": factors, "short_factor": factors,
            "original_max_position_embeddings": context, "attention_factor": 1.0 })));
    }
    let factor = match m.real("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => m.real("rope.scale_linear")?,
    };
    let kind = m.get("rope.scaling.type").and_then(Meta::as_text);
    let kind = kind.unwrap_or(if factor.is_some_and(|x| x != 1.0 && x != 0.0) { "linear" } else { "none" });
    match kind {
        "none" => Ok(None),
        "linear" => Ok(Some(json!({ "rope_type": "linear", "factor": factor }))),
        "yarn" => {
            let mut scaling = json!({ "rope_type": "yarn", "factor": factor });
            if let Some(original) = original {
                scaling["original_max_position_embeddings"] = json!(original);
            }
            for (key, name) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
                if let Some(value) = m.real(&format!("rope.scaling.{key}"))? {
                    scaling[name] = json!(value);
                }
            }
            Ok(Some(scaling))
        }
        "longrope" => m.gguf.wrong(LONG, "is missing, and RoPE is of type longrope"),
        other => m.wrong("rope.scaling.type", format!("`{other}` is not supported; none, linear, yarn, longrope are")),
    }
}

/// A tensor of factors, if it is there.
fn factors(m: &Metadata, name: &str) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = m.gguf.tensor(name) else { return Ok(None) };
    if tensor.format.name != "F32" || tensor.shape.len() != 1 {
        return m.gguf.wrong(name, format!("a list of F32 is wanted, got {} {:?}", tensor.format.name, tensor.shape));
    }
    Ok(Some(crate::dtype::DType::F32.decode(tensor.bytes)))
}
