//! A run, as its config file says it. One block per key below: documentation, type, default, other spellings and rule.
//!
//! Names are those of transformers' `TrainingArguments`, TRL's `SFTConfig` and PEFT's `LoraConfig`, and so are the
//! defaults, but where a line says otherwise.
mod adapter;
mod check;
mod dataset;
mod page;
mod source;
mod tree;
mod values;
use crate::backend::pick;
use crate::data::{Source as Dataset, TrainOn};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::export::peft;
use crate::io::hub;
use crate::model::Compute;
use crate::model::lora::{self, Init, Patterns, Targets, TokenIndices};
use serde::Serialize;
use source::{Key, Source};
use std::path::{Path, PathBuf};
pub use values::{
    AdjustLr, BestMetric, Bytes, Checkpointing, EvalStrategy, Every, LoraBias, Method, Optim, ReportTo, Resume,
    SaveStrategy, SchedulerType, Tracker,
};

/// Declares a table of the config: `key | "alias": Type = default, if rule, "what must be";`. No default: must be given.
macro_rules! keys {
    ($(#[$meta:meta])* $name:ident in $table:literal { $(
        $(#[doc = $doc:literal])+
        $key:ident $(| $alias:literal)* : $ty:ty $(= $default:expr)? $(, if $check:expr, $want:literal)* ;
    )+ $( tables { $( $(#[doc = $inner_doc:literal])+ $inner:ident : $inner_ty:ty = $read:expr; )+ } )? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $key: $ty, )+
            $( $( $(#[doc = $inner_doc])+ pub $inner: $inner_ty, )+ )?
        }
        impl $name {
            const KEYS: &[Key] = &[ $( Key {
                name: concat!($table, stringify!($key)),
                aliases: &[ $($alias),* ],
                doc: &[ $($doc),+ ],
                default: || {
                    let default: Option<$ty> = None $(.or(Some($default)))?;
                    default.map(|d| serde_json::to_string(&d).unwrap_or_default())
                },
            } ),+ ];
            fn take(source: &Source) -> Result<$name> {
                Ok($name {
                    $( $key: source.take(
                        concat!($table, stringify!($key)),
                        None $(.or(Some($default)))?,
                        &[ $(($check, $want)),* ],
                    )?, )+
                    $( $( $inner: $read(source)?, )+ )?
                })
            }
        }
    };
}

keys! {
    /// Everything that a run is told. Paths are relative to the working directory.
    TrainConfig in "" {
        /// The base model: a folder with `config.json`, safetensors and tokenizer files, as Hugging Face writes it; its
        /// name on the Hub, `org/name` or `org/name@revision`; or a GGUF file.
        model_name_or_path | "base_model" | "model": PathBuf;
        /// An adapter to go on from: a folder as PEFT writes it. What the `[lora]` table does not say is as there.
        adapter | "adapter_name_or_path": Option<PathBuf> = None;
        /// `"sft"`: supervised fine-tuning on conversations or texts. `"pretrain"`: documents end to end.
        method: Method = Method::Sft;
        /// Records to train on: a file (JSONL, JSON, CSV, TSV, Parquet; for pretraining also text), a folder, a glob, a data
        /// set's name on the Hub (`org/name`, `org/name@revision`, `hf://datasets/org/name/path/*.parquet`), or a list of them.
        /// A table says more: `{path = "a.csv", weight = 2.0, columns = {prompt = "question"}}`. Its keys: `name` (a data
        /// set's subset), `split` (of a folder's, glob's or data set's files), `weight` (how often an epoch sees each record), `columns` (our name = the
        /// file's), `roles` (the file's = ours), `merged_prompt` (the user's words made of columns, as in
        /// `"Age {Age}.[[ Name: {Name}.]]"`; a `[[part]]` whose column is empty is left out; `output` answers it),
        /// `conversation_extension` (chats go on with so many others less one).
        dataset | "datasets" | "dataset_name": Vec<Dataset>, if |d: &Vec<Dataset>| !d.is_empty(), "at least one path";
        /// Records to evaluate on, written like `dataset`.
        eval_dataset | "eval_datasets": Vec<Dataset> = Vec::new();
        /// The subset of data sets on the Hub that name none themselves.
        dataset_config | "dataset_config_name": Option<String> = None;
        /// The split of folders and data sets in `dataset` that name none themselves. Of a data set with several it is `train`.
        dataset_train_split: Option<String> = None;
        /// The split of the same folders and data sets to evaluate on; not with `eval_dataset` or `eval_split`.
        dataset_test_split: Option<String> = None;
        /// The share of `dataset` that is kept out of training and evaluated on instead, chosen by `seed`.
        eval_split | "val_set_size": f64 = 0.0, if |x| (0.0..1.0).contains(x), "at least 0 and less than 1";
        /// Keep the tokens of `dataset` and `eval_dataset` on disk, under a hash of the files' content, the tokenizer, the chat
        /// template and whatever else decides them: the next run with the same starts at once, and tokens need no memory. In
        /// `tokens` in `$LUTHIER_CACHE`, else in `luthier` in the user's folder for caches. `false`: they stay in memory.
        dataset_cache: bool = true;
        /// Where the run keeps its checkpoints, metrics and result.
        output_dir | "output": PathBuf;

        /// Tokens of a sequence at most; what is longer is cut.
        max_length | "max_seq_length" | "max_seq_len" | "sequence_len": usize = 1024, if |n| *n >= 2, "2 or more";
        /// Several records share a row of `max_length` tokens; they never attend to one another.
        packing | "sample_packing": bool = false;
        /// A `.jinja` file or a name: chatml, llama-3, mistral, gemma, phi-3, phi-4, qwen, alpaca, vicuna, zephyr. The
        /// model's own where not given.
        chat_template | "chat_template_path": Option<String> = None;
        /// Texts that become one token each, like other text otherwise. Their rows of embedding and head are trained: with a
        /// `[lora]` table those rows alone, else with everything. Control tokens belong in `[special_tokens]`.
        new_tokens | "add_new_tokens" | "tokens": Vec<String> = Vec::new(), if |t: &Vec<String>| t.iter().all(|t| !t.trim().is_empty()), "texts that are not blank";
        /// Only the assistant's words count in the loss; `"last"`: only those of its last message; `false`: all of a chat.
        /// Of a prompt with its completion the completion counts, of records without roles every token does.
        /// TRL's default is `false`.
        assistant_only_loss: TrainOn = TrainOn::Assistant;

        /// Rows of `max_length` tokens in a micro-batch.
        per_device_train_batch_size | "micro_batch_size" | "batch_size": usize = 8, if |n| *n >= 1, "1 or more";
        /// Micro-batches whose gradients make one step.
        gradient_accumulation_steps | "gradient_accumulation": usize = 1, if |n| *n >= 1, "1 or more";
        /// Passes over the data; may be a fraction. `max_steps` overrides it.
        num_train_epochs | "num_epochs" | "epochs": f64 = 3.0, if |x| *x > 0.0, "more than 0";
        /// Steps of the run; -1: as many as `num_train_epochs` takes.
        max_steps: i64 = -1, if |n| *n == -1 || *n >= 1, "1 or more, or -1 for `num_train_epochs`";

        /// The highest learning rate of the run.
        learning_rate | "lr": f64 = 2e-5, if |x| *x > 0.0, "more than 0";
        /// The same for the embeddings and the head, where they are trained; `learning_rate` where not given.
        embedding_learning_rate: Option<f64> = None, if |x| x.is_none_or(|x| x > 0.0), "more than 0";
        /// The learning rate's course after the warmup.
        lr_scheduler_type | "lr_scheduler": SchedulerType = SchedulerType::Linear;
        /// Steps over which the learning rate rises from 0.
        warmup_steps: u64 = 0;
        /// The same as a share of all steps, rounded up.
        warmup_ratio: f64 = 0.0, if |x| (0.0..=1.0).contains(x), "from 0 to 1";
        /// NEFTune: noise on the embeddings in training, uniform in ±alpha/√(length·channels) of each sequence. 5 is usual.
        neftune_noise_alpha: Option<f64> = None, if |x| x.is_none_or(|x| x > 0.0), "more than 0";
        /// Add the routers' balance loss of a mixture of experts, over all layers as transformers has it; padding does not count, every
        /// other token does. The mean over a step's micro-batches; `loss` and `eval_loss` leave it out, `aux_loss` is it. The model's own
        /// config where not given.
        output_router_logits: Option<bool> = None;
        /// By which it counts; the model's own config, and then transformers' default for it, where not given. Given, it is added.
        router_aux_loss_coef: Option<f64> = None, if |x| x.is_none_or(|x| x >= 0.0), "0 or more";
        /// Full fine-tuning leaves the routers of a mixture of experts as they are. An adapter's run does so anyway, unless its modules
        /// name them.
        freeze_router: bool = false;
        /// AdamW's decoupled weight decay; norms and biases have none.
        weight_decay: f64 = 0.0, if |x| *x >= 0.0, "0 or more";
        /// AdamW's β₁.
        adam_beta1: f64 = 0.9, if |x| (0.0..1.0).contains(x), "at least 0 and less than 1";
        /// AdamW's β₂.
        adam_beta2: f64 = 0.999, if |x| (0.0..1.0).contains(x), "at least 0 and less than 1";
        /// AdamW's ε.
        adam_epsilon: f64 = 1e-8, if |x| *x > 0.0, "more than 0";
        /// The gradient's norm is clipped to it; 0: not clipped.
        max_grad_norm | "gradient_clipping": f64 = 1.0, if |x| *x >= 0.0, "0 or more";
        /// `"adamw"`, `"adamw_8bit"`, `"lion_32bit"`, `"lion_8bit"`, `"sgd"` or `"muon"`. `"paged_adamw_32bit"`,
        /// `"paged_adamw_8bit"`, `"paged_lion_32bit"` and `"paged_lion_8bit"` keep their states in host memory. Hugging Face's other
        /// names for them are understood. [optimizers.md](optimizers.md) says what each does and what it keeps in memory.
        optim | "optimizer": Optim = Optim::AdamW;
        /// Rates of some modules instead, by regular expressions for the ends of their names or of their weights', as in
        /// `{ 'layers\.[0-3]\..*' = 1e-5, 'o_proj|down_proj' = 5e-5 }`; the first that matches counts. 0: frozen.
        learning_rates: Patterns<f64> = Patterns::default(), if |p: &Patterns<f64>| p.0.iter().all(|(_, x)| *x >= 0.0), "of rates that are 0 or more";
        /// LoRA+: the learning rate of adapters' B is `learning_rate` times this.
        loraplus_lr_ratio: Option<f64> = None, if |x| x.is_none_or(|x| x > 0.0), "more than 0";
        /// LoRA+: the learning rate of the embeddings, where they are trained.
        loraplus_lr_embedding: Option<f64> = None, if |x| x.is_none_or(|x| x > 0.0), "more than 0";

        /// Storage of the base weights and activations; every sum is float32. `bf16 = true` and `fp16 = true` say it too.
        dtype | "torch_dtype": DType = DType::Bf16;
        /// The base's linear layers are stored as NF4 with double quantization; wants a `[lora]` table.
        load_in_4bit: bool = false;
        /// The same in 8 bits with one scale a row, as bitsandbytes stores them; computed as the weights they stand for.
        load_in_8bit: bool = false;
        /// What products with the frozen weights of linear layers are computed in: `"dtype"`, or `"fp8"`: weights are held and inputs and
        /// gradients taken in 8-bit floats (e4m3) with a scale a row; wants a `[lora]` table. Any base goes into it while it loads. Faster
        /// than bfloat16 on tensor cores that take it (NVIDIA Hopper); elsewhere it saves memory, and takes longer. Adapters, experts,
        /// attention and the head stay in `dtype`, and so do layers whose sizes are no multiples of 16.
        compute: Compute = Compute::Dtype;
        /// Recompute the blocks' activations in the backward: saves memory, costs up to a forward. `"auto"`: layer by layer, only
        /// as far as memory asks for it. `"offload"`, or Unsloth's name for it, `"unsloth"`: what recomputing starts from waits in
        /// the host's memory. TRL's default is `true`.
        gradient_checkpointing: Checkpointing = Checkpointing::Auto;
        /// What the gradients of matrices are stored and summed in where every weight is trained: `"float32"`, or `"bfloat16"`, which takes
        /// half the memory; with `dtype = "bfloat16"`. Each product is summed in float32 either way.
        gradient_accumulation_dtype | "grad_accum_dtype": DType = DType::F32, if |d| matches!(d, DType::F32 | DType::Bf16), "\"float32\" or \"bfloat16\"";
        /// Full fine-tuning in bfloat16 without float32 masters of matrices: the optimizer's step is rounded up or down by chance, so that it
        /// is right on average. Saves 4 bytes a parameter. torchao's name.
        bf16_stochastic_round: bool = false;
        /// Full fine-tuning moves each layer's matrices as soon as their gradients are whole, so that those of one layer are alive at a time.
        /// Without clipping (`max_grad_norm = 0`), in steps of one micro-batch, and not in float16; the results are the same. Where not
        /// given, wherever that can be. A gradient that is not finite is found after some weights have moved: the checkpoints are from before.
        /// torchtune's name.
        optimizer_in_bwd: Option<bool> = None;
        /// Full fine-tuning keeps the gradients of layers on the host until the step; two layers' stay on the device. Where not given, for as
        /// many layers as memory asks for.
        offload_gradients: Option<bool> = None;
        /// The base's frozen blocks wait in the host's memory and come to the device layer by layer; wants a `[lora]` table. Where not
        /// given, only if the run does not fit otherwise.
        offload_weights: Option<bool> = None;
        /// Unsloth's key: the base's embedding waits in the host's memory, from where the rows of a step's tokens come. It must be frozen
        /// and not tied to the head. Where not given: with `gradient_checkpointing = "offload"`, and where memory is short.
        offload_embedding: Option<bool> = None;
        /// Memory of the device that the run may take, as in `"8GiB"` or `"8GB"`; what is free when it starts where not given.
        memory_limit: Option<Bytes> = None;
        /// Where to run: `"cuda"`, `"wgpu"` (Vulkan, Metal, DX12), `"cpu"`, or `"auto"`, the first of them that works.
        backend: String = "auto".into(), if |b: &String| pick::NAMES.contains(&b.as_str()), "\"auto\", \"cuda\", \"wgpu\" or \"cpu\"";

        /// The same run gives the same bits again wherever it runs on such a device. `false`: CUDA takes the algorithms of products
        /// that it timed to be fastest, and keeps them on disk; where cuDNN computes attention, it sums gradients in any order; and how
        /// adapters' gradients are summed depends on what is kept of a layer.
        deterministic: bool = false;

        /// Steps between lines of `metrics.jsonl`.
        logging_steps: u64 = 10, if |n| *n >= 1, "1 or more";
        /// When to evaluate: every `eval_steps` (`"steps"`) or after each epoch (`"epoch"`), and at the end; or never (`"no"`, which is
        /// transformers' default).
        eval_strategy | "evaluation_strategy": EvalStrategy = EvalStrategy::Steps;
        /// Steps between evaluations; below 1: as a share of all steps.
        eval_steps: Every = Every::Steps(500);
        /// Evaluate before the first step, too. transformers' default is `false`.
        eval_on_start: bool = true;
        /// So many of the evaluation's prompts are answered at each evaluation, greedily; the answers go to `samples.jsonl`. It takes no
        /// more memory than a step.
        eval_samples: usize = 0;
        /// Tokens of such an answer at most.
        eval_sample_tokens: usize = 64, if |n| *n >= 1, "1 or more";
        /// When to save a checkpoint: every `save_steps` (`"steps"`), after each epoch (`"epoch"`), after an evaluation that was the best
        /// so far (`"best"`), or not on the way (`"no"`). There is one more at the end, and one where a run is interrupted.
        save_strategy: SaveStrategy = SaveStrategy::Steps;
        /// Steps between checkpoints; below 1: as a share of all steps.
        save_steps: Every = Every::Steps(500);
        /// What tells the best checkpoint: `"eval_loss"` or `"eval_perplexity"`.
        metric_for_best_model: BestMetric = BestMetric::Loss;
        /// A greater metric is the better one. transformers' default depends on the metric's name.
        greater_is_better: bool = false;
        /// The result is that of the best evaluation, and not that of the last step; each evaluation that was the best so far is
        /// followed by a checkpoint.
        load_best_model_at_end: bool = false;
        /// The run ends after so many evaluations in a row that were not better than the best before them.
        early_stopping_patience: Option<u64> = None, if |n| n.is_none_or(|n| n >= 1), "1 or more";
        /// Better by more than this.
        early_stopping_threshold: f64 = 0.0, if |x| *x >= 0.0, "0 or more";
        /// Checkpoints kept; older ones go once a newer one is whole, but never that of the best evaluation. transformers keeps all of
        /// them.
        save_total_limit | "save_limit": usize = 2, if |n| *n >= 1, "1 or more";
        /// Where metrics go beside `metrics.jsonl`: `"tensorboard"`, `"none"`, or a list. transformers' default is `"none"`.
        report_to: ReportTo = ReportTo(vec![Tracker::TensorBoard]);
        /// The folder of TensorBoard's event files; `output_dir/tensorboard` where not given.
        logging_dir: Option<PathBuf> = None;
        /// Of shuffling, splitting and adapter initialisation.
        seed: u64 = 42;
        /// `"auto"`: the newest whole checkpoint of `output_dir`, or step 0 where there is none. Or a checkpoint's folder;
        /// or `false`, to start at step 0. transformers' default is `false`.
        resume_from_checkpoint: Resume = Resume::Auto;
        tables {
            /// Tokens by their roles.
            special_tokens: SpecialTokens = SpecialTokens::take;
            /// Settings of some of the schedules.
            lr_scheduler_kwargs: SchedulerKwargs = SchedulerKwargs::take;
            /// Settings of some of the optimizers.
            optim_args: OptimArgs = OptimArgs::take;
            /// Absent: full fine-tuning.
            lora: Option<LoraConfig> = LoraConfig::take_if_there;
        }
    }
}

keys! {
    /// What some schedules may be told besides; only those that `lr_scheduler_type` uses may be given.
    #[derive(Default)]
    SchedulerKwargs in "lr_scheduler_kwargs." {
        /// `cosine`: waves, 0.5 where not given. `cosine_with_restarts`: restarts, 1 where not given.
        num_cycles: Option<f64> = None, if |x| x.is_none_or(|x| x > 0.0), "more than 0";
        /// `polynomial`: the exponent, 1 where not given.
        power: Option<f64> = None, if |x| x.is_none_or(|x| x > 0.0), "more than 0";
        /// `polynomial`: the last learning rate, 1e-7 where not given.
        lr_end: Option<f64> = None, if |x| x.is_none_or(|x| x >= 0.0), "0 or more";
        /// `inverse_sqrt`: in steps; the warmup's where not given, and 10000 without one.
        timescale: Option<f64> = None, if |x| x.is_none_or(|x| x > 0.0), "more than 0";
    }
}

keys! {
    /// What some optimizers may be told besides; only those that `optim` uses may be given. transformers' text says it too, as in
    /// `optim_args = "momentum=0.9, nesterov=True"`.
    #[derive(Default)]
    OptimArgs in "optim_args." {
        /// `sgd`: 0 where not given, which is without. `muon`: 0.95.
        momentum: Option<f64> = None, if |x| x.is_none_or(|x| (0.0..1.0).contains(&x)), "at least 0 and less than 1";
        /// `sgd`: the share of each gradient but the first that does not enter the momentum, 0 where not given.
        dampening: Option<f64> = None, if |x| x.is_none_or(|x| (0.0..=1.0).contains(&x)), "from 0 to 1";
        /// Nesterov's momentum. `sgd`: `false` where not given. `muon`: `true`.
        nesterov: Option<bool> = None;
        /// `muon`: Newton–Schulz steps, 5 where not given.
        ns_steps: Option<usize> = None, if |n| n.is_none_or(|n| (1..100).contains(&n)), "from 1 to 99";
        /// `muon`: what a matrix's learning rate is multiplied by. `"original"`, where not given: √max(1, outputs/inputs).
        /// `"match_rms_adamw"`: 0.2·√max(outputs, inputs), for learning rates and decays as AdamW has them.
        /// `"spectral_unclamped"`: √(outputs/inputs).
        adjust_lr_fn: Option<AdjustLr> = None;
    }
}

keys! {
    /// Tokens by their roles, in the tokenizer that goes with the result. Those that it lacks are added as control tokens, and their
    /// rows trained as those of `new_tokens`.
    #[derive(Default)]
    SpecialTokens in "special_tokens." {
        /// The text of the token that begins a text.
        bos_token: Option<String> = None;
        /// That ends one. A generation ends with it, and with whatever ended it before.
        eos_token: Option<String> = None;
        /// That fills rows.
        pad_token: Option<String> = None;
        /// That stands for what the tokenizer cannot write.
        unk_token: Option<String> = None;
        /// Control tokens without a role, as in `["<|im_start|>", "<|im_end|>"]`.
        additional_special_tokens: Vec<String> = Vec::new();
    }
}

keys! {
    /// Low-rank adapters on a frozen base. The keys also work flat, as `lora_r` and so on.
    LoraConfig in "lora." {
        /// The adapters' rank.
        r | "lora_r": usize = 8, if |n| *n >= 1, "1 or more";
        /// The adapter's product is scaled by `lora_alpha / r`.
        lora_alpha | "lora_alpha": f64 = 8.0, if |x| *x > 0.0, "more than 0";
        /// `"all-linear"`: every linear layer of the blocks. A list of names, as in `["q_proj", "v_proj"]`. Or a regular
        /// expression that matches whole names, as in `"model\\.layers\\.[0-7]\\..*_proj"`. PEFT's default depends on the model.
        target_modules | "lora_target_modules": Targets = Targets::Word("all-linear".into());
        /// Of these, the ones without an adapter: written like `target_modules`.
        exclude_modules | "lora_exclude_modules": Option<Targets> = None;
        /// The numbers of the layers that get adapters; empty: all.
        layers_to_transform | "peft_layers_to_transform": Vec<usize> = Vec::new();
        /// What stands before a layer's number in names, as in `"layers"`; empty: anything.
        layers_pattern | "peft_layers_pattern": Vec<String> = Vec::new();
        /// Other ranks of some modules, by regular expressions for the ends of names, as in `{ down_proj = 4 }`.
        rank_pattern | "lora_rank_pattern": Patterns<usize> = Patterns::default();
        /// The same for `lora_alpha`.
        alpha_pattern | "lora_alpha_pattern": Patterns<f64> = Patterns::default();
        /// Modules that are trained in full and saved with the adapters, as in `["lm_head", "embed_tokens"]`. PEFT's rule: a
        /// name means every module whose name ends so.
        modules_to_save | "lora_modules_to_save": Vec<String> = Vec::new();
        /// Ids of tokens whose rows of the embedding are trained, and saved with the adapters; a head that is tied to it is
        /// trained with it. Or a table, `{ embed_tokens = [..], lm_head = [..] }`. Where not given, the rows of tokens that
        /// `new_tokens` and `[special_tokens]` add, in both.
        trainable_token_indices | "peft_trainable_token_indices": Option<TokenIndices> = None;
        /// Scale by `lora_alpha / √r` instead.
        use_rslora | "use_rslora": bool = false;
        /// DoRA: directions and magnitudes of the weights are adapted apart.
        use_dora | "use_dora" | "peft_use_dora": bool = false;
        /// The share of the adapters' inputs that a step of training sets to 0.
        lora_dropout | "lora_dropout": f64 = 0.0, if |x| (0.0..1.0).contains(x), "at least 0 and less than 1";
        /// What a new adapter starts as. `true`: it changes nothing, A is uniform; `"gaussian"`: A is normal. `"pissa"`: it is the
        /// principal part of its weight, which keeps the rest, in floats or quantized (arXiv:2404.02948); `"pissa_niter_4"`: found by 4
        /// iterations, and not by as many as it takes. What is saved then is what was learned, as an adapter of twice the rank on
        /// the model as it was: exact where the base is in floats, but for what their rounding takes; on a base in 4 or 8 bits the trained
        /// model has besides the rounding of the rest, which that adapter on the unquantized model does not have.
        init_lora_weights | "lora_init_weights": Init = Init::Plain;
        /// Which biases are trained.
        bias | "lora_bias": LoraBias = LoraBias::None;
        /// Of the adapters' initialisation; the run's `seed` where not given.
        seed: Option<u64> = None;
    }
}

const TABLES: &[&str] = &["lr_scheduler_kwargs", "optim_args", "lora", "special_tokens"];
const ALL_KEYS: &[&[Key]] =
    &[TrainConfig::KEYS, SchedulerKwargs::KEYS, OptimArgs::KEYS, LoraConfig::KEYS, SpecialTokens::KEYS];

/// Reads a TOML or YAML config and puts `key=value` overrides over it. Of what it names, only an adapter's config is opened.
pub fn load(path: &Path, overrides: &[String]) -> Result<TrainConfig> {
    read(Some(path), overrides)
}

/// A config of `key=value` alone.
pub fn of(keys: &[String]) -> Result<TrainConfig> {
    read(None, keys)
}

fn read(path: Option<&Path>, overrides: &[String]) -> Result<TrainConfig> {
    let source = Source::read(path, overrides, ALL_KEYS, TABLES)?;
    let mut config = TrainConfig::take(&source)?;
    if let Some(folder) = &mut config.adapter {
        *folder = hub::resolve(folder, hub::Kind::Adapter, &mut |_| true)?;
        let lora = config.lora.map_or_else(|| LoraConfig::take(&source), Ok)?;
        config.lora = Some(lora.completed(&source, peft::read_config(folder)?));
    }
    config.check(&source)?;
    Ok(config)
}

/// The documentation of every key, as Markdown.
pub fn page() -> String {
    page::page(&[
        ("", "", TrainConfig::KEYS),
        ("[lora]", "Adapters on a frozen base; no such table: full fine-tuning.", LoraConfig::KEYS),
        ("[special_tokens]", "Tokens by their roles, in the tokenizer that goes with the result.", SpecialTokens::KEYS),
        ("[lr_scheduler_kwargs]", "What some schedules may be told besides.", SchedulerKwargs::KEYS),
        (
            "[optim_args]",
            "What some optimizers may be told besides. Also as transformers writes it: `optim_args = \"momentum=0.9, nesterov=True\"`.",
            OptimArgs::KEYS,
        ),
    ])
}

impl TrainConfig {
    /// The config with every default filled in, as TOML that [`load`] reads back to the same run.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Bug(format!("a config that TOML cannot hold: {e}")))
    }

    /// Steps of the whole run, when an epoch has `micro_batches`; a last, smaller step counts.
    pub fn total_steps(&self, micro_batches: usize) -> u64 {
        if self.max_steps > 0 {
            return self.max_steps as u64;
        }
        let per_epoch = micro_batches.div_ceil(self.gradient_accumulation_steps).max(1);
        (per_epoch as f64 * self.num_train_epochs).ceil() as u64
    }
}

impl LoraConfig {
    fn take_if_there(source: &Source) -> Result<Option<LoraConfig>> {
        source.has_table("lora").then(|| LoraConfig::take(source)).transpose()
    }

    /// What was not said is as the adapter has it.
    fn completed(mut self, source: &Source, own: lora::LoraConfig) -> LoraConfig {
        macro_rules! complete {
            ($($key:ident),+) => { $( if !source.has(concat!("lora.", stringify!($key))) { self.$key = own.$key; } )+ };
        }
        complete!(r, lora_alpha, target_modules, exclude_modules, layers_to_transform, layers_pattern, rank_pattern);
        complete!(trainable_token_indices, alpha_pattern, modules_to_save, use_rslora, use_dora, lora_dropout);
        self
    }
}
