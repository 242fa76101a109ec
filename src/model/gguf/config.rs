//! The metadata of a GGUF file as the Hugging Face config it was made from, as far as it can be told.
use super::families::{FAMILIES, Family, RMS_EPS};
use super::{latent, particular};
use crate::error::Result;
use crate::io::gguf::{Gguf, Value as Meta};
use serde_json::{Value, json};

/// RoPE factors of long and short texts.
pub(super) const LONG: &str = "rope_factors_long.weight";
pub(super) const SHORT: &str = "rope_factors_short.weight";

/// The keys `<architecture>.*`.
pub(super) struct Metadata<'a> {
    pub gguf: &'a Gguf,
    pub architecture: &'a str,
}

impl Metadata<'_> {
    pub fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }
    pub fn get(&self, key: &str) -> Option<&Meta> {
        self.gguf.get(&self.key(key))
    }
    pub fn wrong<T>(&self, key: &str, what: impl std::fmt::Display) -> Result<T> {
        self.gguf.wrong(&self.key(key), what)
    }
    /// A whole number; or one for each layer, all the same.
    pub fn optional(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let one = match value {
            Meta::Array(all) if all.windows(2).all(|pair| pair[0] == pair[1]) => all.first().and_then(Meta::as_u64),
            Meta::Array(_) => return self.wrong(key, "differs between layers, which is not supported"),
            value => value.as_u64(),
        };
        one.map_or_else(|| self.wrong(key, "a whole number is wanted"), |n| Ok(Some(n)))
    }
    pub fn number(&self, key: &str) -> Result<u64> {
        self.optional(key)?.map_or_else(|| self.wrong(key, "is missing"), Ok)
    }
    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map_or_else(|| self.wrong(key, "a truth value is wanted"), |x| Ok(Some(x)))
    }
    /// A finite number.
    pub fn real(&self, key: &str) -> Result<Option<f64>> {
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
    let Some(family) = Family::of_architecture(architecture) else {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
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
    let latent = architecture == latent::ARCHITECTURE;
    if !latent && m.optional("attention.value_length")?.is_some_and(|length| length != head_dim) {
        return m.wrong("attention.value_length", "differs from attention.key_length, which is not supported");
    }
    let Some([vocabulary, _]) = gguf.tensor("token_embd.weight").map(|t| t.shape) else {
        return gguf.wrong("token_embd.weight", "a matrix is wanted");
    };
    let mut config = json!({
        "model_type": family.model_types[0],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": m.number("feed_forward_length")?,
        "num_attention_heads": heads,
        "num_key_value_heads": m.optional("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": m.number("context_length")?,
        "rope_theta": short(m.real("rope.freq_base")?.unwrap_or(1e4)),
        "tie_word_embeddings": gguf.tensor("output.weight").is_none(),
    });
    let keys = config.as_object_mut().expect("an object");
    let (eps, own) = family.eps;
    keys.insert(own.into(), json!(short(m.real(eps)?.unwrap_or(if eps == RMS_EPS { 1e-6 } else { 1e-5 }))));
    if let Some(turned) = m.optional("rope.dimension_count")?.filter(|n| *n != head_dim) {
        keys.insert("partial_rotary_factor".into(), json!(turned as f64 / head_dim as f64));
    }
    if let Some(scaling) = rope_scaling(&m)? {
        keys.insert("rope_scaling".into(), scaling);
    }
    particular::read(&m, keys, (layers, hidden, heads, head_dim))?;
    Ok(config)
}

/// f32 metadata as the decimal that a config has: 1e-5, not 9.99999974e-6.
pub(super) fn short(x: f64) -> f64 {
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
