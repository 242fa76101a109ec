//! What llama.cpp's graphs take for granted, and a GGUF file therefore cannot say: seen in its `src/models/`.
use super::families::Family;
use super::particular::gemma_scalar;
use crate::model::spec::{Bias, Head, NormKind, QkNorm, Spec};

/// The architectures that a rule is about, whether a model breaks it, and what it is.
type Rule = (&'static [&'static str], fn(&Spec) -> bool, &'static str);

const RULES: &[Rule] = &[
    (
        &["command-r", "cohere2", "gemma", "gemma2"],
        |s| s.head == Head::Own,
        "llama.cpp takes the embedding for the head: an adapter with a copy of its own of either cannot go along",
    ),
    (
        &["olmo2", "olmoe", "qwen2moe", "gptneox", "phi2", "stablelm"],
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
];

fn scaled(spec: &Spec, scalar: f64) -> bool {
    (f64::from(spec.attention_scale) * scalar.sqrt() - 1.0).abs() < 1e-5
}

/// The first rule that the model breaks.
pub(super) fn broken(spec: &Spec, family: &Family) -> Option<&'static str> {
    let of = RULES.iter().filter(|(architectures, ..)| architectures.contains(&family.architecture));
    of.into_iter().find(|(_, breaks, _)| breaks(spec)).map(|(.., why)| *why)
}
