//! `luthier init`: a model of random weights, to be pretrained.
use super::{dtype, out};
use clap::Args;
use luthier::dtype::DType;
use luthier::export::bnb::{FORMATS, Format};
use luthier::{Error, Result, export};
use std::path::PathBuf;

/// Make a model of random weights in the shape that a config.json says.
#[derive(Args)]
pub struct Init {
    /// A `config.json`, or its folder; tokenizer files beside it are copied.
    #[arg(long)]
    config: PathBuf,
    /// The folder to make; it must not hold a model yet.
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// How the weights are stored.
    #[arg(long, default_value = "bfloat16", value_parser = dtype)]
    dtype: DType,
    /// Store the linear layers quantized, as bitsandbytes does: random codes, so that shapes fit whose floats would not.
    #[arg(long, value_parser = FORMATS)]
    format: Option<String>,
}

impl Init {
    pub fn run(self) -> Result<()> {
        if self.out.join("config.json").exists() {
            let what = format!("--out {}: holds a model already; choose another folder", self.out.display());
            return Err(Error::Usage(what));
        }
        let format = self.format.as_deref().and_then(Format::parse);
        let parameters = export::init::init(&self.config, &self.out, self.dtype, format, self.seed)?;
        let beside = if self.config.is_dir() { Some(self.config.as_path()) } else { self.config.parent() };
        if let Some(folder) = beside {
            export::folder::copy_companions(folder, &self.out)?;
        }
        out(&format!("{}: {parameters} parameters\n", self.out.display()))
    }
}
