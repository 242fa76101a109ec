//! `luthier bench train`: steps of a decoder with random weights on random tokens, with loss and gradient norm beside the rate,
//! so that a fast wrong step shows.
use super::super::{out, say};
use super::profile::{self, Floor};
use super::weights;
use clap::Args;
use luthier::backend::dry::Dry;
use luthier::backend::{Backend, Profile, pick};
use luthier::dtype::DType;
use luthier::model::lora::LoraConfig;
use luthier::model::param::{Masters, Room, Training};
use luthier::model::quantized;
use luthier::model::{Compute, Keep, LoadOptions, Model, Place, Places, Plan, Session, Tokens, arch};
use luthier::rng::Rng;
use luthier::train::config::{self, Bytes, TrainConfig};
use luthier::train::method::cross_entropy;
use luthier::train::optim::{Hyper, Micro, Optimizer, Precision, Stay};
use luthier::train::plan::{self, Budget, Rehearsal};
use luthier::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;

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
    /// What products with frozen weights are computed in; fp8 is for lora.
    #[arg(long, default_value = "dtype", value_parser = Compute::ALL.map(Compute::name))]
    compute: String,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 2048, value_parser = super::at_least(2))]
    seq: usize,
    /// Sequences a step.
    #[arg(long, default_value_t = 2, value_parser = super::at_least(1))]
    batch: usize,
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Wait after each part of every step, and not of the first alone, and say how long it took.
    #[arg(long)]
    parts: bool,
    /// Rank of the adapter, on every linear layer.
    #[arg(long, default_value_t = 16, value_parser = super::at_least(1))]
    rank: usize,
    /// Activations: kept, computed again in the backward (but for attention, or from the blocks' inputs), or on the host; or as a
    /// run's own planner has it, which then also says where frozen weights are.
    #[arg(long, default_value = "keep", value_parser = ["keep", "attention", "recompute", "offload", "auto"])]
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
    /// The blocks' frozen weights wait on the host and come layer by layer.
    #[arg(long)]
    offload_weights: bool,
    /// One more step after the others, with the time of each op in it.
    #[arg(long)]
    profile: bool,
    /// The embedding waits on the host, and the rows of a step's tokens come.
    #[arg(long)]
    offload_embedding: bool,
    /// For --plan auto: as memory_limit in a run's config.
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| Bytes::parse(text).ok_or("a size as in 24GiB"))]
    memory_limit: Option<Bytes>,
    /// Only say what memory the steps take, and for what, by rehearsing them; neither weights nor the device need be here.
    #[arg(long)]
    rehearse: bool,
    /// Where to run.
    #[arg(long, default_value = "auto", value_parser = pick::NAMES.to_vec())]
    backend: String,
}

impl Train {
    pub fn run(self) -> Result<()> {
        if self.memory_limit.is_some() && self.plan != "auto" {
            return Err(Error::Usage(format!("--memory-limit is for --plan auto, not for --plan {}", self.plan)));
        }
        let begin = Instant::now();
        if self.rehearse {
            let dry = Dry::new(pick::rules(&self.backend)?, None);
            let limit = self.memory_limit.map(|limit| limit.0);
            self.measure(
                &dry,
                &weights::shape_file(&self.weights, &self.shape)?,
                Budget { device: limit, limit },
                begin,
            )?;
            let memory = dry.memory();
            let host = format!("on the host {}\n", plan::gib(memory.host_peak));
            return out(&format!("on the device, at the peak\n{}{host}", super::super::plan::parts(&memory)));
        }
        let (backend, which) = pick::pick(&self.backend)?;
        backend.set_deterministic(false);
        say!("{which}; opened in {:.2} s", begin.elapsed().as_secs_f64());
        weights::make(&self.weights, &self.shape, &self.method)?;
        let config = self.config(&self.weights)?;
        self.measure(&*backend, &self.weights, Budget::of(&*backend, &config), begin)
    }

