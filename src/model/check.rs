//! A model folder looked at before anything is allocated: what does not fit together, all of it.
use super::arch;
use super::quantized::{self, INT8_PARTS, MXFP4_PARTS, NF4_PARTS, Scheme};
use super::spec::{Head, Spec};
use super::weights::Weights;
use crate::data::Tokenizer;
use crate::data::gguf::has_tokenizer;
use crate::error::{Error, Result};
use crate::io::gguf::{self, Gguf};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A folder as far as it could be read, and what is wrong with it.
pub struct Checked {
    pub folder: PathBuf,
    /// `None`: the config is wrong.
    pub spec: Option<Spec>,
    pub scheme: Option<Scheme>,
    /// `None`: the files are wrong.
    pub tensors: Option<Weights>,
    /// `None`: there is none, or it is wrong.
    pub tokenizer: Option<Tokenizer>,
    pub mismatches: Vec<Error>,
}

/// Checks config, tensors and tokenizer of a Hugging Face folder or a GGUF file against one another. Files that are not there, or
/// cannot be read, are an error; what they say wrongly is listed in [`Checked::mismatches`].
pub fn check(folder: &Path) -> Result<Checked> {
    let mut mismatches = Vec::new();
    let (spec, faults) = listed(arch::read_spec_and_faults(folder), &mut mismatches)?.unwrap_or_default();
    let whole = faults.is_empty();
    mismatches.extend(faults);
    let scheme = listed(quantized::scheme(folder), &mut mismatches)?;
    let tensors = listed(Weights::open(folder, spec.as_ref()), &mut mismatches)?;
    let has_tokenizer = match gguf::find(folder)? {
        Some(file) => {
            let inside = || Gguf::open(&file).is_ok_and(|gguf| has_tokenizer(&gguf));
            file.with_file_name("tokenizer.json").exists() || inside()
        }
        None => ["tokenizer.json", "tokenizer.model"].iter().any(|name| folder.join(name).exists()),
    };
    let tokenizer = if has_tokenizer { listed(Tokenizer::load(folder), &mut mismatches)? } else { None };
    if let (Some(spec), Some(scheme), Some(tensors)) = (&spec, scheme, &tensors) {
        mismatches.extend(weights(spec, scheme, tensors));
    }
    if let (Some(spec), Some(tokenizer)) = (&spec, &tokenizer)
        && tokenizer.vocab_size() > spec.V
    {
        let (ids, V) = (tokenizer.vocab_size(), spec.V);
        let what = format!("{ids} tokens, but the model's embedding has {V} rows: not this model's tokenizer");
        mismatches.push(Error::content(tokenizer.file(), "", what));
    }
    let folder = folder.to_path_buf();
    let spec = spec.filter(|_| whole);
    Ok(Checked { folder, spec, scheme: scheme.flatten(), tensors, tokenizer, mismatches })
}

/// What is wrong with a file's content is put on the list; any other error ends the check.
fn listed<T>(read: Result<T>, mismatches: &mut Vec<Error>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(e @ Error::Content { .. }) => {
            mismatches.push(e);
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

impl Checked {
    /// What a run starts from: no mismatch, and a tokenizer.
    pub fn sound(mut self) -> Result<(Spec, Tokenizer)> {
        let (tokenizer, folder) = (self.tokenizer.take(), self.folder.clone());
        let spec = self.spec()?;
        Ok((spec, tokenizer.map_or_else(|| Tokenizer::load(&folder), Ok)?))
    }

    /// No mismatch, whether or not there is a tokenizer.
    pub fn spec(self) -> Result<Spec> {
        first(self.mismatches, &self.folder)?;
        self.spec.ok_or_else(|| Error::Bug("a model without a mismatch has a spec".into()))
    }
}

/// The first of several mismatches as the error, with a word about the others.
pub(super) fn first(mismatches: Vec<Error>, folder: &Path) -> Result<()> {
    let others = mismatches.len().saturating_sub(1);
    match mismatches.into_iter().next() {
        None => Ok(()),
        Some(Error::Content { file, at, what }) if others > 0 => {
            let what = format!("{what} (and {others} more: `luthier inspect {}` lists them)", folder.display());
            Err(Error::Content { file, at, what })
        }
        Some(e) => Err(e),
    }
}

/// Tensors that older transformers stored beside the weights, and newer ones leave alone: frequencies and causal masks.
const BUFFERS: &[&str] =
    &["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"];
/// Whether a tensor is of a layer after the last, which predicts further tokens and which nothing here reads.
pub fn ignored(spec: &Spec, tensor: &str) -> bool {
    let after = spec.layers..spec.layers + spec.ignored_layers;
    after.into_iter().any(|layer| tensor.starts_with(&spec.names.of(layer, "")))
}

/// Missing, misshapen, wrongly stored and unexpected tensors.
pub(super) fn weights(spec: &Spec, scheme: Option<Scheme>, tensors: &Weights) -> Vec<Error> {
    let mut wrong = Vec::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut quantized = 0;
    for w in spec.weights() {
        let stored = tensors.find(&w.name, &w.shape).map(|stored| stored.scheme());
        if !matches!(stored, Ok(None)) {
            let module = w.name.strip_suffix(".weight").unwrap_or(&w.name);
            known.extend(MXFP4_PARTS.iter().map(|part| format!("{}{part}", w.name)));
            known.extend(NF4_PARTS.iter().map(|part| format!("{}{part}", w.name)));
            known.extend(INT8_PARTS.iter().map(|part| format!("{module}{part}")));
        }
        match stored {
            Err(e) => wrong.push(e),
            // experts in a GGUF file may be in MXFP4, beside what is in other blocks
            Ok(Some(Scheme::Mxfp4)) if scheme == Some(Scheme::Gguf) => quantized += 1,
            Ok(Some(stored)) if Some(stored) != scheme => {
                let says = scheme.map_or("no quantization", Scheme::name);
                let what = format!("is stored as {}, but config.json says {says}", stored.name());
                wrong.push(Error::content(tensors.path(), &w.name, what));
            }
            Ok(stored) => quantized += usize::from(stored.is_some()),
        }
        known.insert(w.name);
    }
    if let Some(scheme) = scheme.filter(|_| quantized == 0 && wrong.is_empty()) {
        let what = format!("says {}, but every weight is a float: take the key out", scheme.name());
        wrong.push(Error::content(tensors.path().with_file_name("config.json"), "quantization_config", what));
    }
    let head = format!("{}.weight", spec.names.head);
    let harmless = |name: &str| {
        let buffer = BUFFERS.iter().any(|end| name.ends_with(end));
        buffer || (spec.head == Head::Tied && name == head) || ignored(spec, name)
    };
    let extra = tensors.names().filter(|name| !known.contains(*name) && !harmless(name));
    wrong.extend(extra.map(|name| Error::content(tensors.path(), name, "the config knows no such tensor")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_after_the_last_are_ignored_as_far_as_the_config_says() {
        let text = include_str!("../../tests/golden/deepseek_v3/config.json");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let spec = arch::read_spec(dir.path()).unwrap();
        assert_eq!((spec.layers, spec.ignored_layers), (2, 1));
        assert!(ignored(&spec, "model.layers.2.eh_proj.weight"));
        for name in
            ["model.layers.1.mlp.gate.weight", "model.layers.20.eh_proj.weight", "model.layers.3.eh_proj.weight"]
        {
            assert!(!ignored(&spec, name), "{name}");
        }
    }
}
