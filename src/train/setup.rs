//! From a config to what a run works with: data, model, buffers.
use super::config::{Checkpointing, LoraConfig as LoraKeys, Method, Optim, TrainConfig};
use super::optim::Hyper;
use crate::backend::Backend;
use crate::data::{self, BatchOptions, DataOptions, Packing, Tokenizer};
use crate::model::lora::LoraConfig;
use crate::model::{LoadOptions, Model, Plan};

/// Activations may take this much where a device does not say what it has.
const UNKNOWN_MEMORY: u64 = 4 << 30;

pub fn data_options(config: &TrainConfig) -> DataOptions {
    DataOptions {
        sources: config.dataset.clone(),
        eval_sources: config.eval_dataset.clone(),
        eval_split: config.eval_split,
        seed: config.seed,
        max_length: config.max_length,
        train_on: config.assistant_only_loss,
        pretrain: config.method == Method::Pretrain,
        chat_template: config.chat_template.clone(),
        cache: config.dataset_cache.then(data::cache::folder).flatten(),
    }
}

pub fn batch_options(config: &TrainConfig, tokenizer: &Tokenizer, shuffle: bool) -> BatchOptions {
    let packing = match (config.method, config.packing) {
        (Method::Pretrain, _) => Packing::Wrapped,
        (Method::Sft, true) => Packing::Bfd,
        (Method::Sft, false) => Packing::Off,
    };
    let (max_length, rows) = (config.max_length, config.per_device_train_batch_size);
    BatchOptions { max_length, rows, packing, seed: config.seed, shuffle, pad_id: tokenizer.pad_id() }
}

/// A new adapter's config.
pub(super) fn lora(keys: &LoraKeys) -> LoraConfig {
    LoraConfig {
        r: keys.r,
        lora_alpha: keys.lora_alpha,
        lora_dropout: keys.lora_dropout,
        target_modules: keys.target_modules.clone(),
        exclude_modules: keys.exclude_modules.clone(),
        layers_to_transform: keys.layers_to_transform.clone(),
        layers_pattern: keys.layers_pattern.clone(),
        rank_pattern: keys.rank_pattern.clone(),
        alpha_pattern: keys.alpha_pattern.clone(),
        modules_to_save: keys.modules_to_save.clone(),
        use_rslora: keys.use_rslora,
        use_dora: keys.use_dora,
        file: None,
    }
}

/// `lora`: the adapter's config.
pub(super) fn load_options(config: &TrainConfig, lora: Option<LoraConfig>) -> LoadOptions {
    let seed = config.lora.as_ref().and_then(|lora| lora.seed).unwrap_or(config.seed);
    LoadOptions {
        dtype: config.dtype,
        load_in_4bit: config.load_in_4bit,
        load_in_8bit: config.load_in_8bit,
        lora,
        train: true,
        seed,
    }
}

pub(super) fn hyper(config: &TrainConfig) -> Hyper {
    Hyper {
        beta1: config.adam_beta1,
        beta2: config.adam_beta2,
        eps: config.adam_epsilon,
        weight_decay: config.weight_decay,
        max_grad_norm: config.max_grad_norm,
        eight_bit: config.optim == Optim::AdamW8bit,
        decay_all: false,
    }
}

/// Keeps activations where they fit beside what is allocated already, with a tenth of the device to spare.
pub(super) fn plan(config: &TrainConfig, b: &dyn Backend, model: &Model, N: usize) -> Plan {
    let memory = b.memory();
    let room = memory.total.map_or(UNKNOWN_MEMORY, |total| (total - total / 10).saturating_sub(memory.used));
    match config.gradient_checkpointing {
        Checkpointing::Always => Plan::Recompute,
        Checkpointing::Never => Plan::Keep,
        Checkpointing::Auto if Plan::Keep.bytes(&model.spec, N, model.dtype) <= room => Plan::Keep,
        Checkpointing::Auto => Plan::Recompute,
    }
}
