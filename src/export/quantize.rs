//! A model of floats as a bitsandbytes folder, tensor by tensor.
use super::bnb::{self, Format, Parts};
use super::full::write_config;
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::gguf;
use crate::io::safetensors::{Outline, Tensors};
use crate::model;
use crate::model::linear::{Int8Weight, Nf4Scales, Nf4Weight};
use crate::model::quantized::{Floats, quantize_int8, quantize_nf4, staged};
use crate::model::spec::Spec;
use crate::model::weights::safetensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A model of floats, to be stored smaller.
pub(super) struct Source {
    folder: PathBuf,
    pub spec: Spec,
    pub tensors: Tensors,
    /// Of the embedding, which stays.
    pub dtype: DType,
}

impl Source {
    pub fn open(folder: &Path) -> Result<Source> {
        if let Some(file) = gguf::find(folder)? {
            let what =
                "is a GGUF file, and its tensors are stored as they are: name the Hugging Face folder it was made from";
            return Err(Error::content(file, "", what));
        }
        let checked = model::check(folder)?;
        if let Some(scheme) = checked.scheme {
            let what = format!("is {} already: name the original", scheme.name());
            return Err(Error::content(folder.join("config.json"), "quantization_config", what));
        }
        let spec = checked.spec()?;
        bnb::check(&spec)?;
        let tensors = safetensors(folder, Some(&spec))?;
        let dtype = tensors.get(&format!("{}.weight", spec.names.embed))?.float().unwrap_or(DType::F32);
        Ok(Source { folder: folder.to_path_buf(), spec, tensors, dtype })
    }

    fn outline(&self, name: &str) -> Result<Outline> {
        let tensor = self.tensors.get(name)?;
        Ok(Outline { name: name.to_string(), dtype: tensor.dtype, shape: tensor.shape.to_vec() })
    }

    fn len(&self, name: &str) -> u64 {
        self.tensors.get(name).map_or(0, |tensor| tensor.bytes.len() as u64)
    }

    /// Bytes that this module takes more as it is than in NF4.
    pub fn cost(&self, module: &str, (O, C): (usize, usize)) -> u64 {
        let small: usize = bnb::outlines(Format::Nf4, self.dtype, module, O, C).iter().map(Outline::bytes).sum();
        self.len(&format!("{module}.weight")).saturating_sub(small as u64)
    }

    /// Bytes of all weights, those in `linear` in NF4.
    pub fn bytes(&self, linear: &BTreeMap<String, (usize, usize)>) -> u64 {
        let all: u64 = self.tensors.names().map(|name| self.len(name)).sum();
        all - linear.iter().map(|(module, shape)| self.cost(module, *shape)).sum::<u64>()
    }
}

/// Reads the folder `model`, and writes `out` with its linear layers quantized on `b`; all other tensors as they are.
/// Returns the bytes of the weights before and after.
pub fn quantize(b: &dyn Backend, model: &Path, out: &Path, format: Format) -> Result<(u64, u64)> {
    let source = Source::open(model)?;
    let linear = bnb::modules(&source.spec);
    write(b, &source, out, format, &linear)
}

/// The same with only the modules in `linear` quantized.
pub(super) fn write(
    b: &dyn Backend,
    source: &Source,
    out: &Path,
    format: Format,
    linear: &BTreeMap<String, (usize, usize)>,
) -> Result<(u64, u64)> {
    let Source { folder, spec, tensors, dtype } = source;
    let plain: Vec<Outline> = tensors.names().map(|name| source.outline(name)).collect::<Result<_>>()?;
    std::fs::create_dir_all(out).map_err(Error::write(out))?;
    let whole = |name: &str| Ok(tensors.get(name)?.bytes.to_vec());
    let parts = |module: &str, O: usize, C: usize| {
        let name = format!("{module}.weight");
        quantized(b, &tensors.floats(&name, &[O, C])?.into(), *dtype, O, C, format)
    };
    let before = plain.iter().map(|o| o.bytes() as u64).sum();
    let after = bnb::write(out, plain, format, *dtype, linear, whole, parts)?;
    // last, so that a folder without it is seen to be unfinished
    let config = bnb::config(format, *dtype, spec, linear);
    write_config(&folder.join("config.json"), *dtype, Some(config), &out.join("config.json"))?;
    Ok((before, after))
}

/// The parts of one weight, made on the device.
pub(super) fn quantized(
    b: &dyn Backend,
    floats: &Floats,
    dtype: DType,
    O: usize,
    C: usize,
    format: Format,
) -> Result<Parts> {
    let scope = Scope::new(b);
    let (staged_dtype, bytes) = staged(floats, C);
    let mut inp = scope.alloc(O * C, staged_dtype)?;
    b.upload(&mut inp, &bytes)?;
    let take = |buf: Buf| {
        let bytes = b.download(&buf)?;
        b.free(buf);
        Ok(bytes)
    };
    match format {
        Format::Int8 => {
            let Int8Weight { codes, scb } = quantize_int8(b, &inp, O, C)?;
            Ok(bnb::int8_parts(take(codes)?, take(scb)?))
        }
        Format::Nf4 => match quantize_nf4(b, &inp)? {
            Nf4Weight { codes, scales: Nf4Scales::Double { qabsmax, nested, map, offset } } => {
                let (codes, qabsmax) = (take(codes)?, take(qabsmax)?);
                Ok(bnb::nf4_parts(dtype, (O, C), codes, qabsmax, take(nested)?, take(map)?, offset))
            }
            _ => Err(Error::Bug("quantize_nf4 quantizes the scales too".into())),
        },
    }
}
