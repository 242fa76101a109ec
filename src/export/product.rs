//! The forms in which a model and its adapter go out.
use super::bnb;
use super::folder::{self, copy_companions, copy_files, own_template, write_json};
use super::full::{self, write_shards};
use super::gguf::{self, Quant};
use super::merge::Merged;
use super::{peft, publish, quantize};
use crate::backend::Backend;
use crate::data::Tokenizer;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Outline, dtype_of};
use crate::model::quantized::Floats;
use crate::model::spec::WeightSpec;
use crate::model::{self, arch};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// The adapter alone, as PEFT loads it.
    Adapter,
    /// One model in floats, as transformers loads it.
    Merged,
    /// The same with its linear layers in bitsandbytes' 4 bits.
    MergedNf4,
    /// One model as llama.cpp loads it.
    Gguf(Quant),
    /// The adapter alone, as llama.cpp loads it.
    GgufLora,
}

/// The names of products on a command line.
pub const PRODUCTS: [&str; 5] = ["adapter", "merged-16bit", "merged-bnb-4bit", "gguf", "gguf-lora"];

impl Product {
    /// The product of this name; `quant` is what a GGUF file's tensors are stored in.
    pub fn parse(name: &str, quant: Quant) -> Option<Product> {
        match name {
            "adapter" => Some(Product::Adapter),
            "merged-16bit" => Some(Product::Merged),
            "merged-bnb-4bit" => Some(Product::MergedNf4),
            "gguf" => Some(Product::Gguf(quant)),
            "gguf-lora" => Some(Product::GgufLora),
            _ => None,
        }
    }
}

/// What goes in.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The base: a folder, or a GGUF file.
    pub model: &'a Path,
    pub adapter: Option<&'a Path>,
    /// Of floats; `None`: the base's own 16 bits, or bfloat16.
    pub dtype: Option<DType>,
    /// What a GGUF file calls the model; `None`: as its folder.
    pub name: Option<&'a str>,
}

impl Input<'_> {
    fn name(&self) -> String {
        let stem = || self.adapter.unwrap_or(self.model).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        self.name.map(str::to_string).or_else(stem).unwrap_or_else(|| "model".into())
    }
}

