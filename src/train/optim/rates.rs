//! Which learning rate a weight has: of the rules below the first that names it counts.
//!
//! 1. `learning_rates`, expression by expression
//! 2. `embedding_learning_rate`: the embeddings and the head
//! 3. LoRA+ (Hayou et al. 2024, arXiv:2402.12354): B, and as in PEFT all vectors, at a multiple; embeddings at a rate of their own
//! 4. `learning_rate`
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::lora::Patterns;
use crate::model::param::{Param, Train};
use crate::model::token_rows;
use fancy_regex::Regex;
use std::path::PathBuf;

/// The rules, as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// `learning_rate`.
    pub base: f64,
    /// Regular expressions for the ends of names, and a rate for each; 0: frozen.
    pub patterns: Patterns<f64>,
    pub embedding: Option<f64>,
    /// The rate of B over that of A.
    pub loraplus_ratio: Option<f64>,
    pub loraplus_embedding: Option<f64>,
    /// The model, to be named in errors.
    pub model: PathBuf,
}

impl Default for Rates {
    /// One rate for all.
    fn default() -> Rates {
        Rates {
            base: 1.0,
            patterns: Patterns::default(),
            embedding: None,
            loraplus_ratio: None,
            loraplus_embedding: None,
            model: PathBuf::new(),
        }
    }
}

/// The weights that one rule names.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// The rule, as in the config.
    pub rule: String,
    pub rate: f64,
    /// Parameters.
    pub count: usize,
}

impl Rates {
    /// The rule of each trained weight, in the model's order, and the rules with what they name.
    pub(super) fn shares(&self, model: &Model) -> Result<(Vec<usize>, Vec<Share>)> {
        let patterns: Vec<Regex> = self.patterns.0.iter().map(|(text, _)| self.compile(text)).collect::<Result<_>>()?;
        let pattern = |(text, rate): &(String, f64)| (format!("`{text}` of learning_rates"), *rate);
        let ratio = self.loraplus_ratio.unwrap_or(1.0);
        let rules = self.patterns.0.iter().map(pattern).chain([
            ("embedding_learning_rate".to_string(), self.embedding.unwrap_or(self.base)),
            ("loraplus_lr_embedding".to_string(), self.loraplus_embedding.unwrap_or(self.base)),
            (format!("loraplus_lr_ratio = {ratio}"), self.base * ratio),
            ("learning_rate".to_string(), self.base),
        ]);
        let mut shares: Vec<Share> = rules.map(|(rule, rate)| Share { rule, rate, count: 0 }).collect();
        let others = patterns.len();
        let mut of = Vec::new();
        for param in model.trained() {
            let rule = match self.first(&patterns, param)? {
                Some(i) => i,
                None => others + self.without_patterns(model, param),
            };
            shares[rule].count += param.elements();
            of.push(rule);
        }
        if let Some(i) = shares[..others].iter().position(|share| share.count == 0) {
            let what = "matches nothing that is trained, or only what an expression before it matches";
            return Err(self.error(format!("`{}` {what}", self.patterns.0[i].0)));
        }
        Ok((of, shares))
    }

    /// Takes what training needs from the weights whose rule has rate 0. Not of a DoRA model: there a weight's gradient comes
    /// with those of its module, so it stays and moves by nothing.
    pub(super) fn freeze(
        &self,
        b: &dyn Backend,
        model: &mut Model,
        of: &mut Vec<usize>,
        shares: &[Share],
    ) -> Result<()> {
        if model.lora.as_ref().is_some_and(|lora| lora.use_dora) {
            return Ok(());
        }
        let trained = model.params_mut().filter(|p| p.train.is_some());
        for (param, _) in trained.zip(&*of).filter(|(_, rule)| shares[**rule].rate == 0.0) {
            let Some(Train { grad, master, .. }) = param.train.take() else { continue };
            [Some(grad), master].into_iter().flatten().for_each(|buf| b.free(buf));
        }
        of.retain(|rule| shares[*rule].rate != 0.0);
        if of.is_empty() {
            return Err(self.error("every rate is 0: nothing would be trained".into()));
        }
        Ok(())
    }

