//! `luthier train`: a config in, a run out.
use super::{interrupt, out, progress::Progress, tui::Tui};
use clap::{Args, ValueEnum};
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
    /// How it is shown: a bar on a terminal and lines elsewhere, always lines, or the whole terminal with curves and keys.
    #[arg(long, value_enum, default_value_t = Ui::Auto)]
    ui: Ui,
    /// Print every key that a config may have, and end.
    #[arg(long)]
    help_config: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ui {
    Auto,
    Plain,
    Tui,
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
        let (backend, which) = pick::pick(&config.backend)?;
        let mut reporter: Box<dyn Reporter> = match self.ui {
            Ui::Auto => Box::new(Progress::new(config.logging_steps)),
            Ui::Plain => Box::new(Progress::plain(config.logging_steps)),
            Ui::Tui => Box::new(Tui::new(config.output_dir.display().to_string(), backend.memory().total)?),
        };
        reporter.message(&which);
        run::train(&config, &*backend, &mut *reporter).map(|_| ())
    }
}
