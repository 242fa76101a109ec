//! `luthier plan`: the memory that a run will take, without running it.
use super::{interrupt, out, progress::Progress, say};
use clap::Args;
use luthier::Result;
use luthier::backend::{Memory, Use, pick};
use luthier::model::Place;
use luthier::train::config::{self, Bytes, TrainConfig};
use luthier::train::plan::{self, Budget, Layout, gib};
use std::path::PathBuf;

/// Say what memory a run will take, and whether it fits.
#[derive(Args)]
pub struct Plan {
    /// The run: a TOML or YAML file. Its model may be a config.json without weights.
    config: PathBuf,
    /// Keys that go over the file's, as in max_length=4096.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Where to run; goes over the config's `backend`.
    #[arg(long, value_parser = pick::NAMES.to_vec())]
    backend: Option<String>,
    /// For a device that is not here, with so much memory: 24GiB. An NVIDIA GPU, where --backend does not say otherwise.
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| Bytes::parse(text).ok_or("a size as in 24GiB"))]
    device_memory: Option<Bytes>,
}

impl Plan {
    pub fn run(mut self) -> Result<()> {
        self.overrides.extend(self.backend.iter().map(|b| format!("backend={b}")));
        let config = config::load(&self.config, &self.overrides)?;
        interrupt::install()?;
        let mut progress = Progress::new(config.logging_steps);
        let (rules, budget) = match self.device_memory {
            Some(Bytes(bytes)) => (pick::rules(&config.backend)?, Budget::given(bytes, &config)),
            None => {
                let (backend, which) = pick::pick(&config.backend)?;
                say!("{which}");
                backend.set_deterministic(config.deterministic);
                (backend.rules(), Budget::of(&*backend, &config))
            }
        };
        let name = rules.name();
        let layout = plan::plan(&config, rules, budget, &mut progress)?;
        out(&text(&config, name, &layout))?;
        if layout.fits() { Ok(()) } else { Err(layout.error(name)) }
    }
}

fn line((name, bytes): (&str, u64)) -> String {
    format!("  {name:<24}{:>12}  {bytes:>16} bytes\n", gib(bytes))
}

/// What the device's memory is taken for at the peak, a line each.
pub fn parts(memory: &Memory) -> String {
    let parts = Use::ALL.iter().map(|what| (what.name(), memory.at_peak[*what as usize]));
    parts.filter(|(_, bytes)| *bytes > 0).chain([("in all", memory.peak)]).map(line).collect()
}

fn text(config: &TrainConfig, backend: &str, layout: &Layout) -> String {
    let Layout { plan, places, memory, budget, .. } = layout;
    let host_peak = &memory.host_peak;
    let (rows, tokens) = (config.per_device_train_batch_size, config.max_length);
    let mut all = format!("{backend}: {rows} x {tokens} tokens a micro-batch; {plan}\n");
    all.extend(layout.gradients().map(|what| format!("{what}\n")));
    all += "\non the device, at the peak\n";
    all += &parts(memory);
    if *host_peak > 0 {
        all += "\non the host\n";
        let what = match (places.blocks, places.embed) {
            (Place::Host, _) => "weights and activations",
            (Place::Device, Place::Host) => "embedding and activations",
            _ if layout.gradients().is_some() => "gradients and activations",
            (Place::Device, Place::Device) => "activations",
        };
        all += &line((what, *host_peak));
    }
    match (budget.limit.or(budget.device), layout.fits()) {
        (None, _) => all += "\nthe device does not say what it has\n",
        (Some(there), true) => all += &format!("\nfits: {} are there\n", gib(there)),
        (Some(there), false) => all += &format!("\ndoes not fit: {} are there\n", gib(there)),
    }
    all
}
