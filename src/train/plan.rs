//! The memory of a run before it runs. The run is rehearsed on a backend that only counts ([`Dry`]): the same code loads the model,
//! makes the optimizer and the buffers, takes a step and lets the model speak, so what is counted is what will be taken. Of what
//! layers may keep for the backward, the fastest that fits is chosen (`cost`).
mod cost;
use super::config::{Checkpointing, TrainConfig};
use super::method::cross_entropy;
use super::metrics::Reporter;
use super::optim::{Hyper, Micro, Optimizer, Stay};
use super::{adapter, router, run, setup};
use crate::backend::dry::{Dry, Rules};
use crate::backend::{Backend, Memory, Use};
use crate::error::{Error, Result};
use crate::model::lora::LoraConfig;
use crate::model::spec::Spec;
use crate::model::{Keep, Model, Place, Plan, Session, Tokens, Weights, session};
use cost::{Costs, Tiles};
use std::path::Path;
use std::rc::Rc;

/// Tokens that MLPs run at a time where memory is short: so many that products stay efficient.
const TILE: usize = 8192;

/// What there is for a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    /// Bytes on the device that a plan should stay within; `None`: the device does not say.
    pub device: Option<u64>,
    /// Bytes that cannot be exceeded.
    pub limit: Option<u64>,
}

impl Budget {
    /// What a backend has now, or the config's limit where that is less.
    pub fn of(b: &dyn Backend, config: &TrainConfig) -> Budget {
        let (available, memory) = (b.available(), b.memory());
        let total = memory.total.map(|total| total - memory.used);
        let found = match b.name() {
            "cpu" => Budget { device: available.map(|bytes| bytes / 5 * 4), limit: None },
            "wgpu" => Budget { device: available, limit: total },
            _ => Budget { device: available.map(margin), limit: available },
        };
        found.within(config.memory_limit.map(|limit| limit.0))
    }
    /// Of a device that is not here.
    pub fn given(bytes: u64, config: &TrainConfig) -> Budget {
        Budget { device: Some(margin(bytes)), limit: Some(bytes) }.within(config.memory_limit.map(|limit| limit.0))
    }
    fn within(self, most: Option<u64>) -> Budget {
        let within = |bytes: Option<u64>| most.map_or(bytes, |most| Some(bytes.map_or(most, |bytes| bytes.min(most))));
        Budget { device: within(self.device), limit: within(self.limit) }
    }
}

/// A driver takes some for the kernels that it loads on the way, and its pool has gaps.
fn margin(bytes: u64) -> u64 {
    bytes - (bytes / 32).min(1 << 30)
}

/// A run as its memory sees it.
pub struct Rehearsal<'a> {
    pub config: &'a TrainConfig,
    /// The base model's folder; of shapes alone, its config.
    pub base: &'a Path,
    pub lora: Option<LoraConfig>,
    /// Tokens that the model shall have at least.
    pub vocab: usize,
    /// Tokens that the model is asked to go on from, at most; `None`: it is not.
    pub prompt: Option<usize>,
}

/// What a run keeps for its backward, and what it takes in all.
pub struct Layout {
    pub plan: Plan,
    /// Where the blocks' frozen weights are.
    pub place: Place,
    /// Where gradients wait for the step.
    pub stay: Stay,
    layers: usize,
    /// At the end of the rehearsal, with its peak.
    pub memory: Memory,
    pub budget: Budget,
}

