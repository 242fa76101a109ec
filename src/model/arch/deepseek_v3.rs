//! DeepSeek V3, V3.1, R1, Moonlight, Kimi K2: latent attention, and experts chosen by sigmoids in groups beside shared ones.
//! DeepSeek-AI 2024, arXiv:2412.19437.
use super::super::config::Keys;
use super::super::spec::{LatentNames, LatentSpec, LayerKind, MoeSpec, RopePairs, Scores, SharedSpec, Spec};
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
