//! `luthier quantize`: a model of floats in, a bitsandbytes folder out.
use super::{download, dtype, out};
use clap::Args;
use luthier::backend::{Backend, pick};
use luthier::dtype::DType;
use luthier::export::bnb::{FORMATS, Format};
use luthier::export::dynamic::{self, Report};
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
    /// Keep the linear layers whose outputs suffer most from NF4 as they are, within --size-budget.
    #[arg(long, requires = "calibration", conflicts_with = "format")]
    dynamic: bool,
    /// With --dynamic: text files or records, or names of data sets on the Hub, as for pretraining, that the layers are measured on. A quarter is held out.
    #[arg(long, requires = "dynamic", value_name = "FILE", num_args = 1..)]
    calibration: Vec<String>,
    /// With --dynamic: how many percent larger than with NF4 alone the weights may become.
    #[arg(long, requires = "dynamic", value_name = "PERCENT", default_value_t = 25.0)]
    size_budget: f64,
    /// With --dynamic: storage of weights and activations while they are measured; the model's own if not given.
    #[arg(long, requires = "dynamic", value_parser = dtype)]
    dtype: Option<DType>,
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
        let (backend, which) = pick::pick(&self.backend)?;
        super::say!("{which}");
        let text = match self.dynamic {
            true => self.dynamic(&*backend)?,
            false => {
                let format =
                    Format::parse(&self.format).ok_or_else(|| Error::Bug(format!("format {}", self.format)))?;
                let (before, after) = export::quantize::quantize(&*backend, &self.model, &self.out, format)?;
                format!("{}: {:.1} MiB, was {:.1} MiB\n", self.out.display(), mib(after), mib(before))
            }
        };
        export::folder::copy_companions(&self.model, &self.out)?;
        out(&text)
    }

    fn dynamic(&self, backend: &dyn Backend) -> Result<String> {
        if !(0.0..=1000.0).contains(&self.size_budget) {
            return Err(Error::Usage(format!("--size-budget must be from 0 to 1000, got {}", self.size_budget)));
        }
        let options = dynamic::Options {
            calibration: download::sources(&self.calibration)?,
            size_budget: self.size_budget / 100.0,
            dtype: self.dtype,
            model: &self.model,
            out: &self.out,
        };
        Ok(table(&dynamic::quantize_dynamic(backend, &options)?) + &format!("{}\n", self.out.display()))
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// Every layer with its errors, and what all of it comes to.
fn table(report: &Report) -> String {
    let wide = report.modules.iter().map(|m| m.names[0].len()).max().unwrap_or(0);
    let mut text = format!("{:wide$}  weight error  activation error       MiB\n", "layer");
    for m in &report.modules {
        let (name, kept) = (&m.names[0], if m.kept { "  kept" } else { "" });
        let (weight, activation, cost) = (m.weight_error, m.activation_error, mib(m.cost));
        text += &format!("{name:wide$}  {weight:>12.3e}  {activation:>16.3e}  {cost:>8.2}{kept}\n");
    }
    let (loss, bytes, (measured, held_out)) = (report.loss, report.bytes, report.tokens);
    text += &format!("measured on {measured} tokens; loss of {held_out} held-out tokens, and MiB of the weights:\n");
    for (name, loss, bytes) in [
        ("original", loss.original, bytes.original),
        ("nf4", loss.nf4, bytes.nf4),
        ("dynamic", loss.dynamic, bytes.dynamic),
    ] {
        text += &format!("{name:10} {loss:.5}  {:.1}\n", mib(bytes));
    }
    text
}
