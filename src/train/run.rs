//! The one loop: batches in, gradients, a step, metrics, evaluation, checkpoints, a result.
use super::best::Best;
use super::checkpoint::{self, RunDir};
use super::config::{EvalStrategy, SaveStrategy, TrainConfig};
use super::cursor::Cursor;
use super::loss_scale::LossScale;
use super::metrics::Reporter;
use super::optim::{Hyper, Optimizer, Share};
use super::plan::{Budget, Rehearsal, gib};
use super::record::{Record, info::RunInfo};
use super::report::words::grouped;
use super::schedule::Schedule;
use super::state::{self, State};
use super::{adapter, disk, router, setup, space};
use crate::backend::Backend;
use crate::data::{self, Dataset, Tokenizer};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::export::peft;
use crate::io::hub;
use crate::model::spec::{Positions, Spec};
use crate::model::{self, Model, Place, Plan, Session};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

mod evaluate;
mod failed;
mod samples;
mod step;
mod stopped;
pub(super) use samples::{longest_prompt, speak};

/// Between words about data that is being encoded.
const SILENCE: Duration = Duration::from_secs(10);

/// Runs a config to its end, from wherever an earlier run of it got to. Returns the last evaluation's loss.
pub fn train(config: &TrainConfig, b: &dyn Backend, reporter: &mut dyn Reporter) -> Result<Option<f64>> {
    b.set_deterministic(config.deterministic);
    let base = base_folder(config, reporter)?;
    let Read { spec, tokenizer, added, vocab, data } = read_data(config, &base, reporter)?;
    report_added(&added, spec.V, reporter);
    report_data(&data, reporter);
    let cursor =
        Cursor::new(&data.train, setup::batch_options(config, &tokenizer, true), config.gradient_accumulation_steps);
    let total = config.total_steps(cursor.micro_batches());
    let real = |path: &std::path::Path| path.canonicalize().map_err(Error::read(path));
    let real_base = real(&base)?;
    let home = if real_base.is_file() { real_base.parent().unwrap_or(&real_base) } else { &real_base };
    if config.output_dir.exists() && real(&config.output_dir)? == home {
        return Err(Error::Usage(
            "output_dir is the model's own folder, and a result would overwrite the model: choose another".into(),
        ));
    }
    let run_dir = RunDir::open(&config.output_dir)?;
    let own = config.adapter.as_deref().map(|folder| adapter::open(config, folder)).transpose()?;
    let fresh = State {
        global_step: 0,
        num_input_tokens_seen: 0,
        dataset: data.report.fingerprint.clone(),
        course: state::course(config)?,
        model: adapter::fingerprint(state::base(&base, &spec)?, &own),
        loss_scale: (config.dtype == DType::F16).then(LossScale::default),
        best: Best::default(),
        start: None,
    };
    let resume = state::find(config, reporter)?;
    if let Some((folder, found)) = &resume {
        state::check_same(folder, found, &fresh)?;
        let over = found.global_step >= total || found.best.is_over(config);
        if over && state::is_published(&config.output_dir, found) {
            reporter.message(&format!(
                "finished already: {} steps are done, {} holds the result",
                found.global_step,
                config.output_dir.display()
            ));
            return Ok(None);
        }
    }
    let mut lora = own.as_ref().map(|own| own.lora.clone()).or(config.lora.as_ref().map(setup::lora));
    lora.iter_mut().for_each(|lora| setup::train_rows(lora, &added, &spec));
    if let Some(lora) = lora.as_ref().filter(|lora| own.is_none() && lora.vocab() > vocab) {
        let (id, hint) = (lora.vocab() - 1, "new tokens come by new_tokens or [special_tokens]");
        return Err(Error::Usage(format!("lora.trainable_token_indices: token {id} of {vocab}; {hint}")));
    }
    let prompt = longest_prompt(config, &data);
    let layout = Rehearsal { config, base: &base, lora: lora.clone(), vocab, prompt }
        .layout(b.rules(), Budget::of(b, config))?;
    if !layout.fits() {
        return Err(layout.error(b.name()));
    }
    let mut model = Model::load(b, &base, &setup::load_options(config, lora, vocab, layout.places))?;
    if let Some(own) = &own {
        // also before a checkpoint, which holds what is trained: an adapter may have saved what is not
        peft::load(b, &mut model, own.folder)?;
        if resume.is_none() {
            own.notes.iter().for_each(|note| reporter.message(note));
        }
    }
    let mut optimizer = Optimizer::new(b, &mut model, Hyper { stay: layout.stay, ..setup::hyper(config) })?;
    let mut state = State { start: state::start(&model), ..fresh };
    let from = resume.as_ref().map(|(folder, _)| folder.display().to_string());
    if let Some((folder, found)) = resume {
        state::check_start(&folder, &found, &state)?;
        state::load(b, &mut model, &mut optimizer, &folder, &found)?;
        reporter.message(&format!("resumed after step {} from {}", found.global_step, folder.display()));
        state = found;
    }
    let N = config.per_device_train_batch_size * config.max_length;
    let aux_coef = router::coef(config, &base, &model)?;
    let session = Some(Session::new(b, &model, N, config.max_length, layout.plan.clone())?);
    if let Some(warning) = space::check(config, &model)? {
        reporter.message(&warning);
    }
    // only now is it certain that the run starts, so only now may what it replaces go
    for old in run_dir.remove_after(state.global_step)? {
        reporter.message(&format!(
            "removed {}: this run takes another course from step {}",
            old.display(),
            state.global_step
        ));
    }
    state::unpublish(run_dir.path())?;
    let info = RunInfo { total_steps: total, ..RunInfo::new(config, b, &model, &data, cursor.fill()) };
    let record = Record::open(config, info, state.global_step, from)?;
    disk::publish(&config.output_dir.join("config.toml"), |file| disk::write(file, config.to_toml()?.as_bytes()))?;
    report_parameters(&model, reporter);
    report_compute(b, &model, reporter);
    report_rates(&optimizer, reporter);
    let (plan, peak) = (&layout.plan, gib(layout.memory.peak));
    let host = if layout.memory.host_peak > 0 {
        format!(", {} on the host", gib(layout.memory.host_peak))
    } else {
        String::new()
    };
    reporter.message(&format!("activations: {plan}; {peak} of memory{host}; {total} steps of {N} tokens"));
    layout.gradients().iter().for_each(|what| reporter.message(what));
    if layout.places.blocks == Place::Host {
        let what = "the frozen weights wait on the host and come layer by layer: for every token that the model would say, so it is not asked";
        reporter.message(what);
    }
    reporter.start(state.global_step, total);
    let schedule = Schedule::new(config, total);
    let clock = Clock { since: Instant::now(), tokens: 0, epoch: 0.0 };
    Run {
        config,
        base,
        b,
        tokenizer: &tokenizer,
        data: &data,
        cursor,
        total,
        run_dir,
        model,
        optimizer,
        session,
        plan: layout.plan,
        record,
        aux_coef,
        schedule,
        state,
        clock,
    }
    .run(reporter)
}

