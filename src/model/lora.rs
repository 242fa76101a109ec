//! LoRA as configured: PEFT's keys and rules. Hu et al. 2021, arXiv:2106.09685.
use super::dora::Dora;
use super::dropout::Dropout;
use super::linear::{Linear, Lora};
use super::param::Param;
use crate::backend::{Backend, Charge, Scope, Use};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::rng::Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod patterns;
pub mod pissa;
mod rules;
pub use patterns::Patterns;
pub use rules::{Rules, Targets};

/// What an adapter starts as, `init_lora_weights`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// A uniform (Kaiming), B zero.
    #[default]
    Plain,
    /// A normal with a deviation of 1/r, B zero.
    Gaussian,
    /// The weight's principal part, which the weight then lacks; found by so many iterations, or by as many as it takes.
    Pissa { niter: Option<usize> },
}

/// PEFT's `LoraConfig`, as far as it is supported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The adapter counts alpha/r (alpha/√r with `use_rslora`).
    pub lora_alpha: f64,
    pub target_modules: Targets,
    /// Of what `target_modules` names, what has no adapter.
    pub exclude_modules: Option<Targets>,
    /// The layers that have adapters; empty: all.
    pub layers_to_transform: Vec<usize>,
    /// What stands before a layer's number in its modules' names; empty: anything.
    pub layers_pattern: Vec<String>,
    /// Other ranks of some modules, by regular expression: the first that matches the end of a name counts.
    pub rank_pattern: Patterns<usize>,
    /// The same for `lora_alpha`.
    pub alpha_pattern: Patterns<f64>,
    /// Modules trained in full beside the adapter and saved with it: `embed_tokens`, `lm_head`, `norm`.
    pub modules_to_save: Vec<String>,
    /// Tokens whose rows of the embedding (and of the head) are trained, and no others.
    pub trainable_token_indices: Option<TokenIndices>,
    pub use_rslora: bool,
    /// Weights are split into direction and magnitude. Liu et al. 2024, arXiv:2402.09353.
    pub use_dora: bool,
    /// The share of the adapter's inputs that training sets to 0.
    pub lora_dropout: f64,
    /// Of a new adapter; a finished one is what its file says.
    #[serde(skip)]
    pub init: Init,
    /// Where it was read from, if it is a finished adapter's: such a config may name modules that a model lacks.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            r: 8,
            lora_alpha: 8.0,
            target_modules: Targets::Word("all-linear".into()),
            exclude_modules: None,
            layers_to_transform: Vec::new(),
            layers_pattern: Vec::new(),
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            modules_to_save: Vec::new(),
            trainable_token_indices: None,
            use_rslora: false,
            use_dora: false,
            lora_dropout: 0.0,
            init: Init::Plain,
            file: None,
        }
    }
}

/// Ids, for the embedding and a head that is tied to it; or by the names of modules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIndices {
    Embedding(Vec<u32>),
    Named(BTreeMap<String, Vec<u32>>),
}

/// What the rules give one module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub r: usize,
    pub scale: f32,
}

impl Shape {
    /// The rank on the device.
    pub fn R(&self) -> usize {
        self.r.next_multiple_of(8)
    }
}

impl LoraConfig {
    /// The adapter has a copy of its own of this module, or of one that this is a part of. PEFT's rule: a name means every
    /// module whose name ends so.
    pub fn saves(&self, module: &str) -> bool {
        let dots = module.match_indices('.').map(|(at, _)| at).chain([module.len()]);
        let mut around = dots.map(|end| &module[..end]);
        around.any(|module| self.modules_to_save.iter().any(|name| module.ends_with(name.as_str())))
    }

    /// The same for the module that this weight or bias is of.
    pub fn saves_param(&self, param: &str) -> bool {
        self.saves(module_of(param))
    }

    /// Rows that a vocabulary must have for every trained token.
    pub fn vocab(&self) -> usize {
        let last = |ids: &Vec<u32>| ids.iter().max().map_or(0, |id| *id as usize + 1);
        match &self.trainable_token_indices {
            None => 0,
            Some(TokenIndices::Embedding(ids)) => last(ids),
            Some(TokenIndices::Named(modules)) => modules.values().map(last).max().unwrap_or(0),
        }
    }

    pub fn scale(&self, r: usize, alpha: f64) -> f32 {
        let r = r as f64;
        (alpha / if self.use_rslora { r.sqrt() } else { r }) as f32
    }

