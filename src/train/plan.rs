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
use crate::model::streamed::Streamed;
use crate::model::{Common, Keep, LoadOptions, Model, Place, Places, Plan, Session, Tokens, Weights, arch, quantized};
use cost::{Costs, Tiles};
use std::path::Path;
use std::rc::Rc;

/// Tokens that MLPs run at a time where memory is short: so many that products stay efficient, or nearly.
const TILES: [usize; 2] = [8192, 2048];

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
    /// Where frozen weights are.
    pub places: Places,
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

/// What one rehearsal showed, and what it left: the model with what trains it.
struct Shown {
    dry: Dry,
    model: Model,
    /// At the end.
    memory: Memory,
    /// The peak before there was a session, and that of the steps.
    loaded: u64,
    stepped: u64,
}

impl Rehearsal<'_> {
    fn N(&self) -> usize {
        self.config.per_device_train_batch_size * self.config.max_length
    }

    /// Everything that a run does with memory, in its order.
    fn run(&self, rules: &Rc<dyn Rules>, plan: &Plan, places: Places, stay: Stay) -> Result<Shown> {
        let (config, N) = (self.config, self.N());
        let dry = Dry::new(rules.clone(), None);
        let b: &dyn Backend = &dry;
        let mut model = Model::load(b, self.base, &self.load_options(places))?;
        let mut optimizer = Optimizer::new(b, &mut model, Hyper { stay, ..setup::hyper(config) })?;
        let loaded = b.memory().peak;
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
        let stepped = b.memory().peak;
        // it speaks before the first step, too, but then has not taken more than now; and in the session's place
        drop(session);
        if let (Some(tokens), Place::Device) = (self.prompt, places.blocks) {
            run::speak(b, &model, &vec![0; tokens], (config.eval_sample_tokens, 0), &[])?;
        }
        let memory = b.memory();
        Ok(Shown { dry, model, memory, loaded, stepped })
    }

    fn load_options(&self, places: Places) -> LoadOptions {
        setup::load_options(self.config, self.lora.clone(), self.vocab, places)
    }

    /// Where frozen weights may be, the fastest choice first: the embedding waits on the host before anything is computed again,
    /// for that is only its rows' way over the bus; the blocks, only where nothing else helps.
    fn places(&self, rules: &dyn Rules) -> Result<Vec<Places>> {
        let (config, apart) = (self.config, rules.host_is_apart() && self.lora.is_some());
        let (spec, stored) = (arch::read_spec(self.base)?, quantized::scheme(self.base)?);
        let stays = self.load_options(Places::default()).embed_stays(&spec, stored, self.base)?.is_some();
        let choices = |asked: Option<bool>, may: bool| match asked {
            Some(true) => vec![Place::Host],
            Some(false) => vec![Place::Device],
            None if may => vec![Place::Device, Place::Host],
            None => vec![Place::Device],
        };
        let mut embeds = choices(config.offload_embedding, apart && !stays);
        if config.gradient_checkpointing == Checkpointing::Offload && embeds.len() > 1 {
            embeds.remove(0);
        }
        let last = embeds[embeds.len() - 1];
        let blocks = choices(config.offload_weights, apart);
        let of = |blocks: Place| {
            let embeds = if blocks == Place::Device { embeds.as_slice() } else { &[last] };
            embeds.iter().map(move |embed| Places { blocks, embed: *embed }).collect::<Vec<_>>()
        };
        Ok(blocks.into_iter().flat_map(of).collect())
    }

    /// The plan of the run on a backend of these rules, and all that it takes.
    pub fn layout(&self, rules: Rc<dyn Rules>, budget: Budget) -> Result<Layout> {
        let places = self.places(&*rules)?;
        for (i, places_here) in places.iter().enumerate() {
            let layout = self.layout_at(&rules, budget, *places_here)?;
            let short = self.config.gradient_checkpointing == Checkpointing::Auto && !layout.plan.keeps_all();
            let more = places.get(i + 1).is_some_and(|next| next.blocks == places_here.blocks);
            if i + 1 == places.len() || layout.fits() && !(short && more) {
                return Ok(layout);
            }
        }
        Err(Error::Bug("a run without a place for its weights".into()))
    }

    /// The gradients of as few layers go to the host as memory asks for, or of all, or of none, where the config says so.
    fn layout_at(&self, rules: &Rc<dyn Rules>, budget: Budget, places: Places) -> Result<Layout> {
        let (config, may) = (self.config, rules.host_is_apart() && self.lora.is_none());
        let of = |layers: usize| self.layout_of(rules, budget, places, setup::stay(config, layers));
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

    fn layout_of(&self, rules: &Rc<dyn Rules>, budget: Budget, places: Places, stay: Stay) -> Result<Layout> {
        let (config, N, first) = (self.config, self.N(), Plan::Recompute);
        let shown = self.run(rules, &first, places, stay)?;
        let (b, spec): (&dyn Backend, &Spec) = (&shown.dry, &shown.model.spec);
        let common = Common::new(b, &shown.model, N, config.max_length)?;
        // bytes on the device and on the host
        let of_session = |plan: &Plan| {
            let before = b.memory();
            let _session = Session::with(&common, &shown.model, N, N, plan.clone())?;
            Ok((b.memory().used - before.used, b.memory().host - before.host))
        };
        let one = of_session(&first)?;
        let apart = if shown.memory.peak > shown.stepped { shown.memory.peak } else { shown.loaded };
        // all that the run takes on the device at its peak, and the session on the host
        let bytes = |plan: &Plan| {
            let own = of_session(plan)?;
            Ok(((shown.stepped - one.0 + own.0).max(apart), own.1))
        };
        // dropout's masks are of whole inputs; and tiles round otherwise, while another start may find room to do without
        let whole_only = config.deterministic || self.lora.as_ref().is_some_and(|lora| lora.lora_dropout > 0.0);
        let tiles = TILES.into_iter().filter(|rows| N > *rows && !whole_only).map(Tiles::Of);
        let tiles: Vec<Tiles> = [Tiles::Whole].into_iter().chain(tiles).collect();
        let choices: &[Keep] = match config.gradient_checkpointing {
            Checkpointing::Never => &[Keep::All],
            Checkpointing::Always => &[Keep::Attention, Keep::Input],
            Checkpointing::Offload => &[Keep::Host],
            Checkpointing::Auto if rules.host_is_apart() => &Keep::ALL,
            Checkpointing::Auto => &[Keep::All, Keep::Attention, Keep::Input],
        };
        let streamed = shown.model.streamed.as_ref().map_or(0, Streamed::bytes);
        let costs = Costs::new(rules.name(), spec, (N, config.max_length), streamed);
        let plan = cost::choose(&costs, choices, &tiles, budget.device.unwrap_or(u64::MAX), bytes)?;
        let memory = self.run(rules, &plan, places, stay)?.memory;
        Ok(Layout { plan, places, stay, layers: spec.layers, memory, budget })
    }
}
