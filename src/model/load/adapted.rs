//! What an adapter may be on.
use super::is_router;
use crate::error::Result;
use crate::model::lora::Rules;
use crate::model::spec::{ExpertFiles, Spec};

/// Experts that are one tensor, and their router, are no modules: PEFT has no adapter for them but by `target_parameters`.
pub(super) fn stacked_stay(spec: &Spec, rules: &Rules) -> Result<()> {
    let stacked = spec.moe.as_ref().filter(|moe| moe.files == ExpertFiles::Stacked && !rules.all_linear());
    for module in stacked.into_iter().flat_map(|moe| [moe.router, moe.gate, moe.up, moe.down]) {
        for layer in 0..spec.layers {
            if rules.targets(&spec.names.of(layer, module))? {
                let what =
                    format!("adapters on `{module}` of {} are not supported: it is no linear layer", spec.model_type);
                let hint = "name q_proj, k_proj, v_proj, o_proj, or use \"all-linear\"";
                return Err(rules.error("target_modules", format!("{what}; {hint}")));
            }
        }
    }
    Ok(())
}

pub(super) fn linear_names(spec: &Spec) -> Vec<String> {
    let stacked = spec.moe.as_ref().is_some_and(|moe| moe.files == ExpertFiles::Stacked);
    let of_layer = |l: usize| {
        let linears = spec.linears(l).into_iter().filter(|linear| !(stacked && is_router(spec, linear.module)));
        let experts = if stacked { Vec::new() } else { spec.experts(l) };
        let experts = experts.into_iter().flat_map(move |linear| spec.expert_names(l, linear.module));
        linears.map(move |linear| spec.names.of(l, linear.module)).chain(experts)
    };
    (0..spec.layers).flat_map(of_layer).collect()
}
