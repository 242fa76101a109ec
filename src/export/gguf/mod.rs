//! A model, merged with its adapter, as a GGUF file; see docs/gguf.md.
use super::merge::{LARGEST_F16, Merged};
use crate::backend::Backend;
use crate::data::Tokenizer;
use crate::data::gguf::{NONE, metadata};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::gguf::{Format, Item, Outline, Pairs, Writer};
use crate::model::gguf::{Described, Fix, MXFP4, Place, Share, describe, differences};
use crate::model::quantized::StoredMxfp4;
use crate::model::{arch, spec::WeightSpec};
use crate::ops::gguf::Packed;
use std::path::Path;

pub mod blocks;
mod kblocks;
pub mod lora;
pub mod mix;
pub mod modelfile;
pub mod unlora;
pub use mix::{QUANTS, Quant};

/// Of the layouts of quantized blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// A tensor of the file, and the weights that it is made of, one after the other.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    weights: Vec<(WeightSpec, Fix)>,
}

impl Tensor {
    /// With the first of its weights.
    fn of(weight: WeightSpec, place: &Place) -> Tensor {
        let shape = place.part.map(|(_, of)| of).into_iter().chain(place.fix.shape(&weight.shape)).collect();
        Tensor { name: place.tensor.clone(), shape, weights: vec![(weight, place.fix)] }
    }

    /// Experts that are in MXFP4 stay so, whatever is asked of other tensors; and which of their outputs are in this one.
    fn packed<'m>(&self, merged: &'m Merged, b: &dyn Backend) -> Result<Option<(StoredMxfp4<'m>, usize, usize)>> {
        match &self.weights[..] {
            [(weight, Fix::Share(Share::Experts { first, step }))] => {
                Ok(merged.packed_experts(b, weight)?.map(|experts| (experts, *first, *step)))
            }
            _ => Ok(None),
        }
    }
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
        let Some(own) = places.get(&weight.name) else {
            return Err(Error::Usage(format!(
                "{} models cannot be written as GGUF: there is no name for {}",
                spec.model_type, weight.name
            )));
        };
        for place in own {
            match tensors.iter_mut().find(|tensor| tensor.name == place.tensor) {
                Some(tensor) => tensor.weights.push((weight.clone(), place.fix)),
                None => tensors.push(Tensor::of(weight.clone(), place)),
            }
        }
    }
    let shapes: Vec<_> = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    let mut formats = quant.formats(spec, &shapes);
    for (tensor, format) in tensors.iter().zip(&mut formats) {
        if tensor.packed(merged, b)?.is_some() {
            *format = Format::named(MXFP4).expect("a format");
        }
    }
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
    match tokenizer {
        Some(tokenizer) => all.extend(metadata(tokenizer, spec.V)?),
        // llama.cpp wants to be told
        None => all.push(("tokenizer.ggml.model".into(), Item::Text(NONE.into()))),
    }
    let mut writer = Writer::create(out, &all, extras.chain(own).collect())?;
    for (_, values) in &extra {
        writer.write(&DType::F32.encode(values))?;
    }
    for (tensor, format) in tensors.iter().zip(formats) {
        if let Some((experts, first, step)) = tensor.packed(merged, b)? {
            writer.write(&experts.rows(first, step))?;
            continue;
        }
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
    match values.iter().find(|x| dtype == DType::F16 && x.abs() > LARGEST_F16) {
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
