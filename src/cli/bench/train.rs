//! `luthier bench train`: steps of a decoder with random weights on random tokens, with loss and gradient norm beside the rate,
//! so that a fast wrong step shows.
use super::super::{out, say};
use clap::Args;
use luthier::backend::{Backend, pick};
use luthier::dtype::DType;
use luthier::export::bnb::Format;
use luthier::model::lora::LoraConfig;
use luthier::model::param::{Masters, Room, Training};
use luthier::model::quantized::{self, Scheme};
use luthier::model::{Keep, LoadOptions, Model, Place, Plan, Session, Tokens};
use luthier::rng::Rng;
use luthier::train::method::cross_entropy;
use luthier::train::optim::{Hyper, Micro, Optimizer, Precision, Stay};
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

/// Time training steps on random weights and tokens; 8-bit AdamW in bfloat16.
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
    /// Wait after each part of a step, and say how long it took: forward, backward, norm and step.
    #[arg(long)]
    parts: bool,
    /// Rank of the adapter, on every linear layer.
    #[arg(long, default_value_t = 16, value_parser = super::at_least(1))]
    rank: usize,
    /// Activations: kept, computed again in the backward (but for attention, or from the blocks' inputs), or on the host.
    #[arg(long, default_value = "keep", value_parser = ["keep", "attention", "recompute", "offload"])]
    plan: String,
    /// Of `full`: what gradients are summed in.
    #[arg(long, default_value = "float32", value_parser = ["float32", "bfloat16"])]
    gradients: String,
    /// Of `full`: the weights have no float32 masters, and are rounded by chance.
    #[arg(long)]
    bf16_stochastic_round: bool,
    /// Of `full`: layers whose gradients share two places on the device, and wait on the host.
    #[arg(long, default_value_t = 0)]
    offload_gradients: usize,
    /// 0: not clipped; with `full`, weights move during the backward then.
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// The frozen weights wait on the host and come layer by layer.
    #[arg(long)]
    offload_weights: bool,
    /// Where to run.
    #[arg(long, default_value = "auto", value_parser = pick::NAMES.to_vec())]
    backend: String,
}

impl Train {
    pub fn run(self) -> Result<()> {
        let (backend, which) = pick::pick(&self.backend)?;
        backend.set_deterministic(false);
        say!("{which}");
        let b: &dyn Backend = &*backend;
        self.make_weights()?;
        let loading = Instant::now();
        let mut model = Model::load(b, &self.weights, &self.load_options())?;
        b.sync()?;
        say!("loaded in {:.1} s", loading.elapsed().as_secs_f64());
        let (max_grad_norm, layers) = (self.max_grad_norm, self.offload_gradients);
        let stay = match layers {
            _ if self.method == "full" && max_grad_norm == 0.0 => Stay::Fused,
            0 => Stay::Device,
            _ => Stay::Host { layers, micro_batches: 1 },
        };
        let hyper = Hyper { precision: Precision::Bits8, weight_decay: 0.01, max_grad_norm, stay, ..Hyper::default() };
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
        for step in 0..self.steps {
            let start = Instant::now();
            let (tokens, labels) = self.tokens(&model, step as u64);
            let counted = self.batch * (self.seq - 1);
            let mut laps = Laps { on: self.parts, b, last: start, text: String::new() };
            let mut follow = optimizer.follow(b, Micro::Last, 1e-4)?;
            session.forward_watched(&model, &tokens, &mut follow)?;
            laps.lap()?;
            let coef = cross_entropy::coef(&labels, counted);
            session.backward_watched(&mut model, &labels, &coef, &mut follow)?;
            let loss = cross_entropy::loss(&session.backward_logprobs()?, counted);
            laps.lap()?;
            let norm = optimizer.gradient_norm(b)?;
            laps.lap()?;
            if !norm.is_finite() {
                return Err(Error::Stopped(format!("the gradient norm of step {} is {norm}", step + 1)));
            }
            optimizer.advance(b, 1e-4)?;
            b.sync()?;
            laps.lap()?;
            let (seconds, peak) = (start.elapsed().as_secs_f64(), b.memory().peak as f64 / (1u64 << 30) as f64);
            let rate = N as f64 / seconds;
            let ms = seconds * 1e3;
            let text = laps.text;
            out(&format!("{:>4} {loss:9.5} {norm:10.5} {ms:10.1} {rate:10.0} {peak:9.2}{text}\n", step + 1))?;
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
        let training = Training {
            gradients: if self.gradients == "bfloat16" { DType::Bf16 } else { DType::F32 },
            masters: if self.bf16_stochastic_round { Masters::None } else { Masters::F32 },
            room: Room::Later,
        };
        LoadOptions { lora, train: true, place, training, ..LoadOptions::frozen(DType::Bf16) }
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

/// How long the parts of a step take, where that is asked for.
struct Laps<'b> {
    on: bool,
    b: &'b dyn Backend,
    last: Instant,
    text: String,
}

impl Laps<'_> {
    fn lap(&mut self) -> Result<()> {
        if self.on {
            self.b.sync()?;
            self.text += &format!(" {:8.1}", self.last.elapsed().as_secs_f64() * 1e3);
            self.last = Instant::now();
        }
        Ok(())
    }
}
