//! The routers' balance loss of a run: whether it counts, and by how much.
use super::config::TrainConfig;
use crate::error::{Error, Result};
use crate::model::{Model, arch};
use std::path::Path;

/// transformers' `router_aux_loss_coef` of configs that have none, by `model_type`.
const DEFAULTS: &[(&str, f64)] = &[("olmoe", 0.01), ("gpt_oss", 0.9)];
const DEFAULT: f64 = 0.001;

/// `None`: it does not count. What the run says goes over what the `base` model's config says.
pub(super) fn coef(config: &TrainConfig, base: &Path, model: &Model) -> Result<Option<f64>> {
    let own = arch::read_config(base)?;
    let key = |name: &str| own.get(name);
    let asked = config.output_router_logits.or(config.router_aux_loss_coef.map(|_| true));
    let on = asked.unwrap_or_else(|| key("output_router_logits").and_then(|on| on.as_bool()).unwrap_or(false));
    if !on || config.router_aux_loss_coef == Some(0.0) {
        return Ok(None);
    }
    if !model.has_balance() {
        return match asked {
            Some(true) => Err(Error::Usage(
                "output_router_logits, router_aux_loss_coef: the model has no routers whose choice is a softmax (DeepSeek's \
                 balance by a bias), so no such loss is defined: take them out"
                    .into(),
            )),
            _ => Ok(None),
        };
    }
    let kind = key("model_type").and_then(|kind| kind.as_str()).unwrap_or_default();
    let default = DEFAULTS.iter().find(|(name, _)| *name == kind).map_or(DEFAULT, |(_, coef)| *coef);
    let given = config.router_aux_loss_coef.or(key("router_aux_loss_coef").and_then(|coef| coef.as_f64()));
    Ok(Some(given.unwrap_or(default)))
}