/// What a run starts from, all of it sound.
pub(super) struct Read {
    pub spec: Spec,
    pub tokenizer: Tokenizer,
    /// The ids that the tokenizer has over the base's.
    pub added: Vec<u32>,
    /// Rows that embedding and head must have at least.
    pub vocab: usize,
    /// As the tokenizer has it.
    pub data: Dataset,
}

pub(super) fn read_data(config: &TrainConfig, base: &Path, reporter: &mut dyn Reporter) -> Result<Read> {
    let (spec, tokenizer) = model::check(base)?.sound()?;
    if spec.positions == Positions::Learned && config.max_length > spec.max_positions {
        let (wanted, most) = (config.max_length, spec.max_positions);
        return Err(Error::Usage(format!(
            "max_length is {wanted}, but the model has learned {most} positions: set {most}"
        )));
    }
    let vocab = config.adapter.as_deref().map_or(Ok(spec.V), |adapter| peft::vocab(adapter, &spec))?;
    let (tokenizer, added) = setup::tokenizer(config, base, tokenizer, vocab)?;
    let data = load_data(config, &tokenizer, reporter)?;
    let vocab = vocab.max(tokenizer.vocab_size());
    Ok(Read { spec, tokenizer, added, vocab, data })
}

/// Where the base model's files are.
pub(super) fn base_folder(config: &TrainConfig, reporter: &mut dyn Reporter) -> Result<PathBuf> {
    hub::resolve(&config.model_name_or_path, hub::Kind::Model, &mut |event| {
        reporter.download(event);
        !reporter.is_interrupted()
    })
}

