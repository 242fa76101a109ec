//! The weights of a model where they lie: in safetensors or in GGUF files, under the same names.
use super::gguf::GgufWeights;
use super::quantized::{self, Stored};
use super::spec::Spec;
use crate::error::Result;
use crate::io::gguf::{self, Gguf};
use crate::io::safetensors::Tensors;
use std::collections::BTreeMap;
use std::path::Path;

pub enum Weights {
    Safetensors(Tensors),
    Gguf(GgufWeights),
}

/// The tensors of a folder, named as `spec` names them.
pub fn safetensors(folder: &Path, spec: Option<&Spec>) -> Result<Tensors> {
    let tensors = Tensors::open_folder(folder, "model")?;
    Ok(match spec {
        Some(Spec { names, .. }) => tensors.with_prefix(&format!("{}.weight", names.embed), names.head),
        None => tensors,
    })
}

impl Weights {
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
        }
    }
    /// The file that errors about these weights should name.
    pub fn path(&self) -> &Path {
        match self {
            Weights::Safetensors(tensors) => tensors.path(),
            Weights::Gguf(weights) => weights.path(),
        }
    }
    /// Tells checkpoints apart without reading them.
    pub fn fingerprint(&self) -> String {
        match self {
            Weights::Safetensors(tensors) => tensors.fingerprint(),
            Weights::Gguf(weights) => weights.gguf().fingerprint(),
        }
    }
    /// The weight `name` of the given shape.
    pub fn find(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>> {
        match self {
            Weights::Safetensors(tensors) => quantized::find(tensors, name, shape),
            Weights::Gguf(weights) => weights.find(name, shape),
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
        }
        Ok(types)
    }
}
