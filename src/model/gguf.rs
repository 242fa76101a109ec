//! GGUF models as Hugging Face ones: their metadata as a config, their tensors under Hugging Face names and in their layout.
//!
//! Quantized tensors stay in blocks. What llama.cpp's conversion did to a tensor is undone while it is read; see [`names`].
use super::quantized::{Floats, Stored, StoredGguf, StoredMxfp4, Turned};
use super::spec::Spec;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::gguf::Value;
use crate::io::gguf::{Gguf, Tensor};
use crate::ops::gguf::Packed;
use families::Family;
use names::{in_halves, matrix};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

mod config;
mod describe;
mod families;
mod latent;
mod limits;
pub mod mxfp4;
mod names;
mod particular;
mod same;
mod share;
pub use config::config;
pub use describe::{Described, describe};
pub use limits::table;
pub use names::{Fix, Place, Places};
pub use same::differences;
pub use share::Share;

/// A GGUF model's tensors under the names that its [`Spec`] uses.
pub struct GgufWeights {
    gguf: Gguf,
    places: Places,
    /// Tensors that the model has no place for.
    extra: Vec<String>,
}

/// Experts alone are stored in it.
pub const MXFP4: &str = "MXFP4";

/// Tensors that the config is made from.
const IN_CONFIG: [&str; 3] = ["rope_freqs.weight", config::LONG, config::SHORT];

impl GgufWeights {
    /// Without a spec, nothing has a place.
    pub fn new(gguf: Gguf, spec: Option<&Spec>) -> GgufWeights {
        let family = gguf.get("general.architecture").and_then(Value::as_text).and_then(Family::of_architecture);
        let there = |name: &str| gguf.tensor(name).is_some();
        let places = spec.map_or_else(Places::new, |spec| names::places(spec, family, there));
        let used: BTreeSet<&str> =
            places.values().flatten().map(|place| place.tensor.as_str()).chain(IN_CONFIG).collect();
        let extra = gguf.names().filter(|name| !used.contains(name)).map(str::to_string).collect();
        GgufWeights { gguf, places, extra }
    }

