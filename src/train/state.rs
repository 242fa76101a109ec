//! What a checkpoint holds beside the adapter or model: enough to go on bit by bit.
use super::best::Best;
use super::checkpoint::{self, Keep, RunDir};
use super::config::{Resume, TrainConfig};
use super::loss_scale::LossScale;
use super::metrics::{self, Reporter};
use super::optim::Optimizer;
use super::{disk, setup, space};
use crate::backend::Backend;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::export::{self, peft};
use crate::model::spec::Spec;
use crate::model::{Model, Weights, arch};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// Where a run was, and what it was: resuming another run's checkpoint is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub global_step: u64,
    pub num_input_tokens_seen: u64,
    /// Of examples, masks and split.
    pub dataset: String,
    /// Of the config's keys that decide the course of training.
    pub course: String,
    /// Of the base model's config and weights, and those of the adapter that the run went on from.
    pub model: String,
    /// In float16.
    #[serde(default)]
    pub loss_scale: Option<LossScale>,
    #[serde(default)]
    pub best: Best,
    /// Of what the base's weights lack because adapters started as it.
    #[serde(default)]
    pub start: Option<String>,
}

impl State {
    /// Steps that the optimizer and the schedule have seen.
    pub fn steps_taken(&self) -> u64 {
        self.global_step - self.loss_scale.as_ref().map_or(0, |scale| scale.skipped_steps)
    }
}

/// A hash of everything in the config that changes losses; paths, logging and where to run do not.
pub(super) fn course(config: &TrainConfig) -> Result<String> {
    let mut value = serde_json::to_value(config).map_err(|e| Error::Bug(e.to_string()))?;
    let silent = [
        "output_dir",
        "dataset",
        "eval_dataset",
        "dataset_cache",
        "dataset_config",
        "dataset_train_split",
        "dataset_test_split",
        "model_name_or_path",
        "adapter",
        "backend",
        "deterministic",
        "logging_steps",
        "eval_steps",
        "save_steps",
        "save_total_limit",
        "report_to",
        "logging_dir",
        "eval_strategy",
        "eval_on_start",
        "eval_samples",
        "eval_sample_tokens",
        "save_strategy",
        "load_best_model_at_end",
        "early_stopping_patience",
        "early_stopping_threshold",
        "resume_from_checkpoint",
        "gradient_checkpointing",
        "memory_limit",
        "offload_weights",
        "optimizer_in_bwd",
        "offload_gradients",
        "offload_embedding",
        // may be changed on the way, after a loss that ran off for one
        "learning_rate",
        "embedding_learning_rate",
        "loraplus_lr_ratio",
        "loraplus_lr_embedding",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "warmup_ratio",
        "max_grad_norm",
        "weight_decay",
    ];
    if let Some(keys) = value.as_object_mut() {
        silent.iter().for_each(|key| drop(keys.remove(*key)));
        // where states lie changes nothing
        keys.insert("optim".into(), config.optim.resident().name().into());
    }
    Ok(blake3::hash(value.to_string().as_bytes()).to_hex().to_string())
}

/// Of a base model's config and weights.
pub(super) fn base(folder: &Path, spec: &Spec) -> Result<String> {
    let config = arch::read_config(folder)?.to_string();
    let weights = Weights::open(folder, Some(spec))?.fingerprint();
    Ok(blake3::hash(format!("{config} {weights}").as_bytes()).to_hex().to_string())
}

/// The trained weights as other tools load them: an adapter, or a whole model, with the tokenizer's files beside it.
/// `base` is the folder of the base model.
pub(super) fn write_result(
    b: &dyn Backend,
    model: &Model,
    config: &TrainConfig,
    base: &Path,
    out: &Path,
) -> Result<()> {
    match model.lora {
        Some(_) => peft::save(b, model, &config.model_name_or_path.to_string_lossy(), out)?,
        None => export::full::save(b, model, base, out)?,
    }
    export::folder::copy_companions(base, out)?;
    if let Some(adapter) = &config.adapter {
        export::folder::copy_files(adapter, out)?;
    }
    setup::new_tokens(config).write(out)?;
    if config.adapter.is_none() && config.chat_template.is_none() {
        return Ok(());
    }
    let (tokenizer, _) = setup::tokenizer(config, base, Tokenizer::load(base)?, model.spec.V)?;
    match &config.chat_template {
        Some(name) => export::folder::chat_template(name, &tokenizer, out),
        // whatever file of the adapter holds it, it goes over the base's
        None => export::folder::own_template(&tokenizer, out),
    }
}

/// Names of results; those of an earlier run must not stay beside a new one.
fn is_result(name: &str) -> bool {
    let weights =
        name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"));
    weights || ["adapter_config.json", "adapter_model.safetensors", "config.json", STATE].contains(&name)
}