/// Makes `out`, which must not be there: a folder, or a GGUF file alone where its name ends so. `check` sees it before it has
/// its name. Returns the bytes of the weights.
pub fn export(
    b: &dyn Backend,
    product: Product,
    input: &Input,
    out: &Path,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<u64> {
    let single = out.extension().is_some_and(|e| e == "gguf");
    match product {
        Product::Gguf(_) | Product::GgufLora if single => publish::file(out, |at| {
            let bytes = gguf_file(b, product, input, at)?;
            check(at).map(|()| bytes)
        }),
        _ => publish::folder(out, |at| {
            let bytes = write(b, product, input, at)?;
            check(at).map(|()| bytes)
        }),
    }
}

/// The files of a product, into a folder that is there.
fn write(b: &dyn Backend, product: Product, input: &Input, at: &Path) -> Result<u64> {
    if let Product::Gguf(_) | Product::GgufLora = product {
        return gguf_folder(b, product, input, at);
    }
    let merged = Merged::open(input.model, input.adapter)?;
    let bytes = match product {
        Product::Adapter => adapter(input, at)?,
        Product::MergedNf4 => nf4(b, &merged, input, at)?,
        _ => whole(b, &merged, input, at)?,
    };
    companions(&merged, input, at)?;
    Ok(bytes)
}

/// A GGUF file alone.
fn gguf_file(b: &dyn Backend, product: Product, input: &Input, at: &Path) -> Result<u64> {
    let merged = Merged::open(input.model, input.adapter)?;
    match product {
        Product::Gguf(quant) => {
            let tokenizer = tokenizer(input, merged.spec.V)?;
            gguf::write(b, &merged, quant, (tokenizer.as_ref(), &input.name()), at)
        }
        _ => {
            let folder = input.adapter.ok_or_else(no_adapter)?;
            gguf::lora::write(&merged.spec, &peft::open_file(folder)?, folder, &input.name(), at)
        }
    }
}

/// The same in a folder, with Ollama's Modelfile for a model.
fn gguf_folder(b: &dyn Backend, product: Product, input: &Input, at: &Path) -> Result<u64> {
    let Product::Gguf(quant) = product else {
        return gguf_file(b, product, input, &at.join(format!("{}-lora.gguf", input.name())));
    };
    let file = format!("{}-{}.gguf", input.name(), quant.name.to_uppercase());
    let bytes = gguf_file(b, product, input, &at.join(&file))?;
    let spec = arch::read_spec(input.model)?;
    let V = input.adapter.map_or(Ok(spec.V), |adapter| peft::vocab(adapter, &spec))?;
    if let Some(tokenizer) = tokenizer(input, V)? {
        folder::write(&at.join("Modelfile"), gguf::modelfile::text(&tokenizer, &file)?.as_bytes())?;
    }
    Ok(bytes)
}

/// That of what comes out, if the model has one at all.
pub fn tokenizer(input: &Input, V: usize) -> Result<Option<Tokenizer>> {
    let own = input.adapter.is_some_and(|adapter| adapter.join("tokenizer.json").is_file());
    match model::check(input.model)?.tokenizer {
        Some(base) => peft::tokenizer(input.adapter, base, V).map(Some),
        None if own => input.adapter.map(Tokenizer::load).transpose(),
        None => Ok(None),
    }
}

fn no_adapter() -> Error {
    Error::Usage("there is no adapter to export: name it with --adapter".into())
}

/// Tokenizer, template and generation config: those of the adapter, and what it lacks of the base.
fn companions(merged: &Merged, input: &Input, at: &Path) -> Result<()> {
    copy_companions(input.model, at)?;
    let Some(adapter) = input.adapter else { return Ok(()) };
    copy_files(adapter, at)?;
    if !at.join("tokenizer.json").is_file() {
        return Ok(());
    }
    let tokenizer = peft::tokenizer(Some(adapter), Tokenizer::load(input.model)?, merged.spec.V)?;
    own_template(&tokenizer, at)
}

/// The adapter's two files under the names that PEFT reads.
fn adapter(input: &Input, at: &Path) -> Result<u64> {
    peft::copy(input.adapter.ok_or_else(no_adapter)?, at)
}

fn outlines(weights: &[(WeightSpec, DType)]) -> Vec<Outline> {
    let outline = |(w, dtype): &(WeightSpec, DType)| Outline {
        name: w.name.clone(),
        dtype: dtype_of(*dtype),
        shape: w.shape.clone(),
    };
    weights.iter().map(outline).collect()
}

/// The base's config for what comes out.
fn config(merged: &Merged, dtype: DType, quantization: Option<Value>, at: &Path) -> Result<()> {
    let mut config = full::config(&merged.folder, dtype, quantization)?;
    config["vocab_size"] = json!(merged.spec.V);
    if merged.untied()? {
        config["tie_word_embeddings"] = json!(false);
    }
    write_json(&at.join("config.json"), &config)
}

fn whole(b: &dyn Backend, merged: &Merged, input: &Input, at: &Path) -> Result<u64> {
    let dtype = input.dtype.map_or_else(|| merged.dtype(), Ok)?;
    let weights = merged.outlines(dtype);
    let of: BTreeMap<&str, &(WeightSpec, DType)> = weights.iter().map(|w| (w.0.name.as_str(), w)).collect();
    let outlines = outlines(&weights);
    let total = outlines.iter().map(|o| o.bytes() as u64).sum();
    write_shards(at, outlines, |name| merged.bytes(b, &of[name].0, of[name].1))?;
    config(merged, dtype, None, at).map(|()| total)
}

fn nf4(b: &dyn Backend, merged: &Merged, input: &Input, at: &Path) -> Result<u64> {
    bnb::check(&merged.spec)?;
    let (format, dtype) = (bnb::Format::Nf4, input.dtype.map_or_else(|| merged.dtype(), Ok)?);
    let weights = merged.outlines(dtype);
    let of: BTreeMap<&str, &(WeightSpec, DType)> = weights.iter().map(|w| (w.0.name.as_str(), w)).collect();
    let linear = bnb::modules(&merged.spec);
    let bytes = |name: &str| merged.bytes(b, &of[name].0, of[name].1);
    let parts = |module: &str, O: usize, C: usize| {
        let bytes = bytes(&format!("{module}.weight"))?;
        quantize::quantized(b, &Floats { dtype, bytes: bytes.into() }, dtype, O, C, format)
    };
    let total = bnb::write(at, outlines(&weights), format, dtype, &linear, bytes, parts)?;
    config(merged, dtype, Some(bnb::config(format, dtype, &merged.spec, &linear)), at).map(|()| total)
}
