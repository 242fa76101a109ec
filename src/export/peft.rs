//! PEFT adapters: `adapter_config.json` and `adapter_model.safetensors`, read and written.
use super::folder::{write, write_json};
use crate::backend::Backend;
use crate::data::Tokenizer;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Dtype, Outline, Tensor, Tensors, Writer};
use crate::model::adapters::Detached;
use crate::model::lora::{LoraConfig, Targets};
use crate::model::param::Param;
use crate::model::{LoadOptions, Model, arch};
use crate::model::{
    spec::{Spec, WeightLayout},
    token_rows,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

mod config;
pub use config::read_config;

const CONFIG: &str = "adapter_config.json";
const STEM: &str = "adapter_model";

/// The name of an adapter's weight in its file: modules to save get PEFT's prefix, LoRA weights have it.
pub(super) fn file_name(name: &str) -> String {
    let prefix = "base_model.model.";
    if name.starts_with(prefix) { name.to_string() } else { format!("{prefix}{name}") }
}

/// Every name of a weight in the adapter's file, with its place in the weight.
fn file_names(param: &Param) -> impl Iterator<Item = (String, usize)> {
    param.files().enumerate().map(|(i, name)| (file_name(name), i))
}

/// The adapter's weights: A, B and magnitudes of each adapted linear, and the modules it keeps a copy of.
fn adapter_params<'m>(model: &'m Model, config: &'m LoraConfig) -> impl Iterator<Item = &'m Param> {
    let own = |p: &Param| p.name.contains(".lora_") || p.name.ends_with(token_rows::SUFFIX);
    model.params().filter(move |p| own(p) || config.saves_param(&p.name))
}

/// As PEFT would list them: the names that "all-linear" stands for.
fn targets(model: &Model, config: &LoraConfig) -> Targets {
    if !config.target_modules.all_linear() {
        return config.target_modules.clone();
    }
    let stacks = model.experts().map(|e| &e.stack);
    let adapted = model.linears().chain(stacks).filter(|l| l.lora.is_some());
    let leaves: BTreeSet<_> = adapted.filter_map(|l| l.name.rsplit('.').next()).collect();
    Targets::Names(leaves.into_iter().map(str::to_string).collect())
}

/// Writes the model's adapter in f32 into `out`; `base` is what users will find as the base model.
pub fn save(b: &dyn Backend, model: &Model, base: &str, out: &Path) -> Result<()> {
    let config = model.lora.as_ref().ok_or_else(|| Error::Bug("the model has no adapter to save".into()))?;
    let named = |p| file_names(p).map(move |(name, i)| (name, p, i));
    let mut params: Vec<(String, &Param, usize)> = adapter_params(model, config).flat_map(named).collect();
    params.sort_by(|a, b| a.0.cmp(&b.0));
    let starts = starts(model);
    let outline = |(name, p, _): &(String, &Param, usize)| {
        let shape = match starts.get(p.name.as_str()) {
            Some(Side::A(_)) => vec![2 * p.shape[0], p.shape[1]],
            Some(Side::B(_)) => vec![p.shape[0], 2 * p.shape[1]],
            None => p.shape.clone(),
        };
        Outline { name: name.clone(), dtype: Dtype::F32, shape }
    };
    let mut writer = Writer::create(&weights(out), params.iter().map(outline).collect())?;
    for (_, param, i) in params {
        let values = param.get_part(b, i)?;
        let values = match starts.get(param.name.as_str()) {
            Some(side) => side.learned(&values, param),
            None => values,
        };
        writer.write(&DType::F32.encode(&values))?;
    }
    writer.finish()?;
    let wide = config.widened(if starts.is_empty() { 1 } else { 2 });
    let config = &wide;
    write_json(&out.join(CONFIG), &config::to_json(config, &targets(model, config), base, model.spec.layout))
}

/// The config of an adapter that is written without a model.
pub(super) fn write_config(config: &LoraConfig, spec: &Spec, out: &Path) -> Result<()> {
    write_json(&out.join(CONFIG), &config::to_json(config, &config.target_modules, "", spec.layout))
}

/// The file of its weights.
pub(super) fn weights(folder: &Path) -> PathBuf {
    folder.join(format!("{STEM}.safetensors"))
}

/// A side of a module's adapter, of a model that is not ours.
pub struct Part<'a> {
    /// As the base model names it: `model.layers.0.self_attn.q_proj`.
    pub module: &'a str,
    /// `A`, of shape [R, C], or `B`, [O, R].
    pub side: &'static str,
    pub shape: [usize; 2],
    pub values: Vec<f32>,
}