/// Takes the result of an earlier run away: whoever finds one can rely on it.
pub(super) fn unpublish(dir: &Path) -> Result<()> {
    if !dir.join(metrics::FILE).exists() {
        // no run of ours has been here: what is there belongs to somebody else
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).map_err(Error::read(dir))? {
        let path = entry.map_err(Error::read(dir))?.path();
        if path.is_file() && path.file_name().is_some_and(|n| is_result(&n.to_string_lossy())) {
            std::fs::remove_file(&path).map_err(Error::write(&path))?;
        }
    }
    Ok(())
}

/// The result at the top of the output folder; the state comes last and says that all of it is there.
pub(super) fn publish(
    b: &dyn Backend,
    model: &Model,
    config: &TrainConfig,
    base: &Path,
    state: &State,
    dir: &Path,
) -> Result<()> {
    disk::publish_all(dir, |dir| write_result(b, model, config, base, dir))?;
    let text = serde_json::to_vec_pretty(state).map_err(|e| Error::Bug(e.to_string()))?;
    disk::publish(&dir.join(STATE), |file| disk::write(file, &text))
}

/// The result of exactly this state is there.
pub(super) fn is_published(dir: &Path, state: &State) -> bool {
    read(dir).is_ok_and(|found| found == *state)
}

/// Saves a checkpoint: what is trained as a result, and the exact state.
pub(super) fn save(
    b: &dyn Backend,
    run: &RunDir,
    model: &Model,
    optimizer: &Optimizer,
    config: &TrainConfig,
    base: &Path,
    state: &State,
) -> Result<PathBuf> {
    let keep = Keep { most: config.save_total_limit, best: state.best.global_step };
    run.save(state.global_step, keep, |dir| {
        write_result(b, model, config, base, dir)?;
        optimizer.save(b, model, &dir.join(OPTIMIZER))?;
        let text = serde_json::to_vec_pretty(state).map_err(|e| Error::Bug(e.to_string()))?;
        std::fs::write(dir.join(STATE), text).map_err(Error::write(dir.join(STATE)))
    })
    .map_err(|e| disk::explained(e, space::checkpoint_bytes(config, model)))
}

/// The checkpoint to go on from, if the config asks for one and there is one.
pub(super) fn find(config: &TrainConfig, reporter: &mut dyn Reporter) -> Result<Option<(PathBuf, State)>> {
    let folder = match &config.resume_from_checkpoint {
        Resume::Never => None,
        Resume::Folder(folder) => {
            checkpoint::verify(folder)?;
            Some(folder.clone())
        }
        Resume::Auto => {
            let found = checkpoint::newest(&config.output_dir)?;
            found.damaged.iter().for_each(|e| reporter.message(&format!("skipped a damaged checkpoint: {e}")));
            if let (None, Some(damage)) = (&found.newest, found.damaged.into_iter().next()) {
                // starting anew would delete what may still be repaired
                return Err(damage);
            }
            found.newest.map(|(_, folder)| folder)
        }
    };
    folder.map(|folder| read(&folder).map(|state| (folder, state))).transpose()
}

pub(super) fn read(folder: &Path) -> Result<State> {
    let file = folder.join(STATE);
    let text = std::fs::read(&file).map_err(Error::read(&file))?;
    serde_json::from_slice(&text).map_err(|e| Error::content(&file, format!("line {}", e.line()), e))
}

/// A hash of what adapters started as, where the base's weights lack it.
pub(super) fn start(model: &Model) -> Option<String> {
    let starts = model.linears().filter_map(|linear| linear.lora.as_ref()?.start.as_ref());
    let (mut hasher, mut any) = (blake3::Hasher::new(), false);
    for start in starts {
        any = true;
        for x in start.a.iter().chain(&start.b) {
            hasher.update(&x.to_le_bytes());
        }
    }
    any.then(|| hasher.finalize().to_hex().to_string())
}

/// The adapter's start is computed again, and must come out as it was.
pub(super) fn check_start(folder: &Path, found: &State, now: &State) -> Result<()> {
    if found.start == now.start {
        return Ok(());
    }
    let what = "the adapter's start (init_lora_weights) comes out with other bits here than where the run began: go on with the \
                backend and the machine that it began on";
    Err(Error::content(folder.join(STATE), "start", what))
}

/// Brings weights and moments back.
pub(super) fn load(
    b: &dyn Backend,
    model: &mut Model,
    optimizer: &mut Optimizer,
    folder: &Path,
    state: &State,
) -> Result<()> {
    optimizer.load(b, model, &folder.join(OPTIMIZER), state.steps_taken())
}

/// A checkpoint of other data or other settings would not go on, it would go wrong.
pub(super) fn check_same(folder: &Path, found: &State, now: &State) -> Result<()> {
    let other = |what: &str| {
        let hint = "set resume_from_checkpoint = false to start anew, or another output_dir";
        Err(Error::content(folder.join(STATE), "", format!("the checkpoint is of a run with {what}; {hint}")))
    };
    if found.dataset != now.dataset {
        return other("other data");
    }
    if found.model != now.model {
        return other("another base model");
    }
    if found.course != now.course {
        return other("other settings (method, batch, length, steps, seed, adapter, dtype or optimizer)");
    }
    Ok(())
}
