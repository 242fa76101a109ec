//! `luthier quantize`: a model of floats in, a bitsandbytes folder out.
use super::{download, out};
use clap::Args;
use luthier::backend::pick;
use luthier::export::bnb::{FORMATS, Format};
use luthier::io::hub::Kind;
use luthier::{Error, Result, export};
use std::path::PathBuf;

/// Store a model's linear layers in 4 or 8 bits, as bitsandbytes does; transformers loads the result.
#[derive(Args)]
pub struct Quantize {
    /// The model: a folder as Hugging Face writes it, or its name on the Hub (`org/name`, `org/name@revision`).
    #[arg(long)]
    model: PathBuf,
    /// The folder to make; it must not hold a model yet.
    #[arg(long)]
    out: PathBuf,
    /// NF4 with double quantization, or 8 bits with one scale a row.
    #[arg(long, default_value = "bnb-nf4", value_parser = FORMATS)]
    format: String,
    /// Where to run.
    #[arg(long, default_value = "auto", value_parser = pick::NAMES.to_vec())]
    backend: String,
}

impl Quantize {
    pub fn run(mut self) -> Result<()> {
        if self.out.join("config.json").exists() {
            let what = format!("--out {}: holds a model already; choose another folder", self.out.display());
            return Err(Error::Usage(what));
        }
        self.model = download::resolve(&self.model, Kind::Model)?;
        let format = Format::parse(&self.format).ok_or_else(|| Error::Bug(format!("format {}", self.format)))?;
        let (backend, which) = pick::pick(&self.backend)?;
        super::say!("{which}");
        let (before, after) = export::quantize::quantize(&*backend, &self.model, &self.out, format)?;
        export::folder::copy_companions(&self.model, &self.out)?;
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        out(&format!("{}: {:.1} MiB, was {:.1} MiB\n", self.out.display(), mib(after), mib(before)))
    }
}
