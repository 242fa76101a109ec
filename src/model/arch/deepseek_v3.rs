//! DeepSeek V3, V3.1, R1, Moonlight, Kimi K2: latent attention, and experts chosen by sigmoids in groups beside shared ones.
//! DeepSeek-AI 2024, arXiv:2412.19437.
use super::super::config::Keys;
use super::super::spec::{LatentNames, LatentSpec, LayerKind, MoeSpec, RopePairs, Scores, SharedSpec, Spec, Weighed};
use super::common::{self, EXPERTS, bias, inverse_root, moe, router_weights};
use super::rope;
use crate::error::Result;

const LATENT: LatentNames = LatentNames {
    q_a: "self_attn.q_a_proj",
    q_a_norm: "self_attn.q_a_layernorm",
    q_b: "self_attn.q_b_proj",
    kv_a: "self_attn.kv_a_proj_with_mqa",
    kv_a_norm: "self_attn.kv_a_layernorm",
    kv_b: "self_attn.kv_b_proj",
};

/// The model's own norms have an eps in the config, those of the narrow rows have none.
const LATENT_EPS: f32 = 1e-6;

pub(super) fn spec(keys: &Keys) -> Result<Spec> {
    let A = keys.size("qk_rope_head_dim", Some(64))?;
    if A % 2 == 1 {
        return keys.wrong("qk_rope_head_dim", format!("an even size is wanted, got {A}"));
    }
    let common = common::spec(keys, Some(A))?;
    if common.K != common.H {
        return keys.wrong("num_key_value_heads", format!("as many as query heads ({}) are wanted", common.H));
    }
    let latent = latent(keys)?;
    // as one attention has one head size, q, k and v are filled up to that
    let D = (latent.U + A).max(latent.Y).next_multiple_of(4);
    if D > 256 {
        let what = format!("heads of up to 256 channels are wanted, got {} + {A} and {}", latent.U, latent.Y);
        return keys.wrong("qk_nope_head_dim", what);
    }
    let attention = bias(keys, "attention_bias")?;
    let rope = rope::read(keys, None, A, 10000.0)?;
    Ok(Spec {
        A,
        D,
        rope_pairs: if keys.flag("rope_interleave", true)? { RopePairs::Interleaved } else { RopePairs::Halves },
        kinds: vec![LayerKind { window: None, rope: Some(rope) }],
        qkv_bias: attention,
        o_bias: attention,
        attention_scale: inverse_root((latent.U + A) as f64) * rope::score_scale(keys)? as f32,
        latent: Some(latent),
        moe: Some(mixture(keys)?),
        dense_layers: (0..keys.count("first_k_dense_replace", 3)?.min(common.layers)).collect(),
        ignored_layers: keys.count("num_nextn_predict_layers", 1)?,
        ..common
    })
}

fn latent(keys: &Keys) -> Result<LatentSpec> {
    Ok(LatentSpec {
        q_rank: keys.optional_size("q_lora_rank", Some(1536))?,
        kv_rank: keys.size("kv_lora_rank", Some(512))?,
        U: keys.size("qk_nope_head_dim", Some(128))?,
        Y: keys.size("v_head_dim", Some(128))?,
        eps: LATENT_EPS,
        names: LATENT,
    })
}