/// Writes an adapter of these parts in f32 into `out`. In `config`, `target_modules` must be more than "all-linear": names, or an
/// expression, that PEFT finds these modules by.
pub fn save_parts(config: &LoraConfig, base: &str, mut parts: Vec<Part>, out: &Path) -> Result<()> {
    parts.sort_by_cached_key(|part| side(part.module, part.side));
    let outline =
        |part: &Part| Outline { name: side(part.module, part.side), dtype: Dtype::F32, shape: part.shape.to_vec() };
    let mut writer = Writer::create(&weights(out), parts.iter().map(outline).collect())?;
    parts.iter().try_for_each(|part| writer.write(&DType::F32.encode(&part.values)))?;
    writer.finish()?;
    let json = config::to_json(config, &config.target_modules, base, WeightLayout::Rows);
    write_json(&out.join(CONFIG), &json)
}

/// Where a side of an adapter started that the base's weight lacks, as the device held it.
enum Side<'m> {
    A(&'m [f32]),
    B(&'m [f32]),
}

/// Of A and B by name.
fn starts(model: &Model) -> BTreeMap<&str, Side<'_>> {
    let loras = model.linears().filter_map(|linear| linear.lora.as_ref());
    let both = loras.filter_map(|lora| lora.start.as_ref().map(|start| (lora, start)));
    both.flat_map(|(l, s)| [(l.a.name.as_str(), Side::A(&s.a)), (l.b.name.as_str(), Side::B(&s.b))]).collect()
}

impl Side<'_> {
    /// B·A − B₀·A₀ = [B | B₀]·[A; −A₀]: this side of the product, as in files.
    fn learned(&self, now: &[f32], param: &Param) -> Vec<f32> {
        match self {
            Side::A(start) => now.iter().copied().chain(param.unpad(start).iter().map(|x| -x)).collect(),
            Side::B(start) => {
                let (r, start) = (param.shape[1], param.unpad(start));
                now.chunks(r).zip(start.chunks(r)).flat_map(|(now, start)| [now, start].concat()).collect()
            }
        }
    }
}

/// The tokenizer, or at least the chat template, that lies beside the adapter; else, and without an adapter, the `base` model's.
/// `V` is the model's vocabulary.
pub fn tokenizer(adapter: Option<&Path>, mut base: Tokenizer, V: usize) -> Result<Tokenizer> {
    let Some(folder) = adapter else { return Ok(base) };
    if !folder.join("tokenizer.json").is_file() {
        base.adopt_template(folder)?;
        return Ok(base);
    }
    let tokenizer = Tokenizer::load(folder)?;
    let ids = tokenizer.vocab_size();
    let V = V.max(read_config(folder)?.vocab());
    if ids > V {
        let what = format!("{ids} tokens, but the model's embedding has {V} rows: not an adapter for this model");
        return Err(Error::content(tokenizer.file(), "", what));
    }
    Ok(tokenizer)
}

/// How many tokens `spec`'s vocabulary must have for the adapter in `folder`, which may have trained or saved more rows.
pub fn vocab(folder: &Path, spec: &Spec) -> Result<usize> {
    open_file(folder)?.vocab(spec)
}

impl AdapterFile {
    /// As [`vocab`].
    pub(super) fn vocab(&self, spec: &Spec) -> Result<usize> {
        let AdapterFile { config, tensors } = self;
        let tables = [spec.names.embed, spec.names.head].map(|module| file_name(&format!("{module}.weight")));
        let mut wanted = spec.V.max(config.vocab());
        for name in tables.iter().filter(|name| tensors.contains(name)) {
            wanted = wanted.max(tensors.get(name)?.shape.first().copied().unwrap_or(0));
        }
        if wanted > token_rows::MAX_VOCAB.max(spec.V) {
            let what = format!("a vocabulary of {wanted} tokens is wanted; one may have {}", token_rows::MAX_VOCAB);
            return Err(config.error(tensors.path(), "trainable_token_indices", what));
        }
        Ok(wanted)
    }
}

/// The adapter's weights.
fn open(folder: &Path) -> Result<Tensors> {
    let pickle = folder.join(format!("{STEM}.bin"));
    if pickle.is_file() && !weights(folder).exists() {
        let what = "is a pickle, which may run code: save the adapter as safetensors (a recent PEFT does)";
        return Err(Error::content(pickle, "", what));
    }
    Tensors::open_folder(folder, STEM)
}

