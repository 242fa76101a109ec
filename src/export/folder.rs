//! The files beside the weights: tokenizer, chat template, generation config.
use crate::data::gguf::companions;
use crate::data::{Template, Tokenizer};
use crate::error::{Error, Result};
use crate::io::gguf::{self, Gguf};
use crate::io::hub::COMPANIONS;
use std::path::Path;

/// It wins over the entry in tokenizer_config.json.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Copies the tokenizer's files, template and generation config of `model` that exist, or makes them from a GGUF file.
pub fn copy_companions(model: &Path, out: &Path) -> Result<()> {
    let Some(file) = gguf::find(model)? else { return copy_files(model, out) };
    let beside = file.parent().unwrap_or(Path::new(""));
    if beside.join("tokenizer.json").exists() {
        return copy_files(beside, out);
    }
    let gguf = Gguf::open(&file)?;
    // a model may come without a tokenizer
    let made = if gguf.get("tokenizer.ggml.model").is_some() { companions(&gguf)? } else { Vec::new() };
    made.iter().try_for_each(|(name, json)| write_json(&out.join(name), json))
}

/// The same of a folder of any kind, an adapter's for one.
pub fn copy_files(folder: &Path, out: &Path) -> Result<()> {
    for name in COMPANIONS {
        let from = folder.join(name);
        if from.is_file() {
            let bytes = std::fs::read(&from).map_err(Error::read(&from))?;
            write(&out.join(name), &bytes)?;
        }
    }
    Ok(())
}

/// Writes the template that a model was trained with, which goes over its own one.
pub fn chat_template(name: &str, tokenizer: &Tokenizer, out: &Path) -> Result<()> {
    write(&out.join(CHAT_TEMPLATE), Template::portable(name, tokenizer)?.as_bytes())
}

/// Writes the tokenizer's own template where it goes over any other.
pub fn own_template(tokenizer: &Tokenizer, out: &Path) -> Result<()> {
    tokenizer.chat_template().map_or(Ok(()), |own| write(&out.join(CHAT_TEMPLATE), own.text.as_bytes()))
}

/// A whole file on disk.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(Error::write(path))?;
    std::fs::File::open(path).and_then(|f| f.sync_all()).map_err(Error::write(path))
}

/// A JSON file, indented as Hugging Face writes it.
pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::Bug(e.to_string()))?;
    text.push(b'\n');
    write(path, &text)
}
