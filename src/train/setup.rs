//! From a config to what a run works with: data, model, buffers.
use super::config::{AdjustLr, LoraConfig as LoraKeys, Method, Optim, SpecialTokens, TrainConfig};
use super::optim::{Decay, Home, Hyper, Precision, Rates, Rule, Stay};
use crate::data::{self, BatchOptions, DataOptions, NewTokens, Packing, Source, Tokenizer};
use crate::error::{Error, Result};
use crate::export::peft;
use crate::model::lora::{LoraConfig, TokenIndices};
use crate::model::param::{Masters, Room, Training};
use crate::model::spec::{Head, Spec};
use crate::model::{LoadOptions, Places};
use std::collections::BTreeMap;
use std::path::Path;

pub fn data_options(config: &TrainConfig) -> DataOptions {
    let of = |split: &Option<String>, source: &Source| Source {
        name: source.name.clone().or(config.dataset_config.clone()),
        split: source.split.clone().or(split.clone()),
        ..source.clone()
    };
    let train = &config.dataset_train_split;
    let sources: Vec<Source> = config.dataset.iter().map(|source| of(train, source)).collect();
    let eval_sources = match &config.dataset_test_split {
        None => config.eval_dataset.iter().map(|source| of(&None, source)).collect(),
        split => {
            let sets = config.dataset.iter().filter(|source| source.has_splits());
            sets.map(|source| Source { weight: 1.0, ..of(split, source) }).collect()
        }
    };
    DataOptions {
        sources,
        eval_sources,
        eval_split: config.eval_split,
        seed: config.seed,
        max_length: config.max_length,
        train_on: config.assistant_only_loss,
        pretrain: config.method == Method::Pretrain,
        chat_template: config.chat_template.clone(),
        cache: config.dataset_cache.then(data::cache::folder).flatten(),
    }
}

pub fn new_tokens(config: &TrainConfig) -> NewTokens {
    let SpecialTokens { bos_token, eos_token, pad_token, unk_token, additional_special_tokens } =
        &config.special_tokens;
    let named =
        [("bos_token", bos_token), ("eos_token", eos_token), ("pad_token", pad_token), ("unk_token", unk_token)];
    let names = named.into_iter().filter_map(|(name, text)| Some((name.to_string(), text.clone()?)));
    NewTokens { tokens: config.new_tokens.clone(), special: additional_special_tokens.clone(), names: names.collect() }
}

/// The tokenizer of a run, and the ids that it has over `own`, that of the base model at `base`; `V`: the model's vocabulary.
pub fn tokenizer(config: &TrainConfig, base: &Path, own: Tokenizer, V: usize) -> Result<(Tokenizer, Vec<u32>)> {
    let (new, adapter) = (new_tokens(config), config.adapter.as_deref());
    if adapter.is_none() && !new.is_empty() {
        let tokenizer = Tokenizer::load_with(base, &new)?;
        let added = new.added(&own, &tokenizer);
        return Ok((tokenizer, added));
    }
    let found = peft::tokenizer(adapter, own, V)?;
    match new.are_in(&found) {
        true => Ok((found, vec![])),
        false => Err(Error::Usage(
            "new_tokens and special_tokens go with a new adapter: the one to go on from has none of the rows that they would \
            need, so take them out, or start from the base model"
                .into(),
        )),
    }
}

/// A new adapter trains the rows of tokens that were `added`, where nothing was said of rows and it does not train all of them.
pub(super) fn train_rows(lora: &mut LoraConfig, added: &[u32], spec: &Spec) {
    let tables: &[&str] = match spec.head {
        Head::Own => &[spec.names.embed, spec.names.head],
        Head::Tied => &[spec.names.embed],
    };
    let tied_saved = spec.head == Head::Tied && lora.saves(spec.names.head);
    if added.is_empty() || lora.trainable_token_indices.is_some() || tied_saved {
        return;
    }
    let open = tables.iter().filter(|module| !lora.saves(module));
    let modules: BTreeMap<String, Vec<u32>> = open.map(|module| (leaf(module).to_string(), added.to_vec())).collect();
    lora.trainable_token_indices = match (spec.head, modules.is_empty()) {
        (_, true) => None,
        (Head::Tied, _) => Some(TokenIndices::Embedding(added.to_vec())),
        (Head::Own, _) => Some(TokenIndices::Named(modules)),
    };
}

fn leaf(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
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
        trainable_token_indices: keys.trainable_token_indices.clone(),
        use_rslora: keys.use_rslora,
        use_dora: keys.use_dora,
        init: keys.init_lora_weights,
        file: None,
    }
}

/// `lora`: the adapter's config; `vocab`: tokens at least.
pub(super) fn load_options(
    config: &TrainConfig,
    lora: Option<LoraConfig>,
    vocab: usize,
    places: Places,
) -> LoadOptions {
    let seed = config.lora.as_ref().and_then(|lora| lora.seed).unwrap_or(config.seed);
    LoadOptions {
        dtype: config.dtype,
        load_in_4bit: config.load_in_4bit,
        load_in_8bit: config.load_in_8bit,
        compute: config.compute,
        lora,
        train: true,
        freeze_router: config.freeze_router,
        seed,
        vocab,
        places,
        training: Training {
            gradients: config.gradient_accumulation_dtype,
            masters: if config.bf16_stochastic_round { Masters::None } else { Masters::F32 },
            room: Room::Later,
        },
    }
}

/// Where gradients wait, where those of so many layers may go to the host.
pub(super) fn stay(config: &TrainConfig, layers: usize) -> Stay {
    match layers {
        _ if config.steps_in_backward() => Stay::Fused,
        0 => Stay::Device,
        _ => Stay::Host { layers, micro_batches: config.gradient_accumulation_steps },
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
        stay: Stay::Device,
        seed: config.seed,
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
