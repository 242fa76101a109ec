//! Where a GGUF file has each weight of a model, and what llama.cpp's `convert_hf_to_gguf.py` did to it.
use super::super::spec::{Bias, NormSpec, NormWeight, Spec};
use crate::io::gguf::{Gguf, Value};
use std::collections::BTreeMap;

/// How a tensor must change to be the Hugging Face one again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fix {
    Keep,
    /// The rows of each head are interleaved: llama.cpp turns neighbours where Hugging Face turns halves.
    Interleaved {
        heads: usize,
    },
    /// 1 was added: a norm's factor, where Hugging Face stores its distance from 1.
    PlusOne,
}

#[derive(Clone, Debug)]
pub(super) struct Place {
    pub tensor: String,
    /// This one of so many along the first dimension.
    pub part: Option<(usize, usize)>,
    pub fix: Fix,
}

/// The tensor of every weight, by what the weight is for: the spec's names are the Hugging Face ones.
pub(super) fn places(spec: &Spec, gguf: &Gguf) -> BTreeMap<String, Place> {
    let names = &spec.names;
    let norm = if spec.norm_weight == NormWeight::FromOne { Fix::PlusOne } else { Fix::Keep };
    let rotary = gguf.get("general.architecture").and_then(Value::as_text) == Some("llama");
    let mut all = BTreeMap::new();
    let mut put = |name: String, tensor: String, part, fix| all.insert(name, Place { tensor, part, fix });
    put(format!("{}.weight", names.embed), "token_embd.weight".into(), None, Fix::Keep);
    put(format!("{}.weight", names.final_norm), "output_norm.weight".into(), None, norm);
    put(format!("{}.weight", names.head), "output.weight".into(), None, Fix::Keep);
    for l in 0..spec.layers {
        for NormSpec { module, .. } in spec.norms() {
            let Some(tensor) = of_module(spec, module) else { continue };
            put(format!("{}.weight", names.of(l, module)), format!("blk.{l}.{tensor}.weight"), None, norm);
        }
        for linear in spec.linears(l) {
            let Some(tensor) = of_module(spec, linear.module) else { continue };
            let heads = [(names.q, spec.H), (names.k, spec.K)].into_iter().find(|(name, _)| *name == linear.module);
            let fix = match heads.filter(|_| rotary && names.q != names.k) {
                Some((_, heads)) => Fix::Interleaved { heads },
                None => Fix::Keep,
            };
            let module = names.of(l, linear.module);
            put(format!("{module}.weight"), format!("blk.{l}.{tensor}.weight"), None, fix);
            if linear.bias == Bias::Present {
                put(format!("{module}.bias"), format!("blk.{l}.{tensor}.bias"), None, fix);
            }
        }
        for linear in spec.experts(l) {
            let Some(module) = of_module(spec, linear.module) else { continue };
            let stacked = format!("blk.{l}.{module}_exps.weight");
            let modules = spec.expert_names(l, linear.module);
            let E = modules.len();
            for (e, name) in modules.into_iter().enumerate() {
                // files from before 2024 hold the experts one by one
                let (tensor, part) = match gguf.tensor(&stacked) {
                    None if gguf.tensor(&format!("blk.{l}.{module}.{e}.weight")).is_some() => {
                        (format!("blk.{l}.{module}.{e}.weight"), None)
                    }
                    _ => (stacked.clone(), Some((e, E))),
                };
                put(format!("{name}.weight"), tensor, part, Fix::Keep);
            }
        }
    }
    all
}

/// What GGUF calls a module of a layer, if it has a name for it.
fn of_module(spec: &Spec, module: &str) -> Option<&'static str> {
    let n = &spec.names;
    let known = [
        (n.attention_norm, "attn_norm"),
        (n.mlp_norm, "ffn_norm"),
        (n.attention_post_norm, "post_attention_norm"),
        (n.mlp_post_norm, "post_ffw_norm"),
        (n.q_norm, "attn_q_norm"),
        (n.k_norm, "attn_k_norm"),
        (n.q, if n.q == n.k { "attn_qkv" } else { "attn_q" }),
        (n.k, "attn_k"),
        (n.v, "attn_v"),
        (n.o, "attn_output"),
        // a fused gate_up_proj goes under the name of up
        (n.gate, if n.gate == n.up { "ffn_up" } else { "ffn_gate" }),
        (n.up, "ffn_up"),
        (n.down, "ffn_down"),
    ];
    let of_experts = spec.moe.iter().flat_map(|moe| {
        [(moe.router, "ffn_gate_inp"), (moe.gate, "ffn_gate"), (moe.up, "ffn_up"), (moe.down, "ffn_down")]
    });
    known.into_iter().chain(of_experts).find(|(name, _)| *name == module).map(|(_, tensor)| tensor)
}