/// `V`: the base's rows.
fn report_added(added: &[u32], V: usize, reporter: &mut dyn Reporter) {
    let (Some(first), Some(last)) = (added.first(), added.last()) else { return };
    let beyond = added.iter().filter(|id| **id as usize >= V).count();
    reporter.message(&format!(
        "{} new tokens, ids {first} to {last}: {beyond} get new rows, which start as the mean of all, the others have rows to spare",
        added.len()
    ));
}

/// As PEFT's `print_trainable_parameters`, then part by part.
fn report_parameters(model: &Model, reporter: &mut dyn Reporter) {
    let (trainable, all) = (model.trainable_parameters() as u64, model.all_parameters());
    let percent = 100.0 * trainable as f64 / all as f64;
    let (count, total) = (grouped(trainable), grouped(all));
    reporter.message(&format!("trainable params: {count} || all params: {total} || trainable%: {percent:.4}"));
    let parts = model.trainable_parts().into_iter().map(|(part, count)| format!("{part} {}", grouped(count as u64)));
    reporter.message(&format!("of these: {}", parts.collect::<Vec<_>>().join(", ")));
}

/// Where products are in e4m3: how many, and whether that is fast here.
fn report_compute(b: &dyn Backend, model: &Model, reporter: &mut dyn Reporter) {
    let (all, fp8) = (model.linears().count(), model.linears().filter(|linear| linear.fp8().is_some()).count());
    if fp8 > 0 {
        let slow =
            if b.has_fp8() { "" } else { "; this device has no units for it: it saves memory, and takes longer" };
        reporter.message(&format!("compute: fp8 in {fp8} of {all} linear layers{slow}"));
    }
}

/// Where there is more than one: each learning rate, and for how many parameters.
fn report_rates(optimizer: &Optimizer, reporter: &mut dyn Reporter) {
    if optimizer.shares().count() < 2 {
        return;
    }
    for Share { rule, rate, count } in optimizer.shares() {
        let what = if *rate == 0.0 { "frozen".to_string() } else { format!("learning rate {rate:e}") };
        reporter.message(&format!("{what}: {} parameters ({rule})", grouped(*count as u64)));
    }
}

/// With a word every while, for large data.
fn load_data(config: &TrainConfig, tokenizer: &Tokenizer, reporter: &mut dyn Reporter) -> Result<Dataset> {
    let mut options = setup::data_options(config);
    let pretrain = options.pretrain;
    for source in options.sources.iter_mut().chain(&mut options.eval_sources) {
        data::hub::fetch(source, pretrain, &mut |event| {
            reporter.download(event);
            !reporter.is_interrupted()
        })?;
    }
    let mut told = Instant::now();
    data::load_watched(&options, tokenizer, &mut |progress| {
        if told.elapsed() > SILENCE {
            told = Instant::now();
            reporter.message(&format!("{}: {} records are encoded", progress.file.display(), progress.rows));
        }
        !reporter.is_interrupted()
    })
}

fn report_data(data: &Dataset, reporter: &mut dyn Reporter) {
    let r = &data.report;
    let (train, eval) = (data.train.len(), data.eval.len());
    reporter.message(&format!(
        "{} records: {train} to train on, {eval} to evaluate on; {} tokens, {} count",
        r.records, r.tokens, r.targets
    ));
    data.notes.iter().for_each(|note| reporter.message(note));
    for found in r.findings.iter() {
        reporter.message(&found.to_string());
    }
}

/// Tokens and time since the last line of metrics.
struct Clock {
    since: Instant,
    tokens: u64,
    epoch: f64,
}

struct Run<'a> {
    config: &'a TrainConfig,
    /// The base model's folder.
    base: PathBuf,
    b: &'a dyn Backend,
    tokenizer: &'a Tokenizer,
    data: &'a Dataset,
    cursor: Cursor<'a>,
    total: u64,
    run_dir: RunDir,
    model: Model,
    optimizer: Optimizer,
    /// `None` while something else has its memory.
    session: Option<Session<'a>>,
    plan: Plan,
    record: Record,
    /// Of the routers' balance loss, where it counts.
    aux_coef: Option<f64>,
    schedule: Schedule,
    state: State,
    clock: Clock,
}

