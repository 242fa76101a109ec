//! Whether what was written says the same model again.
use crate::model::rope::Reach;
use crate::model::spec::Spec;

/// Positions at which angles are compared.
const POSITIONS: [usize; 4] = [0, 1, 37, 1000];

/// What two specs compute differently, in words; empty if nothing.
pub fn differences(a: &Spec, b: &Spec) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |what: &str, same: bool| {
        if !same {
            found.push(what.to_string());
        }
    };
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-5 * a.abs().max(b.abs());
    check("sizes", [a.layers, a.C, a.F, a.H, a.K, a.D, a.A, a.V] == [b.layers, b.C, b.F, b.H, b.K, b.D, b.A, b.V]);
    check("weights", a.weights() == b.weights());
    check("norms", a.norm == b.norm && a.norm_weight == b.norm_weight && a.norm_place == b.norm_place);
    check("epsilon of norms", close(a.eps, b.eps));
    check("norms of heads", a.qk_norm == b.qk_norm);
    check("residual stream", a.residual == b.residual && a.gating == b.gating && a.activation == b.activation);
    check("experts", a.moe == b.moe && a.dense_layers == b.dense_layers);
    check("attention", a.latent == b.latent && a.sinks == b.sinks && a.rope_pairs == b.rope_pairs);
    check("attention scale", close(a.attention_scale, b.attention_scale));
    check("scales", close(a.embed_scale, b.embed_scale) && close(a.residual_scale, b.residual_scale));
    check("logit scale", close(a.logit_scale, b.logit_scale));
    check("caps", a.attention_softcap == b.attention_softcap && a.logit_softcap == b.logit_softcap);
    let of = |s: &Spec, l: usize| s.kinds[s.kind_of[l]].clone();
    let layers = 0..a.layers.min(b.layers);
    check("windows", layers.clone().all(|l| of(a, l).window == of(b, l).window));
    check("RoPE", layers.into_iter().all(|l| same_angles((a, l), (b, l))));
    found
}

fn same_angles((a, l): (&Spec, usize), (b, m): (&Spec, usize)) -> bool {
    let rows = |s: &Spec, l: usize, reach| {
        let rope = s.kinds[s.kind_of[l]].rope.as_ref();
        rope.map(|rope| rope.rows(POSITIONS, s.A, reach))
    };
    [Reach::Short, Reach::Long].into_iter().all(|reach| match (rows(a, l, reach), rows(b, m, reach)) {
        (None, None) => true,
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-3),
        _ => false,
    })
}
