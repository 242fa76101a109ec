//! What the decoders of the Llama family have in common.
use super::super::config::Keys;
use super::super::spec::{
    Activation, Bias, ExpertFiles, GatedUnit, Head, LayerKind, MoeSpec, Names, NormPlace, NormWeight, QkNorm,
    RopePairs, RouterWeights, Scores, Sinks, Spec,
};
use super::rope;
use crate::error::Result;

pub(super) const NAMES: Names = Names {
    embed: "model.embed_tokens",
    layer: "model.layers.{}",
    final_norm: "model.norm",
    head: "lm_head",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    attention_post_norm: "",
    mlp_post_norm: "",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    sinks: "self_attn.sinks",
    o: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
};

/// Llama without its biases; `head_dim` is what the family's config class takes where the key is missing, if not hidden/heads.
pub(super) fn spec(keys: &Keys, head_dim: Option<usize>) -> Result<Spec> {
    spec_with(keys, head_dim, activation(keys, &["hidden_act"], "silu")?)
}

/// The same with an activation that the family reads in its own way.
pub(super) fn spec_with(keys: &Keys, head_dim: Option<usize>, activation: Activation) -> Result<Spec> {
    let (C, layers) = (keys.size("hidden_size", None)?, keys.size("num_hidden_layers", None)?);
    let H = keys.size("num_attention_heads", None)?;
    let K = keys.size("num_key_value_heads", Some(H))?;
    if !H.is_multiple_of(K) {
        return keys.wrong("num_key_value_heads", format!("{H} query heads do not divide among {K} kv heads"));
    }
    if keys.get("head_dim").is_none() && head_dim.is_none() && !C.is_multiple_of(H) {
        return keys.wrong("num_attention_heads", format!("hidden_size {C} does not divide among {H} heads"));
    }
    let D = keys.size("head_dim", Some(head_dim.unwrap_or(C / H)))?;
    if D % 2 == 1 || D > 256 {
        return keys.wrong("head_dim", format!("an even head size up to 256 is wanted, got {D}"));
    }
    let A = rope::rotary(keys, D, 1.0)?;
    Ok(Spec {
        model_type: keys.text("model_type", None)?,
        layers,
        C,
        F: keys.size("intermediate_size", None)?,
        H,
        K,
        D,
        A,
        rope_pairs: RopePairs::Halves,
        V: keys.size("vocab_size", None)?,
        eps: keys.positive("rms_norm_eps", Some(1e-6))? as f32,
        kinds: vec![LayerKind { window: None, rope: Some(rope::read(keys, None, A, 10000.0)?) }],
        kind_of: vec![0; layers],
        qkv_bias: Bias::Absent,
        o_bias: Bias::Absent,
        mlp_bias: Bias::Absent,
        latent: None,
        moe: None,
        dense_layers: Vec::new(),
        ignored_layers: 0,
        norm_weight: NormWeight::Factor,
        norm_place: NormPlace::Before,
        qk_norm: QkNorm::Absent,
        sinks: Sinks::Absent,
        activation,
        attention_scale: inverse_root(D as f64),
        embed_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        attention_softcap: 0.0,
        logit_softcap: 0.0,
        head: tied(keys, false)?,
        max_positions: keys.size("max_position_embeddings", Some(2048))?,
        initializer_range: keys.positive("initializer_range", Some(0.02))? as f32,
        names: NAMES,
    })
}

/// No real model has as many; keeps a hostile config from naming tensors without end, and products of sizes within 64 bits.
const MAX_EXPERTS: usize = 4096;

/// Names of experts' modules as most models have them: gate, up, down.
pub(super) const EXPERTS: [&str; 3] =
    ["mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"];

