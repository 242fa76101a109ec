//! GGUF models as Hugging Face ones: their metadata as a config, their tensors under Hugging Face names and in their layout.
//!
//! Quantized tensors stay in blocks. What llama.cpp's conversion did to a tensor is undone while it is read; see [`names`].
use super::quantized::{Floats, Stored, StoredGguf};
use super::spec::Spec;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::gguf::{Gguf, Tensor};
use crate::ops::gguf::Packed;
use crate::io::gguf::Value;
use families::Family;
use names::{in_halves, matrix};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

mod config;
mod describe;
mod families;
mod names;
mod particular;
mod same;
pub use config::config;
pub use describe::{Described, describe};
pub use names::{Fix, Place};
pub use same::differences;

/// A GGUF model's tensors under the names that its [`Spec`] uses.
pub struct GgufWeights {
    gguf: Gguf,
    places: BTreeMap<String, Place>,
    /// Tensors that the model has no place for.
    extra: Vec<String>,
}

/// Tensors that the config is made from.
const IN_CONFIG: [&str; 3] = ["rope_freqs.weight", config::LONG, config::SHORT];

impl GgufWeights {
    /// Without a spec, nothing has a place.
    pub fn new(gguf: Gguf, spec: Option<&Spec>) -> GgufWeights {
        let family = gguf.get("general.architecture").and_then(Value::as_text).and_then(Family::of_architecture);
        let there = |name: &str| gguf.tensor(name).is_some();
        let places = spec.map_or_else(BTreeMap::new, |spec| names::places(spec, family, there));
        let used: BTreeSet<&str> = places.values().map(|place| place.tensor.as_str()).chain(IN_CONFIG).collect();
        let extra = gguf.names().filter(|name| !used.contains(name)).map(str::to_string).collect();
        GgufWeights { gguf, places, extra }
    }

    /// Of the tensors that are there, and those without a place as the file calls them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let there = self.places.iter().filter(|(_, place)| self.gguf.tensor(&place.tensor).is_some());
        there.map(|(name, _)| name.as_str()).chain(self.extra.iter().map(String::as_str))
    }
    pub fn path(&self) -> &Path {
        self.gguf.path()
    }
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The weight `name` of the given shape.
    pub fn find(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>> {
        let wrong = |what: String| Err(Error::content(self.path(), name, what));
        let Some(place) = self.places.get(name) else { return wrong("a GGUF file has no name for it".into()) };
        let file_name = &place.tensor;
        let Some(tensor) = self.gguf.tensor(file_name) else { return wrong(format!("`{file_name}` is missing")) };
        let parts: Vec<usize> = place.part.iter().map(|(_, of)| *of).collect();
        let want = [&parts[..], &place.fix.shape(shape)].concat();
        if tensor.shape != want {
            return wrong(format!("`{file_name}` has shape {:?}, the metadata want {want:?}", tensor.shape));
        }
        let len = tensor.bytes.len() / place.part.map_or(1, |(_, of)| of);
        let first = place.part.map_or(0, |(i, _)| i) * len;
        let bytes = &tensor.bytes[first..first + len];
        if let Some(dtype) = float(tensor) {
            return Ok(Stored::Float(self.fixed_floats(dtype, bytes, shape, place.fix)));
        }
        let Some(format) = Packed::of(tensor.format) else {
            let known = Packed::ALL.map(|(_, name)| name).join(", ");
            let what = format!("`{file_name}` is stored as {}, which is not supported", tensor.format.name);
            return wrong(format!("{what}; F32, F16, BF16, {known} are: take another quantization of the model"));
        };
        let (P, bytes) = (
            shape.iter().product(),
            match place.fix {
                Fix::Keep => Cow::Borrowed(bytes),
                Fix::Interleaved { heads } => Cow::Owned(in_halves(bytes, shape[0], heads)),
                Fix::PlusOne | Fix::Rows(_) => {
                    return wrong(format!("`{file_name}` is in {}; floats are wanted of it", tensor.format.name));
                }
            },
        );
        Ok(Stored::Gguf(StoredGguf { format, P, bytes }))
    }

    fn fixed_floats<'a>(&self, dtype: DType, bytes: &'a [u8], shape: &[usize], fix: Fix) -> Floats<'a> {
        match fix {
            Fix::Keep => Floats { dtype, bytes: bytes.into() },
            Fix::Interleaved { heads } => Floats { dtype, bytes: in_halves(bytes, shape[0], heads).into() },
            Fix::Rows(layout) => {
                let values = layout.to_file(&dtype.decode(bytes), matrix(shape), 1);
                Floats { dtype, bytes: dtype.encode(&values).into() }
            }
            Fix::PlusOne => {
                let values: Vec<f32> = dtype.decode(bytes).iter().map(|x| x - 1.0).collect();
                Floats { dtype: DType::F32, bytes: DType::F32.encode(&values).into() }
            }
        }
    }
}

fn float(tensor: Tensor) -> Option<DType> {
    match tensor.format.name {
        "F32" => Some(DType::F32),
        "F16" => Some(DType::F16),
        "BF16" => Some(DType::Bf16),
        _ => None,
    }
}