    /// Of the tensors that are there, and those without a place as the file calls them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let has = move |place: &Place| self.gguf.tensor(&place.tensor).is_some();
        let there = self.places.iter().filter(move |(_, places)| places.iter().any(has));
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
        match self.places.get(name).map(Vec::as_slice) {
            Some([place]) if !matches!(place.fix, Fix::Share(_)) => self.whole(name, shape, place),
            Some(places) => self.shared(name, shape, places),
            None => Err(Error::content(self.path(), name, "a GGUF file has no name for it")),
        }
    }

    /// The tensor of a place, of the shape that it must have.
    fn tensor(&self, name: &str, shape: &[usize], place: &Place) -> Result<Tensor<'_>> {
        let wrong = |what: String| Err(Error::content(self.path(), name, what));
        let file_name = &place.tensor;
        let Some(tensor) = self.gguf.tensor(file_name) else { return wrong(format!("`{file_name}` is missing")) };
        let parts: Vec<usize> = place.part.iter().map(|(_, of)| *of).collect();
        let want = [&parts[..], &place.fix.shape(shape)].concat();
        match tensor.shape == want {
            true => Ok(tensor),
            false => wrong(format!("`{file_name}` has shape {:?}, the metadata want {want:?}", tensor.shape)),
        }
    }

    /// A weight that is one tensor, or one part of it.
    fn whole(&self, name: &str, shape: &[usize], place: &Place) -> Result<Stored<'_>> {
        let (tensor, file_name) = (self.tensor(name, shape, place)?, &place.tensor);
        let len = tensor.bytes.len() / place.part.map_or(1, |(_, of)| of);
        let first = place.part.map_or(0, |(i, _)| i) * len;
        let bytes = &tensor.bytes[first..first + len];
        if let Some(dtype) = float(tensor) {
            return Ok(Stored::Float(self.fixed_floats(dtype, bytes, shape, place.fix)));
        }
        let (format, P) = (self.packed(name, file_name, tensor)?, shape.iter().product());
        let (bytes, turned) = match place.fix {
            Fix::Keep => (Cow::Borrowed(bytes), None),
            Fix::Interleaved { heads } => (Cow::Owned(in_halves(bytes, shape[0], heads)), None),
            Fix::Rows(layout) => (Cow::Borrowed(bytes), Some(Turned::Rows(layout, matrix(shape)))),
            Fix::PlusOne | Fix::Share(_) => {
                let what = format!("`{file_name}` is in {}; floats are wanted of it", tensor.format.name);
                return Err(Error::content(self.path(), name, what));
            }
        };
        Ok(Stored::Gguf(StoredGguf { format, P, bytes, turned }))
    }

    /// A weight out of its shares: floats, or experts in blocks. What of latent attention is in blocks becomes floats, for the
    /// blocks of the two shares do not lie in the same direction.
    fn shared(&self, name: &str, shape: &[usize], places: &[Place]) -> Result<Stored<'_>> {
        let tensors = places.iter().map(|place| self.tensor(name, shape, place)).collect::<Result<Vec<_>>>()?;
        let format = tensors[0].format;
        if let [E, C, O] = *shape
            && format.len > 1
        {
            if let Some(other) = tensors.iter().position(|tensor| tensor.format != format) {
                let what = format!(
                    "`{}` is in {}, the rest of it in {}",
                    places[other].tensor, tensors[other].format.name, format.name
                );
                return Err(Error::content(self.path(), name, what));
            }
            let rows = rows(&tensors, [E, O, format.size(C)]);
            return Ok(match format.name {
                MXFP4 => Stored::Mxfp4(experts([E, O, C], &rows)),
                _ => {
                    let (format, P) = (self.packed(name, &places[0].tensor, tensors[0])?, E * C * O);
                    Stored::Gguf(StoredGguf { format, P, bytes: rows.into(), turned: Some(Turned::Experts { C, O }) })
                }
            });
        }
        let mut values = vec![0.0; shape.iter().product()];
        for (place, tensor) in places.iter().zip(tensors) {
            let own = match float(tensor) {
                Some(dtype) => dtype.decode(tensor.bytes),
                None => {
                    let format = self.packed(name, &place.tensor, tensor)?;
                    format.decode(tensor.bytes, tensor.shape.iter().product())
                }
            };
            if let Fix::Share(share) = place.fix {
                share.put(&mut values, shape, &own);
            }
        }
        Ok(Stored::Float(Floats { dtype: DType::F32, bytes: DType::F32.encode(&values).into() }))
    }

    /// The format of a tensor in blocks.
    fn packed(&self, name: &str, file_name: &str, tensor: Tensor) -> Result<Packed> {
        Packed::of(tensor.format).ok_or_else(|| {
            let known = Packed::ALL.map(|(_, name)| name).join(", ");
            let what = format!("`{file_name}` is stored as {}, which is not supported", tensor.format.name);
            let what = format!("{what}; F32, F16, BF16, {known} are: take another quantization of the model");
            Error::content(self.path(), name, what)
        })
    }

    fn fixed_floats<'a>(&self, dtype: DType, bytes: &'a [u8], shape: &[usize], fix: Fix) -> Floats<'a> {
        // taking 1 off again wants more digits than 16 bits have
        let held = if fix == Fix::PlusOne { DType::F32 } else { dtype };
        let bytes = match fix {
            Fix::Keep => bytes.into(),
            Fix::Interleaved { heads } => in_halves(bytes, shape[0], heads).into(),
            fix => held.encode(&fix.to_folder(dtype.decode(bytes), shape)).into(),
        };
        Floats { dtype: held, bytes }
    }
}

/// The rows of E experts' O outputs, so many bytes each, out of the tensors of their shares: output o is row o/step of the
/// tensor o mod step.
fn rows(tensors: &[Tensor], [E, O, row]: [usize; 3]) -> Vec<u8> {
    let step = tensors.len();
    let at = |i: usize| {
        let first = (i / O * (O / step) + i % O / step) * row;
        &tensors[i % O % step].bytes[first..first + row]
    };
    (0..E * O).flat_map(at).copied().collect()
}

/// Experts [E, O, C] in MXFP4, from their blocks.
fn experts<'a>([E, O, C]: [usize; 3], blocks: &[u8]) -> StoredMxfp4<'a> {
    let (mut codes, mut scales) = (Vec::with_capacity(E * O * C / 2), Vec::with_capacity(E * O * C / mxfp4::BLOCK));
    mxfp4::split(blocks, &mut codes, &mut scales);
    StoredMxfp4 { shape: [E, O, C], codes: codes.into(), scales: scales.into() }
}

fn float(tensor: Tensor) -> Option<DType> {
    match tensor.format.name {
        "F32" => Some(DType::F32),
        "F16" => Some(DType::F16),
        "BF16" => Some(DType::Bf16),
        _ => None,
    }
}
