//! `luthier bench train`: steps of a decoder with random weights on random tokens, with loss and gradient norm beside the rate,
//! so that a fast wrong step shows.
use super::super::{out, say};
use super::profile::{self, Floor};
use clap::Args;
use luthier::backend::{Backend, Profile, pick};
use luthier::dtype::DType;
use luthier::export::bnb::Format;
use luthier::model::lora::LoraConfig;
use luthier::model::quantized::{self, Scheme};
use luthier::model::{Keep, LoadOptions, Model, Place, Plan, Session, Tokens};
use luthier::rng::Rng;
use luthier::train::method::cross_entropy;
use luthier::train::optim::{Hyper, Optimizer, Precision};
use luthier::{Error, Result, export};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The shapes that have names.
const SHAPES: [(&str, &str); 4] = [
    ("1b", include_str!("../../../assets/shapes/1b.json")),
    ("8b", include_str!("../../../assets/shapes/8b.json")),
    ("70b", include_str!("../../../assets/shapes/70b.json")),
    ("qwen3-1.7b", include_str!("../../../assets/shapes/qwen3-1.7b.json")),
];

/// Time training steps on random weights and tokens; 8-bit AdamW in bfloat16, clipped at 1.
#[derive(Args)]
pub struct Train {
    /// 1b, 8b, 70b (Llama 3), qwen3-1.7b; or a config.json.
    #[arg(long, default_value = "8b")]
    shape: String,
    /// A folder for the random weights; one that is there already is used as it is. It holds the model's size.
    #[arg(long)]
    weights: PathBuf,
    #[arg(long, default_value = "qlora", value_parser = ["qlora", "lora", "lora-8bit", "full"])]
    method: String,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 2048, value_parser = super::at_least(2))]
    seq: usize,
    /// Sequences a step.
    #[arg(long, default_value_t = 2, value_parser = super::at_least(1))]
    batch: usize,
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Rank of the adapter, on every linear layer.
    #[arg(long, default_value_t = 16, value_parser = super::at_least(1))]
    rank: usize,
    /// Activations: kept, computed again in the backward (but for attention, or from the blocks' inputs), or on the host.
    #[arg(long, default_value = "keep", value_parser = ["keep", "attention", "recompute", "offload"])]
    plan: String,
    /// The frozen weights wait on the host and come layer by layer.
    #[arg(long)]
    offload_weights: bool,
    /// One more step after the others, with the time of each op in it.
    #[arg(long)]
    profile: bool,
    /// Where to run.
    #[arg(long, default_value = "auto", value_parser = pick::NAMES.to_vec())]
    backend: String,
}

impl Train {
    pub fn run(self) -> Result<()> {
        let (backend, which) = pick::pick(&self.backend)?;
        backend.set_deterministic(false);
        say!("{which}");
        let profile = Profile::new(&*backend);
        let b: &dyn Backend = if self.profile { &profile } else { &*backend };
        self.make_weights()?;
        let loading = Instant::now();
        let mut model = Model::load(b, &self.weights, &self.load_options())?;
        b.sync()?;
        say!("loaded in {:.1} s", loading.elapsed().as_secs_f64());
        let hyper = Hyper { precision: Precision::Bits8, weight_decay: 0.01, ..Hyper::default() };
        let mut optimizer = Optimizer::new(b, &mut model, hyper)?;
        let keep = match self.plan.as_str() {
            "keep" => Keep::All,
            "attention" => Keep::Attention,
            "recompute" => Keep::Input,
            _ => Keep::Host,
        };
        let plan = Plan::Layers(vec![keep; model.spec.layers]);
        let N = self.seq * self.batch;
        let mut session = Session::new(b, &model, N, self.seq, plan)?;
        out(&format!(
            "{:>4} {:>9} {:>10} {:>10} {:>10} {:>9}\n",
            "step", "loss", "grad_norm", "ms", "tokens/s", "peak GiB"
        ))?;
        let mut step = |step: usize| -> Result<()> {
            let start = Instant::now();
            let (tokens, labels) = self.tokens(&model, step as u64);
            let counted = self.batch * (self.seq - 1);
            session.forward(&model, &tokens)?;
            session.backward(&mut model, &labels, &cross_entropy::coef(&labels, counted))?;
            let loss = cross_entropy::loss(&session.backward_logprobs()?, counted);
            let norm = optimizer.step(b, 1e-4)?;
            b.sync()?;
            let (seconds, peak) = (start.elapsed().as_secs_f64(), b.memory().peak as f64 / (1u64 << 30) as f64);
            let rate = N as f64 / seconds;
            let ms = seconds * 1e3;
            out(&format!("{:>4} {loss:9.5} {norm:10.5} {ms:10.1} {rate:10.0} {peak:9.2}\n", step + 1))
        };
        (0..self.steps).try_for_each(&mut step)?;
        if self.profile {
            profile.start();
            step(self.steps)?;
            profile::print(&profile.stop()?, &Floor::measure(&*backend)?, self.seq)?;
        }
        Ok(())
    }

    fn make_weights(&self) -> Result<()> {
        let (format, scheme) = match self.method.as_str() {
            "qlora" => (Some(Format::Nf4), Some(Scheme::Nf4)),
            "lora-8bit" => (Some(Format::Int8), Some(Scheme::Int8)),
            _ => (None, None),
        };
        if self.weights.join("config.json").exists() {
            say!("{}: taken as it is, whatever --shape says", self.weights.display());
            if quantized::scheme(&self.weights)? != scheme {
                let what = format!("--weights {}: not what {} trains on", self.weights.display(), self.method);
                return Err(Error::Usage(format!("{what}; name another folder")));
            }
            return Ok(());
        }
        let start = Instant::now();
        let init = |config: &Path| export::init::init(config, &self.weights, DType::Bf16, format, 1);
        let parameters = match SHAPES.iter().find(|(name, _)| *name == self.shape) {
            None => init(self.shape.as_ref())?,
            Some((_, text)) => {
                let shape = self.weights.join("shape.json");
                std::fs::create_dir_all(&self.weights).map_err(Error::write(&self.weights))?;
                std::fs::write(&shape, text).map_err(Error::write(&shape))?;
                init(&shape)?
            }
        };
        say!("{parameters} parameters in {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    fn load_options(&self) -> LoadOptions {
        let lora = LoraConfig { r: self.rank, lora_alpha: 2.0 * self.rank as f64, ..LoraConfig::default() };
        let lora = if self.method == "full" { None } else { Some(lora) };
        let place = if self.offload_weights { Place::Host } else { Place::Device };
        LoadOptions { lora, train: true, place, ..LoadOptions::frozen(DType::Bf16) }
    }

    /// Random ids; each token's label is the next of its sequence.
    fn tokens(&self, model: &Model, step: u64) -> (Tokens, Vec<u32>) {
        let (mut rng, T) = (Rng::stream(7, step), self.seq);
        let ids: Vec<u32> = (0..T * self.batch).map(|_| rng.below(model.spec.V) as u32).collect();
        let label = |n: usize| if (n + 1).is_multiple_of(T) { luthier::ops::logprob::IGNORE } else { ids[n + 1] };
        let labels = (0..ids.len()).map(label).collect();
        let positions = (0..ids.len()).map(|n| (n % T) as u32).collect();
        let cu_seqlens = (0..=self.batch).map(|s| (s * T) as u32).collect();
        (Tokens { ids, positions, cu_seqlens }, labels)
    }
}