impl Layout {
    pub fn fits(&self) -> bool {
        self.budget.limit.is_none_or(|limit| self.memory.peak <= limit)
    }
    /// For people: where gradients wait, if that is no matter of course.
    pub fn gradients(&self) -> Option<String> {
        match self.stay {
            Stay::Device => None,
            Stay::Fused => Some("gradients: weights move during the backward, part by part".into()),
            Stay::Host { layers, .. } => {
                let (layers, all) = (layers.min(self.layers), self.layers);
                Some(format!("gradients: those of {layers} of {all} layers share two places, and wait on the host"))
            }
        }
    }
    /// What to say where it does not fit.
    pub fn error(&self, backend: &'static str) -> Error {
        let parts = Use::ALL.iter().map(|what| (what.name(), self.memory.at_peak[*what as usize]));
        let mut parts: Vec<_> = parts.filter(|(_, bytes)| *bytes >> 20 > 0).collect();
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let parts: Vec<_> = parts.iter().map(|(name, bytes)| format!("{name} {}", gib(*bytes))).collect();
        let (peak, limit) = (gib(self.memory.peak), gib(self.budget.limit.unwrap_or_default()));
        let what = format!("the run takes {peak} of memory ({}), and {limit} are there", parts.join(", "));
        let hint = "lower per_device_train_batch_size or max_length (and raise gradient_accumulation_steps), set \
                    gradient_checkpointing = \"offload\", load_in_4bit = true, or a smaller base";
        Error::device(backend, format!("{what}: {hint}"))
    }
}

/// As in 12.34 GiB.
pub fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

/// The memory of a config's run on a backend of these rules. The model may be a config without weights; it is then taken to go on
/// from a prompt as long as can be.
pub fn plan(config: &TrainConfig, rules: Rc<dyn Rules>, budget: Budget, reporter: &mut dyn Reporter) -> Result<Layout> {
    let base = run::base_folder(config, reporter)?;
    let mut lora = match &config.adapter {
        Some(folder) => Some(adapter::open(config, folder)?.lora),
        None => config.lora.as_ref().map(setup::lora),
    };
    let (prompt, vocab) = match Weights::are_in(&base)? {
        true => {
            let read = run::read_data(config, &base, reporter)?;
            lora.iter_mut().for_each(|lora| setup::train_rows(lora, &read.added, &read.spec));
            (run::longest_prompt(config, &read.data), read.vocab)
        }
        false => (Some(config.max_length), 0),
    };
    Rehearsal { config, base: &base, lora, vocab, prompt }.layout(rules, budget)
}

/// What one rehearsal showed.
struct Shown {
    memory: Memory,
    spec: Spec,
}

