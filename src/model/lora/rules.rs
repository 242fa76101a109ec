//! Which modules have an adapter, and of what rank: PEFT's rules on names, regular expressions compiled once.
use super::{Init, LoraConfig, Shape};
use crate::error::{Error, Result};
use fancy_regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// Ranks beyond it are no adapters; keeps a hostile config from asking for all memory.
const MAX_RANK: usize = 1 << 14;

/// `"all-linear"` or a regular expression for whole names; or module names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    Word(String),
    Names(Vec<String>),
}

impl Targets {
    /// What is linear is adapted, but for what chooses experts: those are named.
    pub fn all_linear(&self) -> bool {
        matches!(self, Targets::Word(word) if word.eq_ignore_ascii_case("all-linear"))
    }
}

/// PEFT's suffix rule: a name means the module that is called so or ends in `.name`.
fn names(name: &str, module: &str) -> bool {
    module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// `Targets`, ready to be asked.
enum Matcher<'c> {
    All,
    Whole(Regex),
    Names(&'c [String]),
}

/// A config's rules, ready to be asked.
pub struct Rules<'c> {
    config: &'c LoraConfig,
    /// What the config is for, to be named in errors.
    model: &'c Path,
    targets: Matcher<'c>,
    excluded: Option<Matcher<'c>>,
    /// Finds `idx`, a layer's number, in a module's name.
    layer: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl<'c> Rules<'c> {
    pub fn new(config: &'c LoraConfig, model: &'c Path) -> Result<Rules<'c>> {
        let compile = |key: &str, text: &str, whole: String| {
            Regex::new(&whole).map_err(|e| {
                let what = format!("{text:?} is neither \"all-linear\" nor a regular expression: {e}");
                config.error(model, key, what)
            })
        };
        let matcher = |key: &str, targets: &'c Targets| match targets {
            _ if targets.all_linear() => Ok(Matcher::All),
            Targets::Word(text) => Ok(Matcher::Whole(compile(key, text, format!(r"\A(?:{text})\z"))?)),
            Targets::Names(names) => Ok(Matcher::Names(names)),
        };
        let pattern = |key: &str, text: &str| compile(key, text, format!(r"\A(?:.*\.)?(?:{text})\z"));
        let layer = match config.layers_pattern.as_slice() {
            [] => vec![compile("layers_pattern", "", r"\A.*?\.[^.]*\.(?P<idx>\d+)\.".into())?],
            given => {
                let of =
                    |text: &String| compile("layers_pattern", text, format!(r"\A(?:|.*?\.)(?:{text})\.(?P<idx>\d+)\."));
                given.iter().map(of).collect::<Result<_>>()?
            }
        };
        let ranks = config.rank_pattern.0.iter().map(|(text, r)| Ok((pattern("rank_pattern", text)?, *r)));
        let alphas = config.alpha_pattern.0.iter().map(|(text, a)| Ok((pattern("alpha_pattern", text)?, *a)));
        let rules = Rules {
            config,
            model,
            targets: matcher("target_modules", &config.target_modules)?,
            excluded: config.exclude_modules.as_ref().map(|e| matcher("exclude_modules", e)).transpose()?,
            layer,
            ranks: ranks.collect::<Result<_>>()?,
            alphas: alphas.collect::<Result<_>>()?,
        };
        rules.consistent().map(|()| rules)
    }

    /// What no key can say alone.
    fn consistent(&self) -> Result<()> {
        let c = self.config;
        if matches!(self.targets, Matcher::Whole(_)) && !c.layers_to_transform.is_empty() {
            let what = "goes with a list of target_modules; a regular expression says the layers itself";
            return Err(self.error("layers_to_transform", what));
        }
        if !c.layers_pattern.is_empty() && c.layers_to_transform.is_empty() {
            return Err(self.error("layers_pattern", "wants layers_to_transform, the numbers of the layers"));
        }
        if !(0.0..1.0).contains(&c.lora_dropout) {
            let what = format!("must be at least 0 and less than 1, got {}", c.lora_dropout);
            return Err(self.error("lora_dropout", what));
        }
        let ranks = [("r", c.r)].into_iter().chain(c.rank_pattern.0.iter().map(|(_, r)| ("rank_pattern", *r)));
        match ranks.into_iter().find(|(_, r)| *r == 0 || *r > MAX_RANK) {
            Some((key, r)) => Err(self.error(key, format!("a rank must be from 1 to {MAX_RANK}, got {r}"))),
            None => Ok(()),
        }
    }

    pub fn all_linear(&self) -> bool {
        matches!(self.targets, Matcher::All)
    }
    pub fn lora_dropout(&self) -> f64 {
        self.config.lora_dropout
    }
    pub fn init(&self) -> Init {
        self.config.init
    }
    pub fn use_dora(&self) -> bool {
        self.config.use_dora
    }

    pub fn error(&self, key: &str, what: impl std::fmt::Display) -> Error {
        self.config.error(self.model, key, what)
    }

    /// A pattern that backtracks for ever is an error, not a mismatch.
    fn find(&self, key: &str, regex: &Regex, module: &str) -> Result<bool> {
        regex.is_match(module).map_err(|e| self.error(key, format!("{:?}: {e}", regex.as_str())))
    }

    fn matches(&self, key: &str, matcher: &Matcher, module: &str) -> Result<bool> {
        match matcher {
            Matcher::All => Ok(true),
            Matcher::Whole(regex) => self.find(key, regex, module),
            Matcher::Names(list) => Ok(list.iter().any(|name| names(name, module))),
        }
    }

    /// A module whose whole name is a target is one in any layer.
    fn in_layers(&self, module: &str) -> Result<bool> {
        let layers = &self.config.layers_to_transform;
        let whole = matches!(&self.targets, Matcher::Names(list) if list.iter().any(|name| name == module));
        if layers.is_empty() || whole {
            return Ok(true);
        }
        for regex in &self.layer {
            let found = regex.captures(module).map_err(|e| self.error("layers_pattern", e))?;
            if let Some(index) = found.as_ref().and_then(|c| c.name("idx")) {
                return Ok(index.as_str().parse().is_ok_and(|index: usize| layers.contains(&index)));
            }
        }
        Ok(false)
    }

    /// The module has an adapter.
    pub fn targets(&self, module: &str) -> Result<bool> {
        if let Some(excluded) = &self.excluded
            && self.matches("exclude_modules", excluded, module)?
        {
            return Ok(false);
        }
        if self.config.saves(module) {
            return Ok(false);
        }
        Ok(self.matches("target_modules", &self.targets, module)? && self.in_layers(module)?)
    }

    /// Rank and scale of a module's adapter.
    pub fn shape(&self, module: &str) -> Result<Shape> {
        let (mut r, mut alpha) = (self.config.r, self.config.lora_alpha);
        for (regex, rank) in &self.ranks {
            if self.find("rank_pattern", regex, module)? {
                r = *rank;
                break;
            }
        }
        for (regex, other) in &self.alphas {
            if self.find("alpha_pattern", regex, module)? {
                alpha = *other;
                break;
            }
        }
        Ok(Shape { r, scale: self.config.scale(r, alpha) })
    }

    /// The config means something in a model of these linear layers; a new adapter's every name does.
    pub fn check(&self, modules: &[String]) -> Result<()> {
        let known: BTreeSet<_> = modules.iter().filter_map(|m| m.rsplit('.').next()).collect();
        if let (Matcher::Names(list), None) = (&self.targets, &self.config.file)
            && let Some(name) = list.iter().find(|name| !modules.iter().any(|m| names(name, m)))
        {
            let what = format!("no linear layer is called `{name}`; there are {known:?} (or \"all-linear\")");
            return Err(self.error("target_modules", what));
        }
        for module in modules {
            if self.targets(module)? {
                return Ok(());
            }
        }
        let what = format!("matches no linear layer of the model; there are {known:?}, as in `{}`", modules[0]);
        Err(self.error("target_modules", what))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Patterns;
    use super::*;

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const DOWN11: &str = "model.layers.11.mlp.down_proj";
    const EXPERT: &str = "model.layers.1.mlp.experts.0.up_proj";

    fn list(names: &[&str]) -> Targets {
        Targets::Names(names.iter().map(|s| s.to_string()).collect())
    }
    fn of(targets: Targets) -> LoraConfig {
        LoraConfig { target_modules: targets, ..LoraConfig::default() }
    }
    fn targets(config: &LoraConfig, module: &str) -> bool {
        Rules::new(config, Path::new("m")).unwrap().targets(module).unwrap()
    }
    fn word(text: &str) -> Targets {
        Targets::Word(text.into())
    }

    #[test]
    fn names_match_as_in_peft() {
        for names in [list(&["q_proj"]), list(&["self_attn.q_proj"]), list(&[Q0]), word("all-linear")] {
            assert!(targets(&of(names), Q0));
        }
        assert!(!targets(&of(list(&["_proj", "k_proj"])), Q0));
        let config = of(list(&["q_prj"]));
        let e = Rules::new(&config, Path::new("m")).unwrap().check(&[Q0.to_string()]).unwrap_err();
        assert!(e.to_string().contains("m: lora.target_modules: no linear layer is called `q_prj`"), "{e}");
        // a finished adapter may name more than the model has, but not only that
        let adapter = LoraConfig { file: Some("a.json".into()), ..of(list(&["q_prj", "q_proj"])) };
        Rules::new(&adapter, Path::new("m")).unwrap().check(&[Q0.to_string()]).unwrap();
        let e = Rules::new(&adapter, Path::new("m")).unwrap().check(&[DOWN11.to_string()]).unwrap_err();
        assert!(e.to_string().starts_with("a.json: target_modules: matches no linear layer"), "{e}");
    }

    #[test]
    fn a_word_is_an_expression_for_the_whole_name() {
        let config = of(word(r"model\.layers\.(?!0\.)\d+\..*(q|down)_proj"));
        assert!(targets(&config, DOWN11) && !targets(&config, Q0));
        assert!(!targets(&of(word("q_proj")), Q0) && targets(&of(word(r".*q_proj|x")), Q0));
        let e = Rules::new(&of(word("*q_proj")), Path::new("m")).err().unwrap();
        assert!(e.to_string().contains("regular expression"), "{e}");
    }

    #[test]
    fn layers_and_exclusions() {
        let some = LoraConfig { layers_to_transform: vec![0, 1], ..of(list(&["q_proj", "down_proj", "up_proj"])) };
        assert!(targets(&some, Q0) && !targets(&some, DOWN11) && targets(&some, EXPERT));
        let h = LoraConfig { layers_pattern: vec!["h".into()], ..some.clone() };
        assert!(!targets(&h, Q0) && targets(&h, "h.1.q_proj") && !targets(&h, "h.2.q_proj"));
        let whole = LoraConfig { target_modules: list(&[DOWN11]), ..some.clone() };
        assert!(targets(&whole, DOWN11));
        let none = LoraConfig { exclude_modules: Some(list(&["q_proj"])), ..some };
        assert!(!targets(&none, Q0));
        let none = LoraConfig { exclude_modules: Some(word(r".*\.0\..*")), ..of(word("all-linear")) };
        assert!(!targets(&none, Q0) && targets(&none, DOWN11));
        let contradiction = LoraConfig { layers_to_transform: vec![1], ..of(word(".*")) };
        assert!(Rules::new(&contradiction, Path::new("m")).is_err());
    }

    #[test]
    fn patterns_give_ranks_in_their_order() {
        let ranks = Patterns(vec![(r"layers\.1\d\..*".into(), 4), ("down_proj".into(), 2), ("_proj".into(), 3)]);
        let alphas = Patterns(vec![("q_proj".into(), 32.0)]);
        let config = LoraConfig { rank_pattern: ranks, alpha_pattern: alphas, ..LoraConfig::default() };
        let rules = Rules::new(&config, Path::new("m")).unwrap();
        let shape = |module| rules.shape(module).unwrap();
        assert_eq!(shape(Q0), Shape { r: 8, scale: 4.0 });
        assert_eq!(shape(DOWN11), Shape { r: 4, scale: 2.0 });
        assert_eq!(shape("model.layers.2.mlp.down_proj"), Shape { r: 2, scale: 4.0 });
        let zero = LoraConfig { rank_pattern: Patterns(vec![("x".into(), 0)]), ..LoraConfig::default() };
        assert!(Rules::new(&zero, Path::new("m")).is_err());
    }
}
