//! `adapter_config.json`: PEFT's keys to a [`LoraConfig`] and back.
use super::CONFIG;
use crate::error::{Error, Result};
use crate::io::hub;
use crate::model::lora::{Init, LoraConfig, Patterns, Rules, Targets, TokenIndices};
use crate::model::spec::WeightLayout;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The keys that are understood; PEFT's defaults.
#[derive(Deserialize)]
struct Json {
    peft_type: Option<String>,
    #[serde(default = "eight")]
    r: usize,
    #[serde(default = "eight")]
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: Option<f64>,
    target_modules: Option<Targets>,
    #[serde(default)]
    exclude_modules: Option<Targets>,
    #[serde(default)]
    layers_to_transform: Option<OneOrMany<usize>>,
    #[serde(default)]
    layers_pattern: Option<OneOrMany<String>>,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    trainable_token_indices: Option<TokenIndices>,
    #[serde(default, deserialize_with = "or_default")]
    rank_pattern: Patterns<usize>,
    #[serde(default, deserialize_with = "or_default")]
    alpha_pattern: Patterns<f64>,
    #[serde(default, deserialize_with = "or_default")]
    use_rslora: bool,
    #[serde(default, deserialize_with = "or_default")]
    use_dora: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn eight<T: From<u8>>() -> T {
    T::from(8)
}

/// `null` is the default, too.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

fn many<T>(given: Option<OneOrMany<T>>) -> Vec<T> {
    match given {
        None => Vec::new(),
        Some(OneOrMany::One(one)) => vec![one],
        Some(OneOrMany::Many(many)) => many,
    }
}

/// Other kinds of adapters: what these keys turn on changes what is computed, so it must be off. `fan_in_fan_out` does not: PEFT
/// itself corrects it to what the base model's layers are.
const MUST_BE_OFF: &[&str] = &[
    "lora_bias",
    "target_parameters",
    "alora_invocation_tokens",
    "layer_replication",
    "megatron_config",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "arrow_config",
    "monteclora_config",
    "ensure_weight_tying",
];

/// First values that leave the base as it is; pissa, olora and the like change it whenever PEFT loads them.
const PLAIN_INIT: &[&str] = &["gaussian", "orthogonal", "eva"];

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        _ => false,
    }
}

impl Json {
    /// The first key, with its value, that stands for what is not there.
    fn unsupported(&self) -> Option<(&str, String)> {
        let kind = self.peft_type.as_deref().unwrap_or("LORA");
        if kind != "LORA" {
            return Some(("peft_type", kind.to_string()));
        }
        let plain = |key: &str, value: &Value| match (key, value) {
            ("bias", value) => value.is_null() || value == "none",
            ("init_lora_weights", Value::String(how)) => PLAIN_INIT.contains(&how.as_str()),
            (key, value) => !MUST_BE_OFF.contains(&key) || is_off(value),
        };
        let found = self.rest.iter().find(|(key, value)| !plain(key, value));
        found.map(|(key, value)| (key.as_str(), value.to_string()))
    }
}

/// The config of an adapter folder.
pub fn read_config(folder: &Path) -> Result<LoraConfig> {
    let file = folder.join(CONFIG);
    let text = std::fs::read(&file).map_err(Error::read(&file))?;
    let json: Json =
        serde_json::from_slice(&text).map_err(|e| Error::content(&file, format!("line {}", e.line()), e))?;
    if let Some((key, value)) = json.unsupported() {
        let what = format!("{value}: this kind of adapter is not supported; LoRA, rsLoRA and DoRA are");
        return Err(Error::content(&file, key, what));
    }
    let Some(target_modules) = json.target_modules else {
        return Err(Error::content(&file, "target_modules", "is missing: names of modules, or \"all-linear\""));
    };
    let config = LoraConfig {
        r: json.r,
        lora_alpha: json.lora_alpha,
        lora_dropout: json.lora_dropout.unwrap_or(0.0),
        target_modules,
        exclude_modules: json.exclude_modules,
        layers_to_transform: many(json.layers_to_transform),
        layers_pattern: many(json.layers_pattern),
        rank_pattern: json.rank_pattern,
        alpha_pattern: json.alpha_pattern,
        modules_to_save: json.modules_to_save.unwrap_or_default(),
        trainable_token_indices: json.trainable_token_indices.filter(|given| *given != TokenIndices::Embedding(vec![])),
        use_rslora: json.use_rslora,
        use_dora: json.use_dora,
        init: Init::Plain,
        file: Some(file),
    };
    Rules::new(&config, folder)?;
    Ok(config)
}

/// Whole numbers as PEFT writes them.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e9 { json!(x as i64) } else { json!(x) }
}

fn some_or_null<T: serde::Serialize>(list: &[T]) -> Value {
    if list.is_empty() { Value::Null } else { json!(list) }
}

/// What PEFT would have written; `targets` is what "all-linear" stands for.
pub(super) fn to_json(config: &LoraConfig, targets: &Targets, base: &str, layout: WeightLayout) -> Value {
    let (base, revision) = hub::split(base);
    let alphas: Map<String, Value> = config.alpha_pattern.0.iter().map(|(k, a)| (k.clone(), number(*a))).collect();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": config.r,
        "lora_alpha": number(config.lora_alpha),
        "lora_dropout": config.lora_dropout,
        "target_modules": targets,
        "exclude_modules": config.exclude_modules,
        "layers_to_transform": some_or_null(&config.layers_to_transform),
        "layers_pattern": some_or_null(&config.layers_pattern),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": alphas,
        "modules_to_save": some_or_null(&config.modules_to_save),
        "trainable_token_indices": config.trainable_token_indices,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "bias": "none",
        // of weights that are stored input by output
        "fan_in_fan_out": layout == WeightLayout::Conv1d,
        "inference_mode": true,
        "init_lora_weights": true,
    })
}