fn mixture(keys: &Keys) -> Result<MoeSpec> {
    for (key, known) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        let got = keys.text(key, Some(known))?;
        if got != known {
            return keys.wrong(key, format!("`{known}` is wanted, got `{got}`"));
        }
    }
    if keys.size("moe_layer_freq", Some(1))? != 1 {
        return keys.wrong("moe_layer_freq", "1 is wanted: a mixture in every layer from first_k_dense_replace on");
    }
    let F = keys.size("moe_intermediate_size", Some(2048))?;
    let weights = router_weights(keys, true)?;
    let moe = moe(keys, (&["n_routed_experts", "num_local_experts"], 256), 8, weights, "mlp.gate", (F, EXPERTS))?;
    let (groups, kept) = (keys.size("n_group", Some(8))?, keys.size("topk_group", Some(4))?);
    if groups > 256 || moe.E % groups != 0 {
        return keys.wrong("n_group", format!("up to 256 groups of {} experts are wanted, got {groups}", moe.E));
    }
    if kept > groups || moe.S > kept * (moe.E / groups) {
        let what = format!("up to {groups} groups with {} experts among them are wanted, got {kept}", moe.S);
        return keys.wrong("topk_group", what);
    }
    let scale = keys.positive("routed_scaling_factor", Some(2.5))? as f32;
    let shared = |n: usize| SharedSpec {
        F: n * F,
        weighed: Weighed::Plain,
        gate: "mlp.shared_experts.gate_proj",
        up: "mlp.shared_experts.up_proj",
        down: "mlp.shared_experts.down_proj",
    };
    Ok(MoeSpec {
        scores: Scores::Sigmoid { groups, kept, scale, bias: "mlp.gate.e_score_correction_bias" },
        shared: keys.optional_size("n_shared_experts", Some(1))?.map(shared),
        ..moe
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;
    use crate::model::rope::RopeScaling;
    use crate::model::spec::{MlpKind, RouterWeights};
    use serde_json::{Value, json};

    /// The sizes of DeepSeek V3 under the keys of its release.
    fn published() -> Value {
        json!({"hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61, "num_attention_heads": 128,
            "num_key_value_heads": 128, "vocab_size": 129280, "max_position_embeddings": 163840, "q_lora_rank": 1536,
            "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256,
            "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc",
            "scoring_func": "sigmoid", "norm_topk_prob": true, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3,
            "moe_layer_freq": 1, "moe_intermediate_size": 2048, "num_nextn_predict_layers": 1, "rope_theta": 10000,
            "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}})
    }

    fn changed(changes: Value) -> Result<Spec> {
        let mut config = published();
        let changes = changes.as_object().expect("keys").clone();
        config.as_object_mut().expect("keys").extend(changes);
        with("deepseek_v3", config)
    }

    #[test]
    fn the_released_config_is_what_the_release_says() {
        let spec = changed(json!({})).unwrap();
        assert_eq!((spec.D, spec.A, spec.H, spec.K), (192, 64, 128, 128));
        assert_eq!(spec.parameters() / 1_000_000_000, 671);
        let factor = 0.1 * 40f64.ln() + 1.0;
        assert!((spec.attention_scale as f64 - factor * factor / 192f64.sqrt()).abs() < 1e-8);
        let Some(RopeScaling::Yarn(yarn)) = spec.kinds[0].rope.as_ref().map(|r| r.scaling.clone()) else {
            panic!("yarn")
        };
        assert_eq!((yarn.attention_factor, yarn.original), (1.0, 4096.0));
        assert_eq!([2, 3, 60].map(|l| spec.mlp(l)), [MlpKind::Dense, MlpKind::Moe, MlpKind::Moe]);
        let moe = spec.moe.as_ref().unwrap();
        assert_eq!((moe.E, moe.S, moe.F, moe.weights), (256, 8, 2048, RouterWeights::Renormalised));
        let names: Vec<String> = spec.weights().into_iter().map(|w| w.name).collect();
        for name in [
            "3.mlp.gate.e_score_correction_bias",
            "60.mlp.experts.255.down_proj.weight",
            "0.self_attn.q_a_layernorm.weight",
        ] {
            assert!(names.contains(&format!("model.layers.{name}")), "{name}");
        }
    }

    /// Moonlight: q at once, one group, no scaling; and weights of mscale that are 0.
    #[test]
    fn what_is_null_or_zero_is_not_there() {
        let more = json!({"q_lora_rank": null, "n_group": 1, "topk_group": 1, "rope_scaling": null, "n_shared_experts": null,
            "first_k_dense_replace": 0});
        let spec = changed(more).unwrap();
        assert_eq!(spec.latent.as_ref().unwrap().q_rank, None);
        assert!(spec.dense_layers.is_empty() && spec.moe.as_ref().unwrap().shared.is_none());
        assert_eq!(spec.attention_scale, inverse_root(192.0));
        let zero = json!({"rope_scaling": {"type": "yarn", "factor": 40, "mscale": 0, "mscale_all_dim": 0}});
        let spec = changed(zero).unwrap();
        assert_eq!(spec.attention_scale, inverse_root(192.0));
    }

    #[test]
    fn other_kinds_of_routing_are_refused() {
        for (key, value) in [
            ("scoring_func", json!("softmax")),
            ("topk_method", json!("greedy")),
            ("moe_layer_freq", json!(2)),
            ("n_group", json!(7)),
            ("topk_group", json!(9)),
            ("num_key_value_heads", json!(8)),
            ("qk_nope_head_dim", json!(256)),
        ] {
            let e = changed(json!({ key: value })).unwrap_err().to_string();
            assert!(e.contains(key), "{key}: {e}");
        }
    }
}