impl Run<'_> {
    fn run(mut self, reporter: &mut dyn Reporter) -> Result<Option<f64>> {
        let ended = self.steps(reporter).map_err(|e| failed::with_way_on(e, self.config));
        let recorded = self.record.end(&ended);
        // what went wrong first is what is told
        ended.and_then(|eval| recorded.map(|()| eval))
    }

    fn steps(&mut self, reporter: &mut dyn Reporter) -> Result<Option<f64>> {
        self.compare(reporter)?;
        let mut eval = None;
        if self.state.global_step == 0 && self.config.eval_on_start {
            eval = self.evaluate(reporter)?;
        }
        self.clock.since = Instant::now();
        let mut saved = self.state.global_step;
        while !self.is_over() {
            let ends_epoch = self.step(reporter)?;
            let mut improved = false;
            if self.evaluates_now(ends_epoch) {
                eval = self.evaluate(reporter)?;
                improved = eval.as_ref().is_some_and(|eval| self.state.best.see(self.config, eval));
            }
            let interrupted = reporter.is_interrupted() && !self.is_over();
            let wanted = reporter.wants_checkpoint();
            if self.saves_now(ends_epoch, improved) || interrupted || wanted {
                self.save(reporter)?;
                saved = self.state.global_step;
            }
            if interrupted {
                return Err(self.interrupted());
            }
        }
        if saved != self.state.global_step {
            self.save(reporter)?;
        }
        self.optimizer.finish(self.b)?;
        self.take_best(reporter)?;
        state::publish(self.b, &self.model, self.config, &self.base, &self.state, self.run_dir.path())?;
        reporter.saved(self.run_dir.path());
        self.compare(reporter)?;
        Ok(eval.map(|eval| eval.eval_loss))
    }

    fn is_over(&self) -> bool {
        self.state.global_step >= self.total || self.state.best.is_over(self.config)
    }

    fn evaluates_now(&self, ends_epoch: bool) -> bool {
        let (step, every) = (self.state.global_step, self.config.eval_steps.steps(self.total));
        match self.config.eval_strategy {
            EvalStrategy::No => false,
            EvalStrategy::Steps => step.is_multiple_of(every) || step == self.total,
            EvalStrategy::Epoch => ends_epoch || step == self.total,
        }
    }

    /// `improved`: there was an evaluation, and it was the best so far.
    fn saves_now(&self, ends_epoch: bool, improved: bool) -> bool {
        let every = self.config.save_steps.steps(self.total);
        let due = match self.config.save_strategy {
            SaveStrategy::No => false,
            SaveStrategy::Steps => self.state.global_step.is_multiple_of(every),
            SaveStrategy::Epoch => ends_epoch,
            SaveStrategy::Best => improved,
        };
        due || self.is_over() || improved && self.config.load_best_model_at_end
    }

    fn save(&mut self, reporter: &mut dyn Reporter) -> Result<()> {
        let started = Instant::now();
        self.record.sync()?;
        self.optimizer.finish(self.b)?;
        let folder =
            state::save(self.b, &self.run_dir, &self.model, &self.optimizer, self.config, &self.base, &self.state)?;
        reporter.saved(&folder);
        self.clock.since += started.elapsed();
        Ok(())
    }

    fn interrupted(&self) -> Error {
        let how = failed::way_on(self.config);
        Error::Interrupted(format!("interrupted after step {}; {how}", self.state.global_step))
    }

    /// Where the best weights are wanted, and were those of an earlier step: these.
    fn take_best(&mut self, reporter: &mut dyn Reporter) -> Result<()> {
        let Best { metric, global_step, .. } = self.state.best;
        let (step, last) = (global_step.unwrap_or(self.state.global_step), self.state.global_step);
        let of_best = || {
            format!("step {step} with {} = {:.4}", self.config.metric_for_best_model.name(), metric.unwrap_or(f64::NAN))
        };
        if last < self.total {
            reporter.message(&format!("stopped early at step {last}; the best evaluation was that of {}", of_best()));
        }
        if step == last || !self.config.load_best_model_at_end {
            return Ok(());
        }
        let folder = checkpoint::folder(self.run_dir.path(), step);
        if !folder.exists() {
            // the run came from elsewhere, or did not always want its best weights
            let there = folder.display();
            reporter.message(&format!(
                "{there} is not there, so the result is that of step {last}, not that of {}",
                of_best()
            ));
            return Ok(());
        }
        checkpoint::verify(&folder)?;
        let found = state::read(&folder)?;
        state::check_same(&folder, &found, &self.state)?;
        state::load(self.b, &mut self.model, &mut self.optimizer, &folder, &found)?;
        reporter.message(&format!("the result is that of {}", of_best()));
        Ok(())
    }
}
