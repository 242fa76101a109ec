//! `luthier export`: a model and its adapter in, one product out.
use super::{download, dtype, out};
use clap::Args;
use luthier::backend::pick;
use luthier::dtype::DType;
use luthier::export::gguf::{QUANTS, Quant};
use luthier::export::product::{self, Input, PRODUCTS, Product};
use luthier::io::hub::Kind;
use luthier::{Error, Result};
use std::path::PathBuf;

/// Merge an adapter into its model, or write either in the form that another tool loads.
#[derive(Args)]
pub struct Export {
    /// The model: a folder as Hugging Face writes it, its name on the Hub (`org/name`, `org/name@revision`), or a GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// The adapter: a folder as PEFT writes it, or its name on the Hub.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// The model in 16 bits that a quantized one was made from: the adapter goes into it instead.
    #[arg(long)]
    base: Option<PathBuf>,
    #[arg(long, value_parser = PRODUCTS)]
    format: String,
    /// With --format gguf: what most tensors are stored in, as llama.cpp calls it.
    #[arg(long, default_value = "q8_0", value_parser = QUANTS.map(|quant| quant.name), ignore_case = true)]
    quant: String,
    /// What to make; it must not be there yet. A name that ends in .gguf is a GGUF file alone, any other a folder.
    #[arg(long)]
    out: PathBuf,
    /// Storage of floats; the base's own 16 bits if not given.
    #[arg(long, value_parser = dtype)]
    dtype: Option<DType>,
    /// Where to run.
    #[arg(long, default_value = "cpu", value_parser = pick::NAMES.to_vec())]
    backend: String,
}

impl Export {
    pub fn run(self) -> Result<()> {
        let product = Quant::parse(&self.quant).and_then(|quant| Product::parse(&self.format, quant));
        let product = product.ok_or_else(|| Error::Bug(format!("format {} {}", self.format, self.quant)))?;
        luthier::export::publish::vacant(&self.out)?;
        let model = download::resolve(self.base.as_ref().unwrap_or(&self.model), Kind::Model)?;
        let adapter = self.adapter.as_ref().map(|adapter| download::resolve(adapter, Kind::Adapter)).transpose()?;
        let (backend, which) = pick::pick(&self.backend)?;
        super::say!("{which}");
        let named = self.adapter.as_ref().unwrap_or(&self.model).file_stem().map(|name| name.to_string_lossy());
        let name = named.as_deref();
        let input = Input { model: &model, adapter: adapter.as_deref(), dtype: self.dtype, name };
        let bytes = product::export(&*backend, product, &input, &self.out, |_| Ok(()))?;
        out(&format!("{}: {:.1} MiB\n", self.out.display(), bytes as f64 / (1 << 20) as f64))
    }
}
