//! LoRA as configured: PEFT's keys and rules. Hu et al. 2021, arXiv:2106.09685.
use super::linear::{Linear, Lora};
use super::param::Param;
use crate::backend::Backend;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::rng::Rng;
use serde::{Deserialize, Serialize};

/// PEFT's `LoraConfig`, as far as it is supported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The adapter counts alpha/r (alpha/√r with `use_rslora`).
    pub lora_alpha: f64,
    pub target_modules: Targets,
    /// Modules trained in full beside the adapter and saved with it: `embed_tokens`, `lm_head`.
    pub modules_to_save: Vec<String>,
    pub use_rslora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let target_modules = Targets::Word("all-linear".into());
        LoraConfig { r: 8, lora_alpha: 8.0, target_modules, modules_to_save: Vec::new(), use_rslora: false }
    }
}

/// `"all-linear"`, or module names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    Word(String),
    Names(Vec<String>),
}

impl Targets {
    /// PEFT's rule: a name matches a module that is called so or ends in `.name`.
    pub fn matches(&self, module: &str) -> bool {
        let ends = |name: &String| {
            module == name || module.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        match self {
            Targets::Word(word) => word == "all-linear" || ends(word),
            Targets::Names(names) => names.iter().any(ends),
        }
    }
    /// What is linear is adapted, but for what chooses experts: those are named.
    pub fn all_linear(&self) -> bool {
        matches!(self, Targets::Word(word) if word == "all-linear")
    }
    /// Every name must match something in `modules`.
    pub fn check(&self, modules: &[String]) -> Result<(), String> {
        let names = match self {
            Targets::Word(word) if word == "all-linear" => return Ok(()),
            Targets::Word(word) => vec![word.clone()],
            Targets::Names(names) => names.clone(),
        };
        let missing =
            names.into_iter().find(|name| !modules.iter().any(|m| Targets::Names(vec![name.clone()]).matches(m)));
        missing.map_or(Ok(()), |name| {
            let known: std::collections::BTreeSet<_> = modules.iter().filter_map(|m| m.rsplit('.').next()).collect();
            Err(format!("target_modules: no linear layer is called `{name}`; there are {known:?} (or \"all-linear\")"))
        })
    }
}

/// PEFT's suffix rule: a name means the module that is called so or ends in `.name`.
pub(super) fn names(name: &str, module: &str) -> bool {
    module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

impl LoraConfig {
    /// The adapter has a copy of this module of its own.
    pub fn saves(&self, module: &str) -> bool {
        self.modules_to_save.iter().any(|name| names(name, module))
    }

    pub fn scale(&self) -> f32 {
        let r = self.r as f64;
        (self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }) as f32
    }

    /// Gives `linear` an adapter that changes nothing yet: A uniform in ±1/√C (Kaiming with a = √5, as PEFT), B zero.
    pub fn attach(&self, b: &dyn Backend, linear: &mut Linear, dtype: DType, train: bool, seed: u64) -> Result<()> {
        if self.r == 0 {
            return Err(Error::Usage("lora.r must be at least 1".into()));
        }
        let (r, R) = (self.r, self.r.next_multiple_of(8));
        let name = |side| format!("base_model.model.{}.lora_{side}.weight", linear.name);
        let mut a = Param::zeros_held(b, &name("A"), &[r, linear.C], [R, linear.C], dtype)?;
        let mut bb = Param::zeros_held(b, &name("B"), &[linear.O, r], [linear.O, R], dtype)?;
        if train {
            a.unfreeze(b)?;
            bb.unfreeze(b)?;
        }
        let bound = 1.0 / (linear.C as f32).sqrt();
        let mut rng = Rng::named(seed, &a.name);
        let values: Vec<f32> = (0..r * linear.C).map(|_| (rng.uniform() * 2.0 - 1.0) * bound).collect();
        a.set(b, &values)?;
        linear.lora = Some(Lora { a, b: bb, R, scale: self.scale() });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_peft() {
        let names = |n: &[&str]| Targets::Names(n.iter().map(|s| s.to_string()).collect());
        let module = "model.layers.0.self_attn.q_proj";
        assert!(names(&["q_proj"]).matches(module) && names(&["self_attn.q_proj"]).matches(module));
        assert!(!names(&["_proj", "k_proj"]).matches(module));
        assert!(Targets::Word("all-linear".into()).matches(module));
        assert!(names(&["q_prj"]).check(&[module.to_string()]).unwrap_err().contains("q_proj"));
    }

    #[test]
    fn scales() {
        let plain = LoraConfig { r: 16, lora_alpha: 32.0, ..LoraConfig::default() };
        assert_eq!(plain.scale(), 2.0);
        assert_eq!(LoraConfig { use_rslora: true, ..plain }.scale(), 8.0);
    }
}