    fn measure(&self, b: &dyn Backend, base: &Path, budget: Budget, begin: Instant) -> Result<()> {
        let profile = Profile::new(b);
        let b: &dyn Backend = if self.profile { &profile } else { b };
        let mut since = Instant::now();
        let mut took = || std::mem::replace(&mut since, Instant::now()).elapsed().as_secs_f64();
        let (options, plan, stay) = self.layout(b, base, budget)?;
        let planned = took();
        let mut model = Model::load(b, base, &options)?;
        b.sync()?;
        let loaded = took();
        let max_grad_norm = self.max_grad_norm;
        let hyper = Hyper { precision: Precision::Bits8, weight_decay: 0.01, max_grad_norm, stay, ..Hyper::default() };
        let mut optimizer = Optimizer::new(b, &mut model, hyper)?;
        say!("{plan}; blocks {:?}, embedding {:?}", options.places.blocks, options.places.embed);
        let N = self.seq * self.batch;
        let mut session = Session::new(b, &model, N, self.seq, plan)?;
        b.sync()?;
        say!("planned in {planned:.2} s, loaded in {loaded:.2} s, buffers made in {:.2} s", took());
        if b.is_dry() {
            return self.step(b, &mut model, &mut optimizer, &mut session, 0).map(|_| ());
        }
        let head = ["step", "loss", "grad_norm", "ms", "tokens/s", "peak GiB"];
        let [step, rest @ ..] = head;
        out(&format!("{step:>4} {}\n", rest.map(|name| format!("{name:>10}")).join(" ")))?;
        // nobody waits between steps: what follows a norm may run beside the next forward
        let mut start = Instant::now();
        for step in 0..self.steps {
            let [loss, norm] = self.step(b, &mut model, &mut optimizer, &mut session, step)?;
            let seconds = std::mem::replace(&mut start, Instant::now()).elapsed().as_secs_f64();
            let peak = b.memory().peak as f64 / (1u64 << 30) as f64;
            let (rate, ms) = (N as f64 / seconds, seconds * 1e3);
            out(&format!("{:>4} {loss:10.5} {norm:10.5} {ms:10.1} {rate:10.0} {peak:10.2}\n", step + 1))?;
            if step == 0 {
                say!("the first step was done {:.2} s after the start", begin.elapsed().as_secs_f64());
            }
        }
        if self.profile {
            profile.start();
            self.step(b, &mut model, &mut optimizer, &mut session, self.steps)?;
            profile::print(&profile.stop()?, &Floor::measure(b)?, self.seq)?;
        }
        optimizer.finish(b)?;
        b.sync()
    }

    /// One step: its loss, and the gradient's norm.
    fn step(
        &self,
        b: &dyn Backend,
        model: &mut Model,
        optimizer: &mut Optimizer,
        session: &mut Session,
        step: usize,
    ) -> Result<[f64; 2]> {
        let (tokens, labels) = self.tokens(model, step as u64);
        let counted = self.batch * (self.seq - 1);
        // the first makes what later ones find made: how long each part of it takes
        let (mut since, mut parts) = (Instant::now(), Vec::new());
        let mut mark = |part: &str| -> Result<()> {
            if step == 0 || self.parts {
                b.sync()?;
                let took = std::mem::replace(&mut since, Instant::now()).elapsed();
                parts.push(format!("{part} {:.1} ms", took.as_secs_f64() * 1e3));
            }
            Ok(())
        };
        let coef = cross_entropy::coef(&labels, counted);
        let mut follow = optimizer.follow(b, Micro::Last, 1e-4)?;
        session.forward_watched(model, &tokens, &mut follow)?;
        mark("forward")?;
        session.backward_watched(model, &labels, &coef, &mut follow)?;
        let loss = cross_entropy::loss(&session.backward_logprobs()?, counted);
        mark("backward")?;
        let norm = optimizer.gradient_norm(b)?;
        mark("norm")?;
        if !norm.is_finite() {
            return Err(Error::Stopped(format!("the gradient norm of step {} is {norm}", step + 1)));
        }
        optimizer.advance_lazily(b, 1e-4)?;
        mark("optimizer")?;
        if !parts.is_empty() && !b.is_dry() {
            say!("of step {}: {}", step + 1, parts.join(", "));
        }
        Ok([loss, norm.into()])
    }