    /// The same adapter with `times` the ranks, scaled as before.
    pub fn widened(&self, times: usize) -> LoraConfig {
        let alpha = |alpha: f64| alpha * if self.use_rslora { (times as f64).sqrt() } else { times as f64 };
        let mut wide = LoraConfig { r: self.r * times, lora_alpha: alpha(self.lora_alpha), ..self.clone() };
        wide.rank_pattern.0.iter_mut().for_each(|(_, r)| *r *= times);
        wide.alpha_pattern.0.iter_mut().for_each(|(_, a)| *a = alpha(*a));
        wide
    }

    /// An error in `key`, about the adapter's own file, or about `model` that this config is for.
    pub fn error(&self, model: &Path, key: &str, what: impl std::fmt::Display) -> Error {
        match &self.file {
            Some(file) => Error::content(file, key, what),
            None => Error::content(model, format!("lora.{key}"), what),
        }
    }
}

/// The module of a weight or bias.
pub(super) fn module_of(param: &str) -> &str {
    param.strip_suffix(".weight").or_else(|| param.strip_suffix(".bias")).unwrap_or(param)
}

/// The first values of a module's A: uniform in ±1/√C (Kaiming with a = √5, as PEFT).
pub(super) fn first_values(seed: u64, name: &str, r: usize, C: usize) -> Vec<f32> {
    let bound = 1.0 / (C as f32).sqrt();
    let mut rng = Rng::named(seed, name);
    (0..r * C).map(|_| (rng.uniform() * 2.0 - 1.0) * bound).collect()
}

/// The same as PEFT's "gaussian": normal with a deviation of 1/r.
fn normal_values(seed: u64, name: &str, r: usize, C: usize) -> Vec<f32> {
    let mut rng = Rng::named(seed, name);
    (0..r * C).map(|_| rng.normal() / r as f32).collect()
}

/// What a module's adapter weights are called, here and in PEFT's files.
pub(super) fn weight_name(module: &str, side: &str) -> String {
    format!("base_model.model.{module}.lora_{side}.weight")
}

/// Gives `linear` an adapter that changes nothing yet: B is zero, and DoRA's magnitudes are the weight's own norms.
pub fn attach(
    b: &dyn Backend,
    linear: &mut Linear,
    (shape, rules): (Shape, &Rules),
    dtype: DType,
    train: bool,
    seed: u64,
) -> Result<()> {
    let (r, R, O, C) = (shape.r, shape.R(), linear.O, linear.C);
    let _charge = Charge::to(b, Use::Adapter);
    // of a device that is full in the middle of it
    let made = Scope::new(b);
    let mut a = Param::zeros_held(b, &weight_name(&linear.name, "A"), &[r, C], [R, C], dtype)?;
    made.hold(&a.value);
    let mut bb = Param::zeros_held(b, &weight_name(&linear.name, "B"), &[O, r], [O, R], dtype)?;
    made.hold(&bb.value);
    if train {
        a.unfreeze(b)?;
        bb.unfreeze(b)?;
    }
    if !b.is_dry() {
        let values = match rules.init() {
            Init::Gaussian => normal_values(seed, &a.name, r, C),
            Init::Plain | Init::Pissa { .. } => first_values(seed, &a.name, r, C),
        };
        a.set(b, &values)?;
    }
    let dora = if rules.use_dora() { Some(Dora::new(b, &linear.name, O, train)?) } else { None };
    let dropout = Dropout::new(rules.lora_dropout(), &linear.name);
    linear.lora = Some(Lora { a, b: bb, R, scale: shape.scale, dora, dropout, start: None });
    made.keep();
    Dora::start(b, linear, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_saved_with_their_parts() {
        let config = LoraConfig { modules_to_save: vec!["norm".into(), "0.mlp".into()], ..LoraConfig::default() };
        for module in
            ["model.norm", "model.layers.1.input_layernorm", "model.layers.0.mlp.up_proj", "model.layers.10.mlp"]
        {
            assert!(config.saves(module), "{module}");
        }
        assert!(
            !config.saves("model.layers.1.mlp.up_proj") && !config.saves("model.normal") && !config.saves("lm_head")
        );
        assert!(config.saves_param("model.layers.0.mlp.up_proj.bias"));
    }

    #[test]
    fn scales() {
        let plain = LoraConfig::default();
        assert_eq!(plain.scale(16, 32.0), 2.0);
        assert_eq!(LoraConfig { use_rslora: true, ..plain }.scale(16, 32.0), 8.0);
    }
}
