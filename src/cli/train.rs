//! `luthier train`: a config in, a run out.
use super::{interrupt, out, progress::Progress};
use clap::Args;
use luthier::Result;
use luthier::backend::pick;
use luthier::train::{config, metrics::Reporter, run};
use std::path::PathBuf;

/// Train a model as a config file says.
#[derive(Args)]
pub struct Train {
    /// The run: a TOML or YAML file.
    #[arg(required_unless_present = "help_config")]
    config: Option<PathBuf>,
    /// Keys that go over the file's, as in learning_rate=1e-4.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Go on from an adapter, a folder as PEFT writes it; goes over the config's `adapter`.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Where to run; goes over the config's `backend`.
    #[arg(long, value_parser = pick::NAMES.to_vec())]
    backend: Option<String>,
    /// Print every key that a config may have, and end.
    #[arg(long)]
    help_config: bool,
}

impl Train {
    pub fn run(mut self) -> Result<()> {
        let Some(path) = self.config.filter(|_| !self.help_config) else { return out(&config::page()) };
        self.overrides.extend(self.backend.map(|b| format!("backend={b}")));
        if let Some(folder) = &self.adapter {
            // as TOML text, so that no folder's name is taken for a number
            self.overrides.push(format!("adapter={:?}", folder.to_string_lossy()));
        }
        let config = config::load(&path, &self.overrides)?;
        interrupt::install()?;
        let mut progress = Progress::new(config.logging_steps);
        let (backend, which) = pick::pick(&config.backend)?;
        progress.message(&which);
        run::train(&config, &*backend, &mut progress).map(|_| ())
    }
}