    /// The place of the rule among those that are no patterns.
    fn without_patterns(&self, model: &Model, param: &Param) -> usize {
        let names = &model.spec.names;
        let own = |end: &str, module: &str| param.name.strip_suffix(end) == Some(module);
        let is = |module: &str| own(".weight", module) || own(token_rows::SUFFIX, module);
        let (embed, head) = (is(names.embed), is(names.head));
        let of_b = param.name.contains(".lora_B.") || param.shape.len() == 1;
        if self.embedding.is_some() && (embed || head) {
            0
        } else if self.loraplus_embedding.is_some() && embed {
            1
        } else if self.loraplus_ratio.is_some() && of_b {
            2
        } else {
            3
        }
    }

    fn compile(&self, text: &str) -> Result<Regex> {
        Regex::new(&format!(r"\A(?:.*\.)?(?:{text})\z"))
            .map_err(|e| self.error(format!("{text:?} is no regular expression: {e}")))
    }

    fn error(&self, what: String) -> Error {
        Error::content(&self.model, "learning_rates", what)
    }

    /// The first pattern that matches one of the weight's names; those that lie in one buffer have one rate.
    fn first(&self, patterns: &[Regex], param: &Param) -> Result<Option<usize>> {
        let mut found = param.files().map(|file| self.first_of(patterns, file));
        let first = found.next().transpose()?.flatten();
        for other in found {
            if other? != first {
                let what =
                    format!("{} and others like it lie together and have one rate: match all of them", param.name);
                return Err(self.error(what));
            }
        }
        Ok(first)
    }

    fn first_of(&self, patterns: &[Regex], file: &str) -> Result<Option<usize>> {
        let names = names(file);
        for (i, pattern) in patterns.iter().enumerate() {
            for name in &names {
                // a pattern that backtracks for ever is an error, not a mismatch
                if pattern.is_match(name).map_err(|e| self.error(format!("{:?}: {e}", pattern.as_str())))? {
                    return Ok(Some(i));
                }
            }
        }
        Ok(None)
    }
}

/// What a weight may be called: its module, the adapter's part of it, itself.
fn names(file: &str) -> [&str; 3] {
    let name = file.strip_prefix("base_model.model.").unwrap_or(file);
    let part = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name);
    let module = part.split(".lora_").next().unwrap_or(part);
    [module, part, name]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_goes_by_several_names() {
        let q = "model.layers.0.self_attn.q_proj";
        let b = format!("base_model.model.{q}.lora_B.weight");
        assert_eq!(names(&b), [q, "model.layers.0.self_attn.q_proj.lora_B", &b["base_model.model.".len()..]]);
        assert_eq!(names("model.norm.weight")[..2], ["model.norm"; 2]);
        assert_eq!(names("h.0.attn.sinks"), ["h.0.attn.sinks"; 3]);
    }

    #[test]
    fn patterns_match_ends_of_names_in_their_order() {
        let rates = Rates::default();
        let patterns = ["lora_B", r"layers\.1\d\..*", "q_proj|k_proj"].map(|text| rates.compile(text).unwrap());
        let first = |name: &str| rates.first_of(&patterns, name).unwrap();
        assert_eq!(first("base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight"), Some(0));
        assert_eq!(first("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"), Some(2));
        assert_eq!(first("model.layers.13.self_attn.q_proj.weight"), Some(1));
        assert_eq!(first("model.layers.3.self_attn.q_proj.bias"), Some(2));
        assert_eq!(first("model.layers.3.self_attn.xq_proj.weight"), None);
        assert!(rates.compile("(").unwrap_err().to_string().contains("is no regular expression"));
    }
}
