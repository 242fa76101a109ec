//! What no key can say alone.
use super::{Dataset, EvalStrategy, Init, Optim, SaveStrategy, SchedulerType, Source, TrainConfig};
use crate::dtype::DType;
use crate::error::Result;
use crate::model::Compute;

impl TrainConfig {
    /// The first contradiction, if any.
    pub(super) fn check(&self, source: &Source) -> Result<()> {
        for (key, on) in [("load_in_4bit", self.load_in_4bit), ("load_in_8bit", self.load_in_8bit)] {
            if on && self.lora.is_none() {
                let what = "freezes the base, so there is nothing to train: add a [lora] table, or set it to false";
                return Err(source.fail_at(key, format!("`{key}` {what}")));
            }
        }
        for (key, on) in [("offload_weights", self.offload_weights), ("offload_embedding", self.offload_embedding)] {
            if on == Some(true) && self.lora.is_none() {
                let what = "is about a frozen base, and none is: add a [lora] table, or take it out";
                return Err(source.fail_at(key, format!("`{key}` {what}")));
            }
        }
        self.check_full(source)?;
        if self.load_in_4bit && self.load_in_8bit {
            let what = "`load_in_8bit` and `load_in_4bit` exclude each other: keep one";
            return Err(source.fail_at("load_in_8bit", what));
        }
        self.check_compute(source)?;
        if !self.eval_dataset.is_empty() && self.eval_split > 0.0 {
            return Err(source.fail_at("eval_split", "`eval_split` and `eval_dataset` exclude each other: keep one"));
        }
        if self.dataset_test_split.is_some() && (!self.eval_dataset.is_empty() || self.eval_split > 0.0) {
            let what = "`dataset_test_split` excludes `eval_dataset` and `eval_split`: keep one";
            return Err(source.fail_at("dataset_test_split", what));
        }
        if self.dataset_test_split.is_some() && !self.dataset.iter().any(Dataset::has_splits) {
            let what = "`dataset_test_split` is of folders and data sets, and `dataset` names none without a split";
            return Err(source.fail_at("dataset_test_split", what));
        }
        if self.warmup_steps > 0 && self.warmup_ratio > 0.0 {
            return Err(
                source.fail_at("warmup_ratio", "`warmup_ratio` and `warmup_steps` exclude each other: keep one")
            );
        }
        self.check_init(source)?;
        self.check_evaluation(source)?;
        self.check_rates(source)?;
        self.check_optim_args(source)?;
        self.check_kwargs(source)
    }

    /// How weights are held that are all trained.
    fn check_full(&self, source: &Source) -> Result<()> {
        let keys = [
            ("gradient_accumulation_dtype", self.gradient_accumulation_dtype == DType::Bf16, true),
            ("bf16_stochastic_round", self.bf16_stochastic_round, true),
            ("optimizer_in_bwd", self.optimizer_in_bwd == Some(true), false),
            ("offload_gradients", self.offload_gradients == Some(true), false),
        ];
        for (key, _, bf16) in keys.into_iter().filter(|(_, given, _)| *given) {
            if self.lora.is_some() {
                let what = "is about full fine-tuning, and there is a [lora] table: take one of them out";
                return Err(source.fail_at(key, format!("`{key}` {what}")));
            }
            if bf16 && self.dtype != DType::Bf16 {
                let what = format!("`{key}` goes with dtype = \"bfloat16\", and it is {:?}", self.dtype.name());
                return Err(source.fail_at(key, what));
            }
        }
        let why = match self {
            _ if self.optimizer_in_bwd != Some(true) => return Ok(()),
            _ if self.max_grad_norm > 0.0 => "wants `max_grad_norm = 0`, for clipping wants all gradients first",
            _ if self.gradient_accumulation_steps > 1 => "wants `gradient_accumulation_steps = 1`",
            _ if self.dtype == DType::F16 => "does not go with float16, whose steps may be left out",
            _ if self.offload_gradients == Some(true) => "and `offload_gradients` exclude each other: keep one",
            _ => return Ok(()),
        };
        Err(source.fail_at("optimizer_in_bwd", format!("`optimizer_in_bwd` {why}")))
    }

    /// The optimizer can move weights during the backward, and may.
    pub fn steps_in_backward(&self) -> bool {
        let can = self.max_grad_norm == 0.0 && self.gradient_accumulation_steps == 1 && self.dtype != DType::F16;
        let may = self.optimizer_in_bwd != Some(false) && self.offload_gradients != Some(true);
        self.lora.is_none() && can && may
    }

    fn check_compute(&self, source: &Source) -> Result<()> {
        let what = match (self.compute, &self.lora) {
            (Compute::Dtype, _) => return Ok(()),
            (Compute::Fp8, None) => {
                "= \"fp8\" computes with frozen weights, and none is: add a [lora] table, or take it out"
            }
            (Compute::Fp8, _) if self.load_in_4bit || self.load_in_8bit => {
                "= \"fp8\" holds the weights in 8 bits itself: take out `load_in_4bit` and `load_in_8bit`"
            }
            (Compute::Fp8, Some(lora)) if lora.use_dora => "= \"fp8\" and `use_dora` exclude each other: keep one",
            (Compute::Fp8, Some(_)) => return Ok(()),
        };
        Err(source.fail_at("compute", format!("`compute` {what}")))
    }