/// Writes the adapter's two files again, each whole, under PEFT's names. Returns the bytes of its weights.
pub(super) fn copy(folder: &Path, out: &Path) -> Result<u64> {
    let tensors = open(folder)?;
    let all: Vec<(&str, Tensor)> = tensors.names().map(|name| Ok((name, tensors.get(name)?))).collect::<Result<_>>()?;
    let outline = |(name, tensor): &(&str, Tensor)| Outline {
        name: plain_name(name).to_string(),
        dtype: tensor.dtype,
        shape: tensor.shape.to_vec(),
    };
    let mut writer = Writer::create(&weights(out), all.iter().map(outline).collect())?;
    all.iter().try_for_each(|(_, tensor)| writer.write(tensor.bytes))?;
    writer.finish()?;
    let text = std::fs::read(folder.join(CONFIG)).map_err(Error::read(&folder.join(CONFIG)))?;
    write(&out.join(CONFIG), &text)?;
    Ok(all.iter().map(|(_, tensor)| tensor.bytes.len() as u64).sum())
}

/// A hash of the adapter's weights.
pub fn fingerprint(folder: &Path) -> Result<String> {
    Ok(open(folder)?.fingerprint())
}

/// Sets the weights of a model that was loaded with this adapter's config, or with one that saves more modules.
pub fn load(b: &dyn Backend, model: &mut Model, folder: &Path) -> Result<()> {
    let tensors = open(folder)?;
    if model.lora.is_none() {
        return Err(Error::Bug("the model was loaded without an adapter".into()));
    }
    let config = read_config(folder)?;
    let wanted: BTreeSet<String> = adapter_params(model, &config).flat_map(file_names).map(|(name, _)| name).collect();
    if let Some(extra) = tensors.names().find(|name| !wanted.contains(plain_name(name))) {
        return Err(Error::content(tensors.path(), extra, "the base model has no place for this tensor"));
    }
    for param in model.params_mut() {
        let names: Vec<_> = file_names(param).filter(|(name, _)| wanted.contains(name)).collect();
        for (name, i) in names {
            let values = tensors.floats(stored_name(&tensors, &name).as_str(), &param.shape)?;
            param.set_part(b, i, &values.to_f32().expect("floats() gives floats"))?;
        }
    }
    model.put_token_rows(b)
}

/// The model of `folder`, with an adapter on it if there is one, whose tokens it has room for then.
pub fn load_model(b: &dyn Backend, folder: &Path, adapter: Option<&Path>, options: LoadOptions) -> Result<Model> {
    let Some(adapter) = adapter else { return Model::load(b, folder, &options) };
    let vocab = vocab(adapter, &arch::read_spec(folder)?)?;
    let mut model = Model::load(b, folder, &LoadOptions { lora: Some(read_config(adapter)?), vocab, ..options })?;
    load(b, &mut model, adapter)?;
    Ok(model)
}

/// The adapter of `folder` for a model that has none now, ready to be exchanged; `base` is the model's folder, for errors.
pub fn detached(b: &dyn Backend, model: &mut Model, base: &Path, folder: &Path) -> Result<Detached> {
    let config = read_config(folder)?;
    model.adopt(b, &config, base, |model| load(b, model, folder))
}

/// An adapter's folder, opened: what it says, and its tensors by their names in the file.
pub struct AdapterFile {
    pub config: LoraConfig,
    pub tensors: Tensors,
}

/// Opens an adapter's folder.
pub fn open_file(folder: &Path) -> Result<AdapterFile> {
    Ok(AdapterFile { config: read_config(folder)?, tensors: open(folder)? })
}

impl AdapterFile {
    /// A module's A or B, of this shape.
    pub fn part(&self, module: &str, which: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
        Ok(self.tensors.floats(&side(module, which), &shape)?.to_f32().expect("floats() gives floats"))
    }
    /// DoRA's magnitudes of a module of O outputs.
    pub(super) fn magnitude(&self, module: &str, O: usize) -> Result<Vec<f32>> {
        let tensor = self.tensors.floats(&stored_name(&self.tensors, &magnitude(module)), &[O])?;
        Ok(tensor.to_f32().expect("floats() gives floats"))
    }
}

/// The name of a module's A or B in the file.
pub fn side(module: &str, side: &str) -> String {
    format!("base_model.model.{module}.lora_{side}.weight")
}

/// That of its magnitudes.
pub(super) fn magnitude(module: &str) -> String {
    format!("base_model.model.{module}.lora_magnitude_vector")
}

/// Some versions of PEFT write a magnitude with a suffix.
pub(super) fn plain_name(name: &str) -> &str {
    name.strip_suffix(".weight").filter(|name| name.ends_with(".lora_magnitude_vector")).unwrap_or(name)
}

fn stored_name(tensors: &Tensors, name: &str) -> String {
    let suffixed = format!("{name}.weight");
    let is_suffixed = name.ends_with(".lora_magnitude_vector") && tensors.contains(&suffixed);
    if is_suffixed { suffixed } else { name.to_string() }
}
