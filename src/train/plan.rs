//! The memory of a run before it runs. The run is rehearsed on a backend that only counts ([`Dry`]): the same code loads the model,
//! makes the optimizer and the buffers, takes a step and lets the model speak, so what is counted is what will be taken. Of what
//! layers may keep for the backward, the fastest that fits is chosen (`cost`).
mod cost;
use super::config::{Checkpointing, TrainConfig};
use super::method::cross_entropy;
use super::metrics::Reporter;
use super::optim::Optimizer;
use super::{adapter, run, setup};
use crate::backend::dry::{Dry, Rules};
use crate::backend::{Backend, Memory, Use};
use crate::error::{Error, Result};
use crate::model::lora::LoraConfig;
use crate::model::spec::Spec;
use crate::model::{Keep, Model, Plan, Session, Tokens, Weights, session};
use std::path::Path;
use std::rc::Rc;

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
        // a driver takes some for the kernels that it loads on the way, and its pool has gaps
        let margin = |bytes: u64| bytes - (bytes / 32).min(1 << 30);
        let found = match b.name() {
            "cpu" => Budget { device: available.map(|bytes| bytes / 5 * 4), limit: None },
            "wgpu" => Budget { device: available, limit: total },
            _ => Budget { device: available.map(margin), limit: available },
        };
        found.within(config.memory_limit.map(|limit| limit.0))
    }
    /// Of a device that is not here.
    pub fn given(bytes: u64, config: &TrainConfig) -> Budget {
        Budget { device: Some(bytes), limit: Some(bytes) }.within(config.memory_limit.map(|limit| limit.0))
    }
    fn within(self, most: Option<u64>) -> Budget {
        let within = |bytes: Option<u64>| most.map_or(bytes, |most| Some(bytes.map_or(most, |bytes| bytes.min(most))));
        Budget { device: within(self.device), limit: within(self.limit) }
    }
}

/// A run as its memory sees it.
pub struct Rehearsal<'a> {
    pub config: &'a TrainConfig,
    /// The base model's folder; of shapes alone, its config.
    pub base: &'a Path,
    pub lora: Option<LoraConfig>,
    /// Tokens that the model shall have at least.
    pub vocab: usize,
    /// Tokens that the model is asked to go on from, before and after; `None`: it is not.
    pub prompt: Option<usize>,
}

/// What a run keeps for its backward, and what it takes in all.
pub struct Layout {
    pub plan: Plan,
    /// At the end of the rehearsal, with its peak.
    pub memory: Memory,
    pub budget: Budget,
}

impl Layout {
    pub fn fits(&self) -> bool {
        self.budget.limit.is_none_or(|limit| self.memory.peak <= limit)
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
            (run::prompt(&read.data).map(|ids| ids.len()), read.vocab)
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
    fn run(&self, rules: &Rc<dyn Rules>, plan: &Plan) -> Result<Shown> {
        let (config, N) = (self.config, self.N());
        let dry = Dry::new(rules.clone(), None);
        let b: &dyn Backend = &dry;
        let mut model = Model::load(b, self.base, &setup::load_options(config, self.lora.clone(), self.vocab))?;
        let mut optimizer = Optimizer::new(b, &mut model, setup::hyper(config))?;
        let mut session = Session::new(b, &model, N, config.max_length, plan.clone())?;
        let rows = 0..config.per_device_train_batch_size;
        let tokens = Tokens {
            ids: vec![0; N],
            positions: rows.clone().flat_map(|_| 0..config.max_length as u32).collect(),
            cu_seqlens: (0..=rows.end).map(|row| (row * config.max_length) as u32).collect(),
        };
        let labels = vec![0; N];
        session.set_dropout(Some(0));
        session.forward(&model, &tokens)?;
        session.backward(&mut model, &labels, &cross_entropy::coef(&labels, N))?;
        session.backward_logprobs()?;
        session.set_dropout(None);
        optimizer.step(b, 0.0)?;
        session.forward(&model, &tokens)?;
        session.logprobs(&model, &labels)?;
        // it speaks before the first step, too, but then has not taken more than now
        if let Some(tokens) = self.prompt {
            run::speak(b, &model, &vec![0; tokens], 0, &[])?;
        }
        Ok(Shown { memory: b.memory(), spec: model.spec })
    }

    /// The plan of the run on a backend of these rules, and all that it takes.
    pub fn layout(&self, rules: Rc<dyn Rules>, budget: Budget) -> Result<Layout> {
        let lean = Plan::Recompute;
        let Shown { memory, spec } = self.run(&rules, &lean)?;
        let kept = |plan: &Plan| session::kept_bytes(&rules, &spec, self.N(), self.config.dtype, plan);
        // what the run takes at its peak besides what is kept
        let others = memory.peak - memory.at_peak[Use::Activations as usize];
        let room = budget.device.map(|bytes| bytes.saturating_sub(others));
        let choices: &[Keep] = match self.config.gradient_checkpointing {
            Checkpointing::Never => &[Keep::All],
            Checkpointing::Always => &[Keep::Attention, Keep::Input],
            Checkpointing::Offload => &[Keep::Host],
            // the cpu's host is the cpu
            Checkpointing::Auto if rules.name() == "cpu" => &[Keep::All, Keep::Attention, Keep::Input],
            Checkpointing::Auto => &Keep::ALL,
        };
        let costs = cost::Costs::new(rules.name(), &spec, self.N(), self.config.max_length);
        let plan = cost::choose(&costs, choices, room.unwrap_or(u64::MAX), kept)?;
        let memory = self.run(&rules, &plan)?.memory;
        Ok(Layout { plan, memory, budget })
    }
}
