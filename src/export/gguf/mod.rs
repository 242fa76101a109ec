//! A model, merged with its adapter, as a GGUF file; see docs/gguf.md.
use super::merge::Merged;
use crate::backend::Backend;
use crate::data::Tokenizer;
use crate::data::gguf::metadata;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::gguf::{Format, Item, Outline, Pairs, Writer};
use crate::model::gguf::{Described, Fix, describe, differences};
use crate::model::{arch, spec::WeightSpec};
use crate::ops::gguf::Packed;
use std::path::Path;

pub mod blocks;
mod kblocks;
pub mod lora;
pub mod mix;
pub mod modelfile;
pub use mix::{QUANTS, Quant};

/// Of the layouts of quantized blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// A tensor of the file, and the weights that it is made of, one after the other.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    weights: Vec<(WeightSpec, Fix)>,
}

/// Writes the file; returns its bytes.
pub fn write(
    b: &dyn Backend,
    merged: &Merged,
    quant: Quant,
    (tokenizer, name): (Option<&Tokenizer>, &str),
    out: &Path,
) -> Result<u64> {
    let spec = &merged.spec;
    let Described { architecture, pairs, extra, places } = describe(spec)?;
    let mut tensors: Vec<Tensor> = Vec::new();
    for weight in spec.weights() {
        let Some(place) = places.get(&weight.name) else {
            return Err(Error::Usage(format!(
                "{} models cannot be written as GGUF: there is no name for {}",
                spec.model_type, weight.name
            )));
        };
        let shape = place.fix.shape(&weight.shape);
        match tensors.iter_mut().find(|tensor| tensor.name == place.tensor) {
            Some(tensor) => tensor.weights.push((weight, place.fix)),
            None => {
                let parts = place.part.map(|(_, of)| of);
                let shape = parts.into_iter().chain(shape).collect();
                tensors.push(Tensor { name: place.tensor.clone(), shape, weights: vec![(weight, place.fix)] });
            }
        }
    }
    let shapes: Vec<_> = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    let formats = quant.formats(spec, &shapes);
    let extras = extra.iter().map(|(name, values)| Outline {
        name: name.to_string(),
        shape: vec![values.len()],
        format: Format::named("F32").expect("a format"),
    });
    let own = shapes.into_iter().zip(&formats).map(|((name, shape), format)| Outline { name, shape, format: *format });
    let mut all: Pairs = vec![
        ("general.architecture".into(), Item::Text(architecture.into())),
        ("general.type".into(), Item::Text("model".into())),
        ("general.name".into(), Item::Text(name.into())),
        ("general.file_type".into(), Item::U32(quant.id)),
        ("general.quantization_version".into(), Item::U32(QUANTIZATION_VERSION)),
    ];
    all.extend(pairs);
    if let Some(tokenizer) = tokenizer {
        all.extend(metadata(tokenizer, spec.V)?);
    }
    let mut writer = Writer::create(out, &all, extras.chain(own).collect())?;
    for (_, values) in &extra {
        writer.write(&DType::F32.encode(values))?;
    }
    for (tensor, format) in tensors.iter().zip(formats) {
        let mut bytes = Vec::new();
        for (weight, fix) in &tensor.weights {
            let values = fix.to_gguf(merged.values(b, weight)?, &weight.shape);
            bytes.extend(stored(&values, format).map_err(|what| Error::content(&merged.folder, &weight.name, what))?);
        }
        writer.write(&bytes)?;
    }
    writer.finish()?;
    check(merged, out)?;
    Ok(std::fs::metadata(out).map_err(Error::read(out))?.len())
}

/// Values in a format; an error where it cannot hold them.
fn stored(values: &[f32], format: Format) -> Result<Vec<u8>, String> {
    if let Some(bad) = values.iter().find(|x| !x.is_finite()) {
        return Err(format!("holds {bad}, which is no weight"));
    }
    let dtype = match format.name {
        "F32" => DType::F32,
        "BF16" => DType::Bf16,
        "F16" => DType::F16,
        _ => {
            let packed = Packed::of(format).ok_or_else(|| format!("{} cannot be written", format.name))?;
            return Ok(blocks::quantize(packed, values));
        }
    };
    match values.iter().find(|x| dtype == DType::F16 && x.abs() > 65504.0) {
        Some(large) => Err(format!("holds {large}, more than float16 can: choose bf16")),
        None => Ok(super::merge::encode(dtype, values)),
    }
}

/// What was written says the same model: llama.cpp's architectures do not have a word for everything.
fn check(merged: &Merged, out: &Path) -> Result<()> {
    let differ = differences(&merged.spec, &arch::read_spec(out)?);
    if differ.is_empty() {
        return Ok(());
    }
    let what = format!("a GGUF file of this architecture cannot say what this model has: {}", differ.join(", "));
    Err(Error::content(&merged.folder, "", what))
}
