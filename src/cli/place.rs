//! A model as the commands that talk with it take it: where it is, where it runs, how it is held.
use super::{download, dtype};
use clap::Args;
use luthier::backend::{Backend, pick};
use luthier::dtype::DType;
use luthier::error::Result;
use luthier::export::peft;
use luthier::infer::Options;
use luthier::io::hub::Kind;
use luthier::model::Model;
use luthier::model::load::LoadOptions;
use luthier::train::config::Bytes;
use std::path::{Path, PathBuf};

/// Where a model is, where it runs, and how it is held.
#[derive(Args, Clone)]
pub struct Place {
    /// The model: a folder as Hugging Face writes it, its name on the Hub (`org/name`, `org/name@revision`), or a GGUF file.
    #[arg(long)]
    pub model: PathBuf,
    /// Storage of weights and activations.
    #[arg(long, default_value = "bfloat16", value_parser = dtype)]
    pub dtype: DType,
    /// Quantize the linear layers to 4 bits (NF4) while loading.
    #[arg(long)]
    pub load_in_4bit: bool,
    /// Quantize the linear layers to 8 bits while loading.
    #[arg(long)]
    pub load_in_8bit: bool,
    /// Where to run.
    #[arg(long, default_value = "auto", value_parser = pick::NAMES.to_vec())]
    pub backend: String,
    /// Memory for keys and values: 4GiB, 512MiB. Without it, what is wanted, or most of what the device has left.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub kv_cache: Option<u64>,
    /// Tokens of a prompt and its answer, at most. Without it, what the model was made for.
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
}

fn bytes(text: &str) -> Result<u64, String> {
    Bytes::parse(text).map(|Bytes(bytes)| bytes).ok_or("a size such as 4GiB or 512MiB is wanted".into())
}

/// An adapter's folder, which may have to be downloaded.
pub fn adapter(path: &Path) -> Result<PathBuf> {
    download::resolve(path, Kind::Adapter)
}

impl Place {
    /// The same with the model in a folder.
    pub fn resolve(&self) -> Result<Place> {
        Ok(Place { model: download::resolve(&self.model, Kind::Model)?, ..self.clone() })
    }

    pub fn pick(&self) -> Result<(Box<dyn Backend>, String)> {
        pick::pick(&self.backend)
    }

    pub fn load(&self, b: &dyn Backend, adapter: Option<&Path>) -> Result<Model> {
        let (load_in_4bit, load_in_8bit) = (self.load_in_4bit, self.load_in_8bit);
        let options = LoadOptions { load_in_4bit, load_in_8bit, ..LoadOptions::frozen(self.dtype) };
        peft::load_model(b, &self.model, adapter, options)
    }

    /// An engine for `sequences` of up to `length` tokens, where the command line does not say more.
    pub fn options(&self, model: &Model, length: usize, sequences: usize) -> Result<Options> {
        let most = Options::default().max_sequences;
        let length = length.min(model.spec.max_positions).max(2);
        let max_length = Some(self.max_length.unwrap_or(length));
        Ok(Options {
            max_sequences: sequences.clamp(1, most),
            max_length,
            kv_cache: self.kv_cache,
            ..Options::default()
        })
    }
}
