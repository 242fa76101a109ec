//! What llama.cpp calls the families of models, and what each needs: one table, read from files to configs and from specs to files.
use super::super::spec::RopePairs::{self, Halves, Interleaved};
use super::super::spec::{RouterWeights, Spec};
use super::latent;

/// An architecture of llama.cpp.
pub(super) struct Family {
    /// `general.architecture`
    pub architecture: &'static str,
    /// The `model_type`s that are stored as it; what a file is read as is the first, unless it says more.
    pub model_types: &'static [&'static str],
    /// Which channels llama.cpp turns together: where that is neighbours and the model turns halves, rows of q and k are moved.
    pub pairs: RopePairs,
    /// The epsilon of norms: the key in files, and in configs.
    pub eps: (&'static str, &'static str),
    /// What its graph does with the weights of chosen experts.
    pub router: RouterWeights,
    /// The tensor of the MLP's norm.
    pub mlp_norm: &'static str,
}

pub(super) const RMS_EPS: &str = "attention.layer_norm_rms_epsilon";
pub(super) const LAYER_EPS: &str = "attention.layer_norm_epsilon";

const fn family(architecture: &'static str, model_types: &'static [&'static str], pairs: RopePairs) -> Family {
    let (eps, router) = ((RMS_EPS, "rms_norm_eps"), RouterWeights::Renormalised);
    Family { architecture, model_types, pairs, eps, router, mlp_norm: "ffn_norm" }
}

const fn layer_norms(family: Family, key: &'static str) -> Family {
    Family { eps: (LAYER_EPS, key), ..family }
}

const fn plain_router(family: Family) -> Family {
    Family { router: RouterWeights::Plain, ..family }
}

pub(super) const FAMILIES: &[Family] = &[
    family("chatglm", &["glm"], Interleaved),
    layer_norms(family("cohere2", &["cohere2"], Interleaved), "layer_norm_eps"),
    layer_norms(family("command-r", &["cohere"], Interleaved), "layer_norm_eps"),
    family(latent::ARCHITECTURE, &["deepseek_v3", "kimi_k2"], Interleaved),
    family("ernie4_5", &["ernie4_5"], Interleaved),
    family("exaone4", &["exaone4"], Halves),
    family("gemma", &["gemma"], Halves),
    family("gemma2", &["gemma2"], Halves),
    family("gemma3", &["gemma3_text"], Halves),
    family("glm4", &["glm4"], Interleaved),
    layer_norms(family("gpt2", &["gpt2"], Halves), "layer_norm_epsilon"),
    Family { mlp_norm: "post_attention_norm", ..family("gpt-oss", &["gpt_oss"], Halves) },
    layer_norms(family("gptneox", &["gpt_neox"], Halves), "layer_norm_eps"),
    family("granite", &["granite"], Interleaved),
    family("llama", &["llama", "mistral", "mixtral", "ministral"], Interleaved),
    family("olmo2", &["olmo2", "olmo3"], Halves),
    plain_router(family("olmoe", &["olmoe"], Halves)),
    layer_norms(family("phi2", &["phi"], Halves), "layer_norm_eps"),
    family("phi3", &["phi3"], Halves),
    family("qwen2", &["qwen2"], Halves),
    plain_router(family("qwen2moe", &["qwen2_moe"], Halves)),
    family("qwen3", &["qwen3"], Halves),
    family("qwen3moe", &["qwen3_moe"], Halves),
    Family { mlp_norm: "post_attention_norm", ..family("seed_oss", &["seed_oss"], Halves) },
    family("smollm3", &["smollm3"], Interleaved),
    layer_norms(family("stablelm", &["stablelm"], Halves), "layer_norm_eps"),
    layer_norms(family("starcoder2", &["starcoder2"], Halves), "norm_epsilon"),
];

impl Family {
    pub fn of_architecture(architecture: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| family.architecture == architecture)
    }
    pub fn of_model_type(model_type: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| family.model_types.contains(&model_type))
    }
    /// Whether rows of q and k are moved for a model of this spec.
    pub fn moves_rows(&self, spec: &Spec) -> bool {
        self.pairs == Interleaved && spec.rope_pairs == Halves && spec.names.q != spec.names.k
    }
}
