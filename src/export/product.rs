//! The forms in which a model and its adapter go out.
use super::bnb;
use super::folder::{copy_companions, copy_files, own_template, write_json};
use super::full::{self, write_shards};
use super::merge::Merged;
use super::{peft, publish, quantize};
use crate::backend::Backend;
use crate::data::Tokenizer;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::safetensors::{Outline, dtype_of};
use crate::model::quantized::Floats;
use crate::model::spec::WeightSpec;
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
}

impl Product {
    /// With their names on a command line.
    pub const ALL: [(&str, Product); 3] =
        [("adapter", Product::Adapter), ("merged-16bit", Product::Merged), ("merged-bnb-4bit", Product::MergedNf4)];

    pub fn parse(name: &str) -> Option<Product> {
        Product::ALL.iter().find(|(own, _)| *own == name).map(|(_, product)| *product)
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
}

/// Makes the folder `out`, which must not be there. Returns the bytes of its weights.
pub fn folder(b: &dyn Backend, product: Product, input: &Input, out: &Path) -> Result<u64> {
    publish::folder(out, |at| write_folder(b, product, input, at))
}

/// The same into a folder that is there.
pub fn write_folder(b: &dyn Backend, product: Product, input: &Input, at: &Path) -> Result<u64> {
    let merged = Merged::open(input.model, input.adapter)?;
    let bytes = match product {
        Product::Adapter => adapter(input, at)?,
        Product::Merged => whole(b, &merged, input, at)?,
        Product::MergedNf4 => nf4(b, &merged, input, at)?,
    };
    companions(&merged, input, at)?;
    Ok(bytes)
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
    let Some(folder) = input.adapter else {
        return Err(Error::Usage("there is no adapter to export: name it with --adapter".into()));
    };
    peft::copy(folder, at)
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
