//! What llama.cpp's graphs take for granted, and a GGUF file therefore cannot say: seen in its `src/models/`.
use super::families::{FAMILIES, Family};
use super::latent;
use super::particular::gemma_scalar;
use crate::model::spec::{Bias, GatedUnit, Head, NormKind, QkNorm, RopePairs, Spec};

/// The architectures that a rule is about, whether a model breaks it, and what it is.
type Rule = (&'static [&'static str], fn(&Spec) -> bool, &'static str);

const RULES: &[Rule] = &[
    (
        &["command-r", "cohere2", "gemma", "gemma2"],
        |s| s.head == Head::Own,
        "llama.cpp takes the embedding for the head: an adapter with a copy of its own of either cannot go along",
    ),
    (
        &["olmo2", "olmoe", "qwen2moe", "gptneox", "phi2", "stablelm", "gpt-oss"],
        |s| s.head == Head::Tied,
        "llama.cpp wants a head that is not tied to the embedding",
    ),
    (
        &[
            "qwen2",
            "phi3",
            "olmo2",
            "olmoe",
            "exaone4",
            "starcoder2",
            "command-r",
            "cohere2",
            "qwen2moe",
            "gptneox",
            "gpt2",
            "phi2",
            "stablelm",
            "chatglm",
        ],
        |s| s.H * s.D != s.C,
        "llama.cpp wants all heads together to be as wide as the model",
    ),
    (
        &[
            "llama",
            "granite",
            "gemma",
            "gemma2",
            "gemma3",
            "qwen2",
            "qwen3",
            "qwen2moe",
            "qwen3moe",
            "olmo2",
            "olmoe",
            "smollm3",
            "seed_oss",
            "exaone4",
            "starcoder2",
            "command-r",
            "ernie4_5",
            "gpt-oss",
        ],
        |s| s.A != s.D,
        "llama.cpp turns all channels of a head",
    ),
    (
        &["command-r"],
        |s| (s.qk_norm != QkNorm::Absent) != (s.layers >= 64),
        "llama.cpp has norms of heads from 64 layers on",
    ),
    (&["phi2"], |s| s.qk_norm != QkNorm::Absent, "llama.cpp has no norms of heads for it"),
    (&["ernie4_5"], |s| s.mlp_bias == Bias::Present, "llama.cpp has no biases in its MLP"),
    (&["starcoder2"], |s| s.o_bias == Bias::Absent, "llama.cpp wants its biases"),
    (
        &["cohere2"],
        |s| s.norm != NormKind::Layer(Bias::Absent) || s.o_bias == Bias::Present,
        "llama.cpp has no biases there",
    ),
    (&["olmoe"], |s| s.H != s.K, "llama.cpp wants as many kv heads as query heads"),
    (
        &["exaone4"],
        |s| s.kinds.iter().any(|kind| kind.window.is_some()) != (s.layers == 64),
        "llama.cpp has windows with 64 layers, and with no other number",
    ),
    (
        &["gemma2"],
        |s| !scaled(s, gemma_scalar("gemma2", s.layers as u64, s.C as u64, s.H as u64, s.D as u64)),
        "llama.cpp has an attention scale of its own (query_pre_attn_scalar)",
    ),
    (
        &["gemma3"],
        |s| !scaled(s, gemma_scalar("gemma3", s.layers as u64, s.C as u64, s.H as u64, s.D as u64)),
        "llama.cpp has an attention scale of its own (query_pre_attn_scalar)",
    ),
    (
        &["llama"],
        |s| s.model_type == "ministral" && s.kinds.iter().any(|kind| kind.window.is_some()),
        "llama.cpp does not know the windows of ministral",
    ),
    (&["gpt-oss"], |s| s.o_bias == Bias::Absent, "llama.cpp wants its biases"),
    (
        &["gpt-oss"],
        |s| s.moe.as_ref().is_some_and(|moe| moe.unit != OAI),
        "llama.cpp has a swiglu_alpha of 1.702 and a swiglu_limit of 7",
    ),
    (&["gpt-oss"], |s| s.kinds.iter().all(|kind| kind.window.is_none()), "llama.cpp wants windows in some layers"),
    (
        &[latent::ARCHITECTURE],
        |s| s.qkv_bias == Bias::Present || s.o_bias == Bias::Present,
        "llama.cpp has no biases in its attention (attention_bias)",
    ),
    (
        &[latent::ARCHITECTURE],
        |s| s.rope_pairs != RopePairs::Interleaved,
        "llama.cpp turns neighbouring channels (rope_interleave)",
    ),
    (
        &[latent::ARCHITECTURE],
        |s| s.moe.as_ref().is_some_and(|moe| moe.shared.is_none()),
        "llama.cpp wants shared experts (n_shared_experts)",
    ),
    (
        &[latent::ARCHITECTURE],
        |s| s.dense_layers.iter().enumerate().any(|(i, l)| i != *l),
        "llama.cpp has dense layers before the mixtures alone",
    ),
    (
        &[latent::ARCHITECTURE],
        |s| lite(s) && s.latent.as_ref().is_some_and(|latent| latent.q_rank.is_some()),
        "llama.cpp wants q at once (q_lora_rank) where there are 26 or 27 layers",
    ),
];

/// The experts of gpt-oss.
const OAI: GatedUnit = GatedUnit::Clamped { alpha: 1.702, limit: 7.0 };

/// The sizes that llama.cpp knows DeepSeek V2 Lite and others of its kind by.
fn lite(spec: &Spec) -> bool {
    [26, 27].contains(&spec.layers) || (spec.layers, spec.V) == (48, 128_256)
}

fn scaled(spec: &Spec, scalar: f64) -> bool {
    (f64::from(spec.attention_scale) * scalar.sqrt() - 1.0).abs() < 1e-5
}

fn of(architecture: &str) -> impl Iterator<Item = &'static Rule> {
    RULES.iter().filter(move |(architectures, ..)| architectures.contains(&architecture))
}

/// The first rule that the model breaks.
pub(super) fn broken(spec: &Spec, family: &Family) -> Option<&'static str> {
    of(family.architecture).find(|(_, breaks, _)| breaks(spec)).map(|(.., why)| *why)
}

/// The architectures, the `model_type`s of each, and what of these llama.cpp has not: a table in Markdown.
pub fn table() -> String {
    let mut out =
        "| `general.architecture` | `model_type` | llama.cpp …; what differs is refused |\n|---|---|---|\n".to_string();
    for family in FAMILIES {
        let types: Vec<_> = family.model_types.iter().map(|name| format!("`{name}`")).collect();
        let whys: Vec<_> = of(family.architecture).map(|(.., why)| why.trim_start_matches("llama.cpp ")).collect();
        out += &format!("| `{}` | {} | {} |\n", family.architecture, types.join(", "), whys.join("; "));
    }
    out
}
