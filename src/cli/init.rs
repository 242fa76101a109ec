//! `luthier init`: a model of random weights, to be pretrained.
use super::{dtype, out};
use clap::Args;
use luthier::dtype::DType;
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
}

impl Init {
    pub fn run(self) -> Result<()> {
        if self.out.join("config.json").exists() {
            let what = format!("--out {}: holds a model already; choose another folder", self.out.display());
            return Err(Error::Usage(what));
        }
        let parameters = export::init::init(&self.config, &self.out, self.dtype, self.seed)?;
        let beside = if self.config.is_dir() { Some(self.config.as_path()) } else { self.config.parent() };
        if let Some(folder) = beside {
            export::folder::copy_companions(folder, &self.out)?;
        }
        out(&format!("{}: {parameters} parameters\n", self.out.display()))
    }
}