/// A mixture of experts of F hidden channels, by softmax; their number is under the first of `experts` that is there.
pub(super) fn moe(
    keys: &Keys,
    (experts, default): (&[&str], usize),
    slots: usize,
    weights: RouterWeights,
    router: &'static str,
    (F, [gate, up, down]): (usize, [&'static str; 3]),
) -> Result<MoeSpec> {
    let key = experts.iter().find(|key| keys.get(key).is_some()).unwrap_or(&experts[0]);
    let E = keys.size(key, Some(default))?;
    let S = keys.size("num_experts_per_tok", Some(slots))?;
    if E > MAX_EXPERTS {
        return keys.wrong(key, format!("{E} experts are more than any model has"));
    }
    if S > E {
        return keys.wrong("num_experts_per_tok", format!("at most {key} = {E} is wanted, got {S}"));
    }
    if activation(keys, &["hidden_act"], "silu")? != Activation::Silu {
        return keys.wrong("hidden_act", "`silu` is wanted where there are experts");
    }
    let (scores, router_bias, unit) = (Scores::Softmax, Bias::Absent, GatedUnit::SwiGlu);
    let files = ExpertFiles::Modules;
    Ok(MoeSpec { E, F, S, scores, weights, router, router_bias, unit, files, gate, up, down, shared: None })
}

/// `norm_topk_prob`
pub(super) fn router_weights(keys: &Keys, default: bool) -> Result<RouterWeights> {
    let norm = keys.flag("norm_topk_prob", default)?;
    Ok(if norm { RouterWeights::Renormalised } else { RouterWeights::Plain })
}

/// Qwen's layers without experts: those of `mlp_only_layers`, and all but every `decoder_sparse_step`th.
pub(super) fn dense_layers(keys: &Keys, layers: usize) -> Result<Vec<usize>> {
    let step = keys.size("decoder_sparse_step", Some(1))?;
    let named = keys.counts("mlp_only_layers")?;
    Ok((0..layers).filter(|l| named.contains(l) || (l + 1) % step != 0).collect())
}

pub(super) fn inverse_root(x: f64) -> f32 {
    (1.0 / x.sqrt()) as f32
}

pub(super) fn bias(keys: &Keys, key: &str) -> Result<Bias> {
    keys.flag(key, false).map(|b| if b { Bias::Present } else { Bias::Absent })
}

pub(super) fn tied(keys: &Keys, default: bool) -> Result<Head> {
    keys.flag("tie_word_embeddings", default).map(|t| if t { Head::Tied } else { Head::Own })
}

/// The MLP's activation under the first of `names` that is there.
pub(super) fn activation(keys: &Keys, names: &[&str], default: &str) -> Result<Activation> {
    let name = names.iter().find(|name| keys.get(name).is_some()).unwrap_or(&names[0]);
    match keys.text(name, Some(default))?.as_str() {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        other => keys.wrong(name, format!("`silu` or `gelu_pytorch_tanh` is wanted, got `{other}`")),
    }
}

/// What `layer_types` calls a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerType {
    Full,
    Sliding,
}

/// `layer_types`, or what older configs mean for layer l.
pub(super) fn layer_types(keys: &Keys, layers: usize, older: impl Fn(usize) -> LayerType) -> Result<Vec<LayerType>> {
    let Some(types) = keys.texts("layer_types", layers)? else { return Ok((0..layers).map(older).collect()) };
    let read = |name: &String| match name.as_str() {
        "full_attention" => Ok(LayerType::Full),
        "sliding_attention" => Ok(LayerType::Sliding),
        other => keys.wrong("layer_types", format!("`full_attention` or `sliding_attention` is wanted, got `{other}`")),
    };
    types.iter().map(read).collect()
}

impl Spec {
    /// Gives each layer its kind: `kind(type)` for the types in use, in the order of their first layers.
    pub(super) fn set_kinds<T: Copy + PartialEq>(&mut self, types: &[T], kind: impl Fn(T) -> LayerKind) {
        let (mut used, mut kind_of) = (Vec::new(), Vec::new());
        for layer in types {
            let seen = used.iter().position(|t| t == layer);
            kind_of.push(seen.unwrap_or(used.len()));
            if seen.is_none() {
                used.push(*layer);
            }
        }
        self.kinds = used.into_iter().map(kind).collect();
        self.kind_of = kind_of;
    }

    /// The layers of type `Sliding` see `window` tokens.
    pub(super) fn set_windows(&mut self, types: &[LayerType], window: Option<usize>) {
        let rope = self.kinds[0].rope.clone();
        let kind = |t| LayerKind { window: window.filter(|_| t == LayerType::Sliding), rope: rope.clone() };
        self.set_kinds(types, kind);
    }
}

/// Qwen's windows: where `use_sliding_window` is on, in the layers from `max_window_layers` on.
pub(super) fn qwen_windows(keys: &Keys, spec: &mut Spec) -> Result<()> {
    if !keys.flag("use_sliding_window", false)? {
        return Ok(());
    }
    let first = match keys.get("max_window_layers").and_then(|v| v.as_u64()) {
        Some(0) => 0,
        _ => keys.size("max_window_layers", Some(28))?,
    };
    let older = |l| if l >= first { LayerType::Sliding } else { LayerType::Full };
    let types = layer_types(keys, spec.layers, older)?;
    spec.set_windows(&types, keys.optional_size("sliding_window", Some(4096))?);
    Ok(())
}
