//! The one loop: batches in, gradients, a step, metrics, evaluation, checkpoints, a result.
use super::checkpoint::RunDir;
use super::config::{Resume, TrainConfig};
use super::cursor::Cursor;
use super::method::cross_entropy;
use super::metrics::{EvalMetrics, MetricsFile, Reporter, StepMetrics};
use super::optim::Optimizer;
use super::plan::{Budget, Rehearsal, gib};
use super::schedule::Schedule;
use super::state::{self, State};
use super::{adapter, disk, setup};
use crate::backend::{Backend, Charge, Use};
use crate::data::{self, Batch, BatchOptions, Dataset, Tokenizer};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::export::peft;
use crate::infer::{self, Sampling};
use crate::io::hub;
use crate::model::spec::{Positions, Spec};
use crate::model::{self, Model, Place, Session, Tokens};
use crate::rng::Rng;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Tokens of the sample that shows the model before and after.
const SAMPLE_TOKENS: usize = 64;
/// Between words about data that is being encoded.
const SILENCE: Duration = Duration::from_secs(10);

/// Runs a config to its end, from wherever an earlier run of it got to. Returns the last evaluation's loss.
pub fn train(config: &TrainConfig, b: &dyn Backend, reporter: &mut dyn Reporter) -> Result<Option<f64>> {
    if config.dtype == DType::F16 {
        let what = "training in float16 needs loss scaling, which is not there yet: set dtype to bfloat16 (any backend has it) or float32";
        return Err(Error::Usage(what.into()));
    }
    b.set_deterministic(config.deterministic);
    let base = base_folder(config, reporter)?;
    let Read { spec, tokenizer, added, vocab, data } = read_data(config, &base, reporter)?;
    report_added(&added, spec.V, reporter);
    report_data(&data, reporter);
    let cursor =
        Cursor::new(&data.train, setup::batch_options(config, &tokenizer, true), config.gradient_accumulation_steps);
    let total = config.total_steps(cursor.micro_batches());
    let run_dir = RunDir::open(&config.output_dir)?;
    let real = |path: &std::path::Path| path.canonicalize().map_err(Error::read(path));
    let real_base = real(&base)?;
    let home = if real_base.is_file() { real_base.parent().unwrap_or(&real_base) } else { &real_base };
    if real(run_dir.path())? == home {
        return Err(Error::Usage(
            "output_dir is the model's own folder, and a result would overwrite the model: choose another".into(),
        ));
    }
    let own = config.adapter.as_deref().map(|folder| adapter::open(config, folder)).transpose()?;
    let fresh = State {
        global_step: 0,
        num_input_tokens_seen: 0,
        dataset: data.report.fingerprint.clone(),
        course: state::course(config)?,
        model: adapter::fingerprint(state::base(&base, &spec)?, &own),
    };
    let resume = state::find(config, reporter)?;
    if let Some((folder, found)) = &resume {
        state::check_same(folder, found, &fresh)?;
        if found.global_step >= total && state::is_published(&config.output_dir, found) {
            reporter.message(&format!(
                "finished already: {} steps are done, {} holds the result",
                total,
                config.output_dir.display()
            ));
            return Ok(None);
        }
    }
    let mut lora = own.as_ref().map(|own| own.lora.clone()).or(config.lora.as_ref().map(setup::lora));
    lora.iter_mut().for_each(|lora| setup::train_rows(lora, &added, &spec));
    let prompt = prompt(&data).map(|prompt| prompt.len());
    let layout = Rehearsal { config, base: &base, lora: lora.clone(), vocab, prompt }
        .layout(b.rules(), Budget::of(b, config))?;
    if !layout.fits() {
        return Err(layout.error(b.name()));
    }
    let mut model = Model::load(b, &base, &setup::load_options(config, lora, vocab, layout.place))?;
    if let Some(own) = &own {
        // also before a checkpoint, which holds what is trained: an adapter may have saved what is not
        peft::load(b, &mut model, own.folder)?;
        if resume.is_none() {
            own.notes.iter().for_each(|note| reporter.message(note));
        }
    }
    let mut optimizer = Optimizer::new(b, &mut model, setup::hyper(config))?;
    optimizer.embedding_rate = config.embedding_learning_rate.map_or(1.0, |rate| rate / config.learning_rate);
    let mut state = fresh;
    if let Some((folder, found)) = resume {
        state::load(b, &mut model, &mut optimizer, &folder, found.global_step)?;
        reporter.message(&format!("resumed after step {} from {}", found.global_step, folder.display()));
        state = found;
    }
    let N = config.per_device_train_batch_size * config.max_length;
    let session = Session::new(b, &model, N, config.max_length, layout.plan.clone())?;
    // only now is it certain that the run starts, so only now may what it replaces go
    for old in run_dir.remove_after(state.global_step)? {
        reporter.message(&format!(
            "removed {}: this run takes another course from step {}",
            old.display(),
            state.global_step
        ));
    }
    state::unpublish(run_dir.path())?;
    let metrics = MetricsFile::open(&config.output_dir, state.global_step)?;
    disk::publish(&config.output_dir.join("config.toml"), |file| disk::write(file, config.to_toml()?.as_bytes()))?;
    report_parameters(&model, reporter);
    let (plan, peak) = (&layout.plan, gib(layout.memory.peak));
    let host = if layout.memory.host_peak > 0 {
        format!(", {} on the host", gib(layout.memory.host_peak))
    } else {
        String::new()
    };
    reporter.message(&format!("activations: {plan}; {peak} of memory{host}; {total} steps of {N} tokens"));
    if layout.place == Place::Host {
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
        metrics,
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

/// Digits in groups of three: 1,234,567.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let comma = |(i, digit): (usize, char)| {
        let comma = i > 0 && (digits.len() - i).is_multiple_of(3);
        comma.then_some(',').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(comma).collect()
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
    session: Session<'a>,
    metrics: MetricsFile,
    schedule: Schedule,
    state: State,
    clock: Clock,
}

impl Run<'_> {
    fn run(mut self, reporter: &mut dyn Reporter) -> Result<Option<f64>> {
        self.sample(reporter)?;
        let mut eval = if self.state.global_step == 0 { self.evaluate(reporter)? } else { None };
        self.clock.since = Instant::now();
        let mut saved = self.state.global_step;
        while self.state.global_step < self.total {
            self.step(reporter)?;
            let (step, last) = (self.state.global_step, self.state.global_step == self.total);
            if step.is_multiple_of(self.config.eval_steps) || last {
                eval = self.evaluate(reporter)?;
            }
            let interrupted = reporter.is_interrupted() && !last;
            if step.is_multiple_of(self.config.save_steps) || last || interrupted {
                self.save(reporter)?;
                saved = step;
            }
            if interrupted {
                let how = match self.config.resume_from_checkpoint {
                    Resume::Auto => "run the same command to go on",
                    _ => "to go on, run the same command with resume_from_checkpoint=auto",
                };
                return Err(Error::Interrupted(format!("interrupted after step {step}; {how}")));
            }
        }
        if saved != self.total {
            self.save(reporter)?;
        }
        state::publish(self.b, &self.model, self.config, &self.base, &self.state, self.run_dir.path())?;
        reporter.saved(self.run_dir.path());
        self.sample(reporter)?;
        Ok(eval)
    }

    /// Forward and backward of each micro-batch, then the optimizer.
    fn step(&mut self, reporter: &mut dyn Reporter) -> Result<()> {
        let (batches, epoch) = self.cursor.step(self.state.global_step);
        let counted: usize = batches.iter().map(|batch| batch.counted).sum();
        let mut loss = 0.0;
        for (micro, batch) in batches.into_iter().enumerate() {
            self.session.set_dropout(Some(self.dropout_seed(micro)));
            let coef = cross_entropy::coef(&batch.labels, counted);
            let Batch { ids, labels, positions, cu_seqlens, tokens, .. } = batch;
            self.session.forward(&self.model, &Tokens { ids, positions, cu_seqlens })?;
            self.session.backward(&mut self.model, &labels, &coef)?;
            loss += cross_entropy::loss(&self.session.backward_logprobs()?, counted);
            self.state.num_input_tokens_seen += tokens as u64;
            self.clock.tokens += tokens as u64;
        }
        self.session.set_dropout(None);
        if !loss.is_finite() {
            return Err(self.stopped(format!("the loss is {loss}")));
        }
        let learning_rate = self.schedule.lr(self.state.global_step);
        let grad_norm = self.optimizer.step(self.b, learning_rate).map_err(|e| match e {
            Error::Stopped(what) => self.stopped(what),
            e => e,
        })? as f64;
        self.state.global_step += 1;
        self.clock.epoch = epoch;
        let step = self.state.global_step;
        let metrics = StepMetrics {
            step,
            epoch,
            loss,
            grad_norm,
            learning_rate,
            num_input_tokens_seen: self.state.num_input_tokens_seen,
            tokens_per_second: self.clock.tokens as f64 / self.clock.since.elapsed().as_secs_f64().max(1e-9),
            memory: self.b.memory().peak,
        };
        reporter.step(&metrics);
        if step.is_multiple_of(self.config.logging_steps) || step == self.total {
            self.metrics.step(&metrics)?;
            (self.clock.since, self.clock.tokens) = (Instant::now(), 0);
        }
        Ok(())
    }

    /// The same for the same step, whenever it is run.
    fn dropout_seed(&self, micro: usize) -> u32 {
        Rng::named(self.config.seed, &format!("dropout {} {micro}", self.state.global_step)).bits() as u32
    }

    /// Nothing was changed by the step that failed; the last checkpoint is good.
    fn stopped(&self, what: String) -> Error {
        let step = self.state.global_step + 1;
        let hint = "lower the learning rate or set max_grad_norm; the checkpoints in output_dir are from before";
        Error::Stopped(format!("step {step}: {what}: training stopped before the weights were touched; {hint}"))
    }

    fn save(&mut self, reporter: &mut dyn Reporter) -> Result<()> {
        let started = Instant::now();
        self.metrics.sync()?;
        let folder =
            state::save(self.b, &self.run_dir, &self.model, &self.optimizer, self.config, &self.base, &self.state)?;
        reporter.saved(&folder);
        self.clock.since += started.elapsed();
        Ok(())
    }

    /// The mean loss of the held-out examples, in the training session's own buffers: no memory more than a step's.
    fn evaluate(&mut self, reporter: &mut dyn Reporter) -> Result<Option<f64>> {
        if self.data.eval.is_empty() {
            return Ok(None);
        }
        let started = Instant::now();
        let options = BatchOptions { shuffle: false, ..setup::batch_options(self.config, self.tokenizer, false) };
        let (mut loss, mut counted) = (0.0, 0);
        for batch in data::batches(&self.data.eval, &options, 0) {
            let Batch { ids, labels, positions, cu_seqlens, .. } = batch;
            self.session.forward(&self.model, &Tokens { ids, positions, cu_seqlens })?;
            loss += cross_entropy::loss(&self.session.logprobs(&self.model, &labels)?, 1);
            counted += batch.counted;
        }
        let eval_loss = loss / counted.max(1) as f64;
        let (step, epoch) = (self.state.global_step, self.clock.epoch);
        let eval = EvalMetrics { step, epoch, eval_loss, eval_runtime: started.elapsed().as_secs_f64() };
        self.metrics.eval(&eval)?;
        reporter.eval(&eval);
        self.clock.since += started.elapsed();
        Ok(Some(eval_loss))
    }

    /// What the model says to the first held-out record (or the first of all), greedily.
    fn sample(&self, reporter: &mut dyn Reporter) -> Result<()> {
        let Some(prompt) = prompt(self.data).filter(|_| self.model.streamed.is_none()) else { return Ok(()) };
        let ids = speak(self.b, &self.model, &prompt, self.config.seed, self.tokenizer.eos_ids())?;
        reporter.sample(&self.tokenizer.decode(&prompt, true)?, &self.tokenizer.decode(&ids, true)?);
        Ok(())
    }
}

/// What the model says to a prompt, greedily, for a person to see.
pub(super) fn speak(b: &dyn Backend, model: &Model, prompt: &[u32], seed: u64, stop: &[u32]) -> Result<Vec<u32>> {
    let _charge = Charge::to(b, Use::Scratch);
    let sampling = Sampling { max_new_tokens: SAMPLE_TOKENS, temperature: 0.0, seed };
    infer::generate(b, model, prompt, &sampling, stop, |_| true)
}

/// The tokens before the first trained one: a chat's question, or a text's first words.
pub(super) fn prompt(data: &Dataset) -> Option<Vec<u32>> {
    let example = data.eval.first().or(data.train.first())?;
    let question = example.trained().position(|t| t).unwrap_or(0);
    let words = if question > 1 { question } else { example.len().min(16) };
    Some(example.ids().take(words).collect())
}
