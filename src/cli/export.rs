//! `luthier export`: a model and its adapter in, one product out.
use super::{download, dtype, out};
use clap::Args;
use luthier::backend::pick;
use luthier::dtype::DType;
use luthier::export::card::Card;
use luthier::export::gguf::{QUANTS, Quant};
use luthier::export::product::{self, Input, PRODUCTS, Product};
use luthier::export::verify::verify;
use luthier::io::hub::{Hub, Kind};
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
    /// Upload what was written to this name on the Hub, which is made if it is not there, with a model card. HF_TOKEN must hold a
    /// token that may write.
    #[arg(long, value_name = "ORG/NAME")]
    push: Option<String>,
    /// With --push: a repository that is made is private.
    #[arg(long, requires = "push")]
    private: bool,
    /// Do not load what was written to compare it with model and adapter.
    #[arg(long)]
    no_verify: bool,
    /// Where to run.
    #[arg(long, default_value = "cpu", value_parser = pick::NAMES.to_vec())]
    backend: String,
}

impl Export {
    pub fn run(self) -> Result<()> {
        let product = Quant::parse(&self.quant).and_then(|quant| Product::parse(&self.format, quant));
        let product = product.ok_or_else(|| Error::Bug(format!("format {} {}", self.format, self.quant)))?;
        luthier::export::publish::vacant(&self.out)?;
        if self.push.is_some() && self.out.extension().is_some_and(|e| e == "gguf") {
            return Err(Error::Usage("--push uploads a folder: give --out a name that does not end in .gguf".into()));
        }
        let model = download::resolve(self.base.as_ref().unwrap_or(&self.model), Kind::Model)?;
        let adapter = self.adapter.as_ref().map(|adapter| download::resolve(adapter, Kind::Adapter)).transpose()?;
        let (backend, which) = pick::pick(&self.backend)?;
        super::say!("{which}");
        let named = self.adapter.as_ref().unwrap_or(&self.model).file_stem().map(|name| name.to_string_lossy());
        let name = named.as_deref();
        let input = Input { model: &model, adapter: adapter.as_deref(), dtype: self.dtype, name };
        let mut found = None;
        let bytes = product::export(&*backend, product, &input, &self.out, |at| {
            if !self.no_verify {
                found = Some(verify(&*backend, product, &input, at)?);
            }
            Ok(())
        })?;
        if let Some(found) = found {
            out(&super::compare::shown(&found))?;
        }
        out(&format!("{}: {:.1} MiB\n", self.out.display(), bytes as f64 / (1 << 20) as f64))?;
        match &self.push {
            Some(repo) => self.push(repo, product, &input),
            None => Ok(()),
        }
    }

    fn push(&self, repo: &str, product: Product, input: &Input) -> Result<()> {
        let base = self.base.as_ref().unwrap_or(&self.model).to_string_lossy();
        let name = repo.rsplit('/').next().unwrap_or(repo);
        let card = Card { name, base: &base, product, model: input.model, adapter: input.adapter };
        let file = self.out.join("README.md");
        std::fs::write(&file, card.text()?).map_err(Error::write(&file))?;
        let mut shown = download::Download::default();
        let page = Hub::from_env().push(repo, self.private, &self.out, "Upload with luthier", &mut |event| {
            shown.show(event);
            true
        })?;
        out(&format!("{page}\n"))
    }
}