impl Rehearsal<'_> {
    fn N(&self) -> usize {
        self.config.per_device_train_batch_size * self.config.max_length
    }

    /// Everything that a run does with memory, in its order.
    fn run(&self, rules: &Rc<dyn Rules>, plan: &Plan, place: Place, stay: Stay) -> Result<Shown> {
        let (config, N) = (self.config, self.N());
        let dry = Dry::new(rules.clone(), None);
        let b: &dyn Backend = &dry;
        let options = setup::load_options(config, self.lora.clone(), self.vocab, place);
        let mut model = Model::load(b, self.base, &options)?;
        let mut optimizer = Optimizer::new(b, &mut model, Hyper { stay, ..setup::hyper(config) })?;
        let mut session = Session::new(b, &model, N, config.max_length, plan.clone())?;
        let rows = 0..config.per_device_train_batch_size;
        let tokens = Tokens {
            ids: vec![0; N],
            positions: rows.clone().flat_map(|_| 0..config.max_length as u32).collect(),
            cu_seqlens: (0..=rows.end).map(|row| (row * config.max_length) as u32).collect(),
        };
        let labels = vec![0; N];
        session.set_dropout(Some(0));
        session.set_neftune(config.neftune_noise_alpha.map(|alpha| (alpha, 0)))?;
        if let Some(coef) = router::coef(config, self.base, &model)? {
            session.start_balance(&model, &vec![true; N], coef)?;
        }
        session.forward(&model, &tokens)?;
        let coef = cross_entropy::coef(&labels, N);
        session.backward_watched(&mut model, &labels, &coef, &mut optimizer.follow(b, Micro::Last, 0.0)?)?;
        session.backward_logprobs()?;
        session.set_dropout(None);
        optimizer.step(b, 0.0)?;
        session.forward(&model, &tokens)?;
        session.logprobs(&model, &labels)?;
        // it speaks before the first step, too, but then has not taken more than now; and in the session's place
        drop(session);
        if let (Some(tokens), Place::Device) = (self.prompt, place) {
            run::speak(b, &model, &vec![0; tokens], (config.eval_sample_tokens, 0), &[])?;
        }
        Ok(Shown { memory: b.memory(), spec: model.spec })
    }

    /// The plan of the run on a backend of these rules, and all that it takes. Only where nothing else helps do frozen weights go
    /// to the host, unless the config says so.
    pub fn layout(&self, rules: Rc<dyn Rules>, budget: Budget) -> Result<Layout> {
        let may = self.lora.is_some() && rules.host_is_apart();
        match self.config.offload_weights {
            Some(true) => self.layout_at(&rules, budget, Place::Host),
            None if may => {
                let here = self.layout_at(&rules, budget, Place::Device)?;
                if here.fits() { Ok(here) } else { self.layout_at(&rules, budget, Place::Host) }
            }
            _ => self.layout_at(&rules, budget, Place::Device),
        }
    }

    /// The gradients of as few layers go to the host as memory asks for, or of all, or of none, where the config says so.
    fn layout_at(&self, rules: &Rc<dyn Rules>, budget: Budget, place: Place) -> Result<Layout> {
        let (config, may) = (self.config, rules.host_is_apart() && self.lora.is_none());
        let of = |layers: usize| self.layout_of(rules, budget, place, setup::stay(config, layers));
        let room = budget.device.unwrap_or(u64::MAX);
        if config.offload_gradients == Some(true) {
            return of(usize::MAX);
        }
        let here = of(0)?;
        if !may || config.offload_gradients == Some(false) || here.stay == Stay::Fused || here.memory.peak <= room {
            return Ok(here);
        }
        let mut best = of(usize::MAX)?;
        // of two layers none leaves
        let (mut few, mut many) = (2, here.layers);
        while few + 1 < many && best.memory.peak <= room {
            let next = of((few + many) / 2)?;
            match next.memory.peak <= room {
                true => (many, best) = ((few + many) / 2, next),
                false => few = (few + many) / 2,
            }
        }
        Ok(if best.memory.peak < here.memory.peak { best } else { here })
    }

    fn layout_of(&self, rules: &Rc<dyn Rules>, budget: Budget, place: Place, stay: Stay) -> Result<Layout> {
        let (N, whole) = (self.N(), self.run(rules, &Plan::Recompute, place, stay)?);
        let spec = &whole.spec;
        // dropout's masks are of whole inputs; and tiles round otherwise, while another start may find room to do without
        let whole_only = self.config.deterministic || self.lora.as_ref().is_some_and(|lora| lora.lora_dropout > 0.0);
        let tiled = match N > TILE && !whole_only {
            true => Some(self.run(rules, &Plan::Tiled(vec![Keep::Input; spec.layers], TILE), place, stay)?),
            false => None,
        };
        // all that the run takes on the device at its peak, and on the host
        let bytes = |plan: &Plan| {
            let shown = if let Plan::Tiled(..) = plan { tiled.as_ref().unwrap_or(&whole) } else { &whole };
            let kept = session::kept_bytes(rules, spec, N, self.config.dtype, plan)?;
            Ok((shown.memory.peak - shown.memory.at_peak[Use::Activations as usize] + kept.0, kept.1))
        };
        let choices: &[Keep] = match self.config.gradient_checkpointing {
            Checkpointing::Never => &[Keep::All],
            Checkpointing::Always => &[Keep::Attention, Keep::Input],
            Checkpointing::Offload => &[Keep::Host],
            Checkpointing::Auto if rules.host_is_apart() => &Keep::ALL,
            Checkpointing::Auto => &[Keep::All, Keep::Attention, Keep::Input],
        };
        let tiles: &[Tiles] = if tiled.is_some() { &[Tiles::Whole, Tiles::Of(TILE)] } else { &[Tiles::Whole] };
        let streamed = if place == Place::Host { whole.memory.host_peak } else { 0 };
        let costs = Costs::new(rules.name(), spec, (N, self.config.max_length), streamed);
        let plan = cost::choose(&costs, choices, tiles, budget.device.unwrap_or(u64::MAX), bytes)?;
        let memory = self.run(rules, &plan, place, stay)?.memory;
        Ok(Layout { plan, place, stay, layers: spec.layers, memory, budget })
    }
}