    /// How the model is loaded, and what is kept: the same in every layer, or as the planner has it.
    fn layout(&self, b: &dyn Backend, base: &Path, budget: Budget) -> Result<(LoadOptions, Plan, Stay)> {
        let keep = match self.plan.as_str() {
            "keep" => Keep::All,
            "attention" => Keep::Attention,
            "recompute" => Keep::Input,
            "offload" => Keep::Host,
            _ => {
                let config = self.config(base)?;
                let lora = self.load_options(base)?.lora;
                let layout =
                    Rehearsal { config: &config, base, lora, vocab: 0, prompt: None }.layout(b.rules(), budget)?;
                if !layout.fits() {
                    return Err(layout.error(b.name()));
                }
                let options = LoadOptions { places: layout.places, ..self.load_options(base)? };
                return Ok((options, layout.plan, layout.stay));
            }
        };
        let place = |away| if away { Place::Host } else { Place::Device };
        let places = Places { blocks: place(self.offload_weights), embed: place(self.offload_embedding) };
        let plan = Plan::Layers(vec![keep; arch::read_spec(base)?.layers]);
        let stay = match self.offload_gradients {
            _ if self.method == "full" && self.max_grad_norm == 0.0 => Stay::Fused,
            0 => Stay::Device,
            layers => Stay::Host { layers, micro_batches: 1 },
        };
        Ok((LoadOptions { places, ..self.load_options(base)? }, plan, stay))
    }

    /// The same as a run's config, for the planner.
    fn config(&self, base: &Path) -> Result<TrainConfig> {
        let options = self.load_options(base)?;
        let mut keys = vec![
            format!("model_name_or_path={}", toml_text(base)),
            "dataset=\"none\"".into(),
            format!("output_dir={}", toml_text(&self.weights)),
            format!("max_length={}", self.seq),
            format!("per_device_train_batch_size={}", self.batch),
            "optim=\"adamw_8bit\"".into(),
            format!("load_in_4bit={}", options.load_in_4bit),
            format!("load_in_8bit={}", options.load_in_8bit),
            format!("compute={}", options.compute.name()),
        ];
        keys.push(format!("max_grad_norm={}", self.max_grad_norm));
        match self.method.as_str() {
            "full" => keys.extend([
                format!("gradient_accumulation_dtype={:?}", self.gradients),
                format!("bf16_stochastic_round={}", self.bf16_stochastic_round),
            ]),
            _ => keys.push(format!("lora.r={}", self.rank)),
        }
        keys.extend(self.memory_limit.map(|limit| format!("memory_limit={}", limit.0)));
        keys.extend(self.offload_weights.then(|| "offload_weights=true".into()));
        keys.extend(self.offload_embedding.then(|| "offload_embedding=true".into()));
        config::of(&keys)
    }

    /// Floats of `base` are quantized while they load, where the method wants that.
    fn load_options(&self, base: &Path) -> Result<LoadOptions> {
        let lora = LoraConfig { r: self.rank, lora_alpha: 2.0 * self.rank as f64, ..LoraConfig::default() };
        let lora = if self.method == "full" { None } else { Some(lora) };
        let (load_in_4bit, load_in_8bit) = match quantized::scheme(base)? {
            Some(_) => (false, false),
            None => (self.method == "qlora", self.method == "lora-8bit"),
        };
        let training = Training {
            gradients: if self.gradients == "bfloat16" { DType::Bf16 } else { DType::F32 },
            masters: if self.bf16_stochastic_round { Masters::None } else { Masters::F32 },
            room: Room::Later,
        };
        let compute = Compute::parse(&self.compute).unwrap_or_default();
        let options = LoadOptions {
            lora,
            train: true,
            load_in_4bit,
            load_in_8bit,
            compute,
            training,
            ..LoadOptions::frozen(DType::Bf16)
        };
        Ok(options)
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

/// As TOML quotes it.
fn toml_text(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}
