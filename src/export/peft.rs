//! PEFT adapters: `adapter_config.json` and `adapter_model.safetensors`, read and written.
use super::folder::write_json;
use crate::backend::Backend;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::hub;
use crate::io::safetensors::{Dtype, Outline, Tensors, Writer};
use crate::model::Model;
use crate::model::lora::{LoraConfig, Targets};
use crate::model::param::Param;
use crate::model::spec::WeightLayout;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;

/// Ranks beyond it are no adapters; keeps a hostile config from asking for all memory.
const MAX_RANK: usize = 1 << 14;
const CONFIG: &str = "adapter_config.json";
const STEM: &str = "adapter_model";

/// The name of an adapter's weight in its file: modules to save get PEFT's prefix, LoRA weights have it.
fn file_name(name: &str) -> String {
    let prefix = "base_model.model.";
    if name.starts_with(prefix) { name.to_string() } else { format!("{prefix}{name}") }
}

/// Every name of a weight in the adapter's file, with its place in the weight.
fn file_names(param: &Param) -> impl Iterator<Item = (String, usize)> {
    param.files().enumerate().map(|(i, name)| (file_name(name), i))
}

/// The adapter's weights: A and B of each adapted linear, and the modules it keeps a copy of.
fn adapter_params<'m>(model: &'m Model, config: &'m LoraConfig) -> impl Iterator<Item = &'m Param> {
    let saved = |p: &&Param| config.saves(p.name.rsplit_once('.').map_or(&p.name, |(module, _)| module));
    model.params().filter(move |p| p.name.contains(".lora_") || saved(p))
}

/// The names PEFT would list: what "all-linear" stands for.
fn target_names(model: &Model, config: &LoraConfig) -> Vec<String> {
    match &config.target_modules {
        Targets::Names(names) => names.clone(),
        Targets::Word(word) if word != "all-linear" => vec![word.clone()],
        Targets::Word(_) => {
            let leaves: BTreeSet<_> = model
                .linears()
                .chain(model.experts().map(|e| &e.stack))
                .filter(|l| l.lora.is_some())
                .filter_map(|l| l.name.rsplit('.').next())
                .collect();
            leaves.into_iter().map(str::to_string).collect()
        }
    }
}

/// Writes the model's adapter in f32 into `out`; `base` is what users will find as the base model.
pub fn save(b: &dyn Backend, model: &Model, base: &str, out: &Path) -> Result<()> {
    let config = model.lora.as_ref().ok_or_else(|| Error::Bug("the model has no adapter to save".into()))?;
    let named = |p| file_names(p).map(move |(name, i)| (name, p, i));
    let mut params: Vec<(String, &Param, usize)> = adapter_params(model, config).flat_map(named).collect();
    params.sort_by(|a, b| a.0.cmp(&b.0));
    let outline = |(name, p, _): &(String, &Param, usize)| Outline {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: p.shape.clone(),
    };
    let file = out.join(format!("{STEM}.safetensors"));
    let mut writer = Writer::create(&file, params.iter().map(outline).collect())?;
    for (_, param, i) in params {
        writer.write(&DType::F32.encode(&param.get_part(b, i)?))?;
    }
    writer.finish()?;
    let (base, revision) = hub::split(base);
    let alpha = config.lora_alpha;
    let whole = alpha.fract() == 0.0 && alpha.abs() < 1e9;
    let json = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": config.r,
        "lora_alpha": if whole { json!(alpha as i64) } else { json!(alpha) },
        "lora_dropout": 0.0,
        "target_modules": target_names(model, config),
        "modules_to_save": if config.modules_to_save.is_empty() { json!(null) } else { json!(config.modules_to_save) },
        "use_rslora": config.use_rslora,
        "use_dora": false,
        "bias": "none",
        // of weights that are stored input by output
        "fan_in_fan_out": model.spec.layout == WeightLayout::Conv1d,
        "inference_mode": true,
        "init_lora_weights": true,
    });
    write_json(&out.join(CONFIG), &json)
}

/// The keys of `adapter_config.json` that change what the adapter computes. `fan_in_fan_out` does not: PEFT itself corrects it to
/// what the base model's layers are.
#[derive(Deserialize)]
struct Json {
    peft_type: Option<String>,
    r: usize,
    lora_alpha: f64,
    target_modules: Targets,
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    rank_pattern: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    alpha_pattern: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    init_lora_weights: serde_json::Value,
    #[serde(default)]
    alora_invocation_tokens: serde_json::Value,
    #[serde(default)]
    layer_replication: serde_json::Value,
    /// Adapters of weights that are no module's, as those of stacked experts.
    #[serde(default)]
    target_parameters: serde_json::Value,
    bias: Option<String>,
}

/// The config of an adapter folder.
pub fn read_config(folder: &Path) -> Result<LoraConfig> {
    let file = folder.join(CONFIG);
    let text = std::fs::read(&file).map_err(Error::read(&file))?;
    let json: Json =
        serde_json::from_slice(&text).map_err(|e| Error::content(&file, format!("line {}", e.line()), e))?;
    let unsupported = [
        ("peft_type", json.peft_type.as_deref().unwrap_or("LORA") != "LORA"),
        ("use_dora", json.use_dora),
        ("rank_pattern", !json.rank_pattern.is_empty()),
        ("alpha_pattern", !json.alpha_pattern.is_empty()),
        ("alora_invocation_tokens", !json.alora_invocation_tokens.is_null()),
        ("layer_replication", !json.layer_replication.is_null()),
        ("target_parameters", json.target_parameters.as_array().is_some_and(|names| !names.is_empty())),
        // pissa, olora and the like change the base when PEFT loads them
        ("init_lora_weights", json.init_lora_weights.as_str().is_some_and(|how| how != "gaussian")),
        ("bias", json.bias.as_deref().unwrap_or("none") != "none"),
    ];
    if let Some((key, _)) = unsupported.iter().find(|(_, on)| *on) {
        return Err(Error::content(&file, key, "this kind of adapter is not supported; plain LoRA and rsLoRA are"));
    }
    if json.r == 0 || json.r > MAX_RANK {
        return Err(Error::content(&file, "r", format!("must be from 1 to {MAX_RANK}, got {}", json.r)));
    }
    Ok(LoraConfig {
        r: json.r,
        lora_alpha: json.lora_alpha,
        target_modules: json.target_modules,
        modules_to_save: json.modules_to_save.unwrap_or_default(),
        use_rslora: json.use_rslora,
    })
}

/// Sets the weights of a model that was loaded with this adapter's config.
pub fn load(b: &dyn Backend, model: &mut Model, folder: &Path) -> Result<()> {
    let tensors = Tensors::open_folder(folder, STEM)?;
    let config = model.lora.clone().ok_or_else(|| Error::Bug("the model was loaded without an adapter".into()))?;
    let wanted: BTreeSet<String> = adapter_params(model, &config).flat_map(file_names).map(|(name, _)| name).collect();
    if let Some(extra) = tensors.names().find(|name| !wanted.contains(*name)) {
        return Err(Error::content(tensors.path(), extra, "the base model has no place for this tensor"));
    }
    for param in model.params_mut() {
        let names: Vec<_> = file_names(param).filter(|(name, _)| wanted.contains(name)).collect();
        for (name, i) in names {
            let values = tensors.floats(&name, &param.shape)?.to_f32().expect("floats() gives floats");
            param.set_part(b, i, &values)?;
        }
    }
    Ok(())
}
