//! From a config to what a run works with: data, model, buffers.
use super::config::{AdjustLr, LoraConfig as LoraKeys, Method, Optim, TrainConfig};
use super::optim::{Decay, Home, Hyper, Precision, Rates, Rule};
use crate::data::{BatchOptions, DataOptions, Packing, Tokenizer};
use crate::model::lora::LoraConfig;
use crate::model::{LoadOptions, Place};

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
        init: keys.init_lora_weights,
        file: None,
    }
}

/// `lora`: the adapter's config.
pub(super) fn load_options(config: &TrainConfig, lora: Option<LoraConfig>, place: Place) -> LoadOptions {
    let seed = config.lora.as_ref().and_then(|lora| lora.seed).unwrap_or(config.seed);
    LoadOptions {
        dtype: config.dtype,
        load_in_4bit: config.load_in_4bit,
        load_in_8bit: config.load_in_8bit,
        lora,
        train: true,
        freeze_router: config.freeze_router,
        seed,
        place,
    }
}

/// What the optimizer is told.
pub fn hyper(config: &TrainConfig) -> Hyper {
    let rule = match config.optim {
        Optim::AdamW | Optim::AdamW8bit | Optim::PagedAdamW | Optim::PagedAdamW8bit => Rule::AdamW,
        Optim::Lion | Optim::Lion8bit | Optim::PagedLion | Optim::PagedLion8bit => Rule::Lion,
        Optim::Sgd => Rule::Sgd,
        Optim::Muon => Rule::Muon,
    };
    let precision = match config.optim {
        Optim::AdamW8bit | Optim::PagedAdamW8bit | Optim::Lion8bit | Optim::PagedLion8bit => Precision::Bits8,
        Optim::AdamW | Optim::PagedAdamW | Optim::Lion | Optim::PagedLion | Optim::Sgd | Optim::Muon => Precision::F32,
    };
    let home = if config.optim.resident() == config.optim { Home::Device } else { Home::HOST };
    let (args, muon) = (&config.optim_args, rule == Rule::Muon);
    Hyper {
        rule,
        precision,
        home,
        momentum: args.momentum.unwrap_or(if muon { 0.95 } else { 0.0 }),
        dampening: args.dampening.unwrap_or(0.0),
        nesterov: args.nesterov.unwrap_or(muon),
        ns_steps: args.ns_steps.unwrap_or(5),
        adjust_lr: args.adjust_lr_fn.unwrap_or(AdjustLr::Original),
        beta1: config.adam_beta1,
        beta2: config.adam_beta2,
        eps: config.adam_epsilon,
        weight_decay: config.weight_decay,
        max_grad_norm: config.max_grad_norm,
        decay: Decay::Weights,
        rates: rates(config),
    }
}

fn rates(config: &TrainConfig) -> Rates {
    Rates {
        base: config.learning_rate,
        patterns: config.learning_rates.clone(),
        embedding: config.embedding_learning_rate,
        loraplus_ratio: config.loraplus_lr_ratio,
        loraplus_embedding: config.loraplus_lr_embedding,
        model: config.model_name_or_path.clone(),
    }
}