    /// PiSSA makes new adapters of LoRA's plain form.
    fn check_init(&self, source: &Source) -> Result<()> {
        let Some(lora) = self.lora.as_ref().filter(|lora| matches!(lora.init_lora_weights, Init::Pissa { .. })) else {
            return Ok(());
        };
        let what = match (&self.adapter, lora.use_dora) {
            (Some(_), _) => "is for a new adapter, and this run goes on from one: take it out",
            (_, true) => "and `use_dora` exclude each other: keep one",
            _ => return Ok(()),
        };
        Err(source.fail_at("lora.init_lora_weights", format!("`init_lora_weights` {what}")))
    }

    /// What rests on evaluations needs some.
    fn check_evaluation(&self, source: &Source) -> Result<()> {
        let needs = [
            ("load_best_model_at_end", self.load_best_model_at_end),
            ("early_stopping_patience", self.early_stopping_patience.is_some()),
            ("save_strategy", self.save_strategy == SaveStrategy::Best),
            ("eval_samples", self.eval_samples > 0),
        ];
        let Some((key, _)) = needs.into_iter().find(|(_, on)| *on) else { return Ok(()) };
        let what = match self.eval_strategy {
            EvalStrategy::No => "evaluations, and `eval_strategy` is \"no\": set it to \"steps\" or \"epoch\"",
            _ if self.eval_dataset.is_empty() && self.eval_split == 0.0 && self.dataset_test_split.is_none() => {
                "records to evaluate on: give `eval_dataset`, `eval_split` or `dataset_test_split`"
            }
            _ => return Ok(()),
        };
        Err(source.fail_at(key, format!("`{key}` needs {what}")))
    }

    fn check_rates(&self, source: &Source) -> Result<()> {
        let (ratio, embedding) = ("loraplus_lr_ratio", "loraplus_lr_embedding");
        if self.loraplus_lr_ratio.is_some() && self.lora.is_none() {
            return Err(
                source.fail_at(ratio, format!("`{ratio}` is about adapters: add a [lora] table, or take it out"))
            );
        }
        if self.loraplus_lr_embedding.is_some() && self.loraplus_lr_ratio.is_none() {
            return Err(source
                .fail_at(embedding, format!("`{embedding}` goes with `{ratio}`: `embedding_learning_rate` does not")));
        }
        if self.loraplus_lr_embedding.is_some() && self.embedding_learning_rate.is_some() {
            let what = format!("`{embedding}` and `embedding_learning_rate` exclude each other: keep one");
            return Err(source.fail_at(embedding, what));
        }
        Ok(())
    }

    fn check_optim_args(&self, source: &Source) -> Result<()> {
        use Optim::*;
        let args = &self.optim_args;
        let uses: [(&str, bool, &[Optim]); 5] = [
            ("momentum", args.momentum.is_some(), &[Sgd, Muon]),
            ("dampening", args.dampening.is_some(), &[Sgd]),
            ("nesterov", args.nesterov.is_some(), &[Sgd, Muon]),
            ("ns_steps", args.ns_steps.is_some(), &[Muon]),
            ("adjust_lr_fn", args.adjust_lr_fn.is_some(), &[Muon]),
        ];
        for (name, given, of) in uses {
            if given && !of.contains(&self.optim) {
                let what = format!("`{name}` is not a setting of optim {:?}: take it out", self.optim.name());
                return Err(source.fail_at(&format!("optim_args.{name}"), what));
            }
        }
        let (momentum, dampening) = (args.momentum.unwrap_or(0.0), args.dampening.unwrap_or(0.0));
        if self.optim == Sgd && args.nesterov == Some(true) && (momentum == 0.0 || dampening != 0.0) {
            let what = "`nesterov` wants a `momentum` above 0 and no `dampening`";
            return Err(source.fail_at("optim_args.nesterov", what));
        }
        Ok(())
    }

    fn check_kwargs(&self, source: &Source) -> Result<()> {
        use SchedulerType::*;
        let (kind, kwargs) = (self.lr_scheduler_type, &self.lr_scheduler_kwargs);
        let uses: [(&str, Option<f64>, &[SchedulerType]); 4] = [
            ("num_cycles", kwargs.num_cycles, &[Cosine, CosineWithRestarts]),
            ("power", kwargs.power, &[Polynomial]),
            ("lr_end", kwargs.lr_end, &[Polynomial]),
            ("timescale", kwargs.timescale, &[InverseSqrt]),
        ];
        for (name, value, of) in uses {
            if value.is_some() && !of.contains(&kind) {
                let what = format!("`{name}` is not a setting of lr_scheduler_type {:?}: take it out", kind.name());
                return Err(source.fail_at(&format!("lr_scheduler_kwargs.{name}"), what));
            }
        }
        if kind == Polynomial && kwargs.lr_end.unwrap_or(crate::train::schedule::LR_END) >= self.learning_rate {
            let what = format!("`lr_end` must be less than `learning_rate` = {}", self.learning_rate);
            return Err(source.fail_at("lr_scheduler_kwargs.lr_end", what));
        }
        Ok(())
    }
}
