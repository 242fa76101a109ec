//! The weights of a model where they lie: in safetensors or in GGUF files, under the same names.
use super::gguf::GgufWeights;
use super::quantized::{self, Floats, Stored};
use super::spec::Spec;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::gguf::{self, Gguf};
use crate::io::safetensors::Tensors;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub enum Weights {
    Safetensors(Tensors),
    Gguf(GgufWeights),
    /// Of a config alone, for a rehearsal.
    Shapes(Shapes),
}

/// The tensors of a folder, named as `spec` names them.
pub fn safetensors(folder: &Path, spec: Option<&Spec>) -> Result<Tensors> {
    let tensors = Tensors::open_folder(folder, "model")?;
    Ok(match spec {
        Some(Spec { names, .. }) => tensors.with_prefix(&format!("{}.weight", names.embed), names.head),
        None => tensors,
    })
}

/// Weights of zeros that take no memory: their pages are never touched.
pub struct Shapes {
    file: PathBuf,
    names: BTreeSet<String>,
    dtype: DType,
    zeros: memmap2::MmapMut,
}

impl Weights {
    /// Whether there are any in a folder; a config alone has none.
    pub fn are_in(path: &Path) -> Result<bool> {
        if gguf::find(path)?.is_some() {
            return Ok(true);
        }
        let files = ["model.safetensors", "model.safetensors.index.json"];
        Ok(path.is_dir() && files.iter().any(|file| path.join(file).exists()))
    }
    /// Those that a model of this spec has.
    pub fn shapes(path: &Path, spec: &Spec, dtype: DType) -> Result<Weights> {
        let all = spec.weights();
        let largest = all.iter().map(|w| w.shape.iter().product::<usize>()).max().unwrap_or(0);
        let zeros = memmap2::MmapMut::map_anon(largest.max(1) * dtype.size()).map_err(Error::read(path))?;
        let names = all.into_iter().map(|w| w.name).collect();
        Ok(Weights::Shapes(Shapes { file: path.to_path_buf(), names, dtype, zeros }))
    }
    /// Of a folder, or of a GGUF file; of the latter only what `spec` has.
    pub fn open(path: &Path, spec: Option<&Spec>) -> Result<Weights> {
        match gguf::find(path)? {
            Some(file) => Ok(Weights::Gguf(GgufWeights::new(Gguf::open(&file)?, spec))),
            None => safetensors(path, spec).map(Weights::Safetensors),
        }
    }

    pub fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Weights::Safetensors(tensors) => Box::new(tensors.names()),
            Weights::Gguf(weights) => Box::new(weights.names()),
            Weights::Shapes(shapes) => Box::new(shapes.names.iter().map(String::as_str)),
        }
    }
    /// The file that errors about these weights should name.
    pub fn path(&self) -> &Path {
        match self {
            Weights::Safetensors(tensors) => tensors.path(),
            Weights::Gguf(weights) => weights.path(),
            Weights::Shapes(shapes) => &shapes.file,
        }
    }
    /// Tells checkpoints apart without reading them.
    pub fn fingerprint(&self) -> String {
        match self {
            Weights::Safetensors(tensors) => tensors.fingerprint(),
            Weights::Gguf(weights) => weights.gguf().fingerprint(),
            Weights::Shapes(_) => String::new(),
        }
    }
    /// The weight `name` of the given shape.
    pub fn find(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>> {
        match self {
            Weights::Safetensors(tensors) => quantized::find(tensors, name, shape),
            Weights::Gguf(weights) => weights.find(name, shape),
            Weights::Shapes(Shapes { dtype, zeros, .. }) => {
                let bytes = shape.iter().product::<usize>() * dtype.size();
                Ok(Stored::Float(Floats { dtype: *dtype, bytes: zeros[..bytes].into() }))
            }
        }
    }

    /// Tensors and bytes by type.
    pub fn types(&self) -> Result<BTreeMap<String, (u64, u64)>> {
        let mut types: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        let mut add = |kind: String, bytes: &[u8]| {
            let (count, total) = types.entry(kind).or_default();
            (*count, *total) = (*count + 1, *total + bytes.len() as u64);
        };
        match self {
            Weights::Safetensors(tensors) => {
                for name in tensors.names() {
                    let tensor = tensors.get(name)?;
                    add(format!("{:?}", tensor.dtype), tensor.bytes);
                }
            }
            Weights::Gguf(weights) => {
                let tensors = weights.gguf().names().filter_map(|name| weights.gguf().tensor(name));
                tensors.for_each(|tensor| add(tensor.format.name.into(), tensor.bytes));
            }
            Weights::Shapes(_) => {}
        }
        Ok(types)
    }
}
