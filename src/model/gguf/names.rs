//! Where a GGUF file has each weight of a model, and what llama.cpp's `convert_hf_to_gguf.py` did to it.
use super::super::layout::Layout;
use super::super::spec::{Bias, ExpertFiles, LatentSpec, LinearSpec, NormKind, NormWeight, Positions, Sinks, Spec};
use super::families::Family;
use super::share::Share;
use std::collections::BTreeMap;

/// How a tensor must change to be the Hugging Face one again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fix {
    Keep,
    /// The rows of each head are interleaved: llama.cpp turns neighbours where Hugging Face turns halves.
    Interleaved {
        heads: usize,
    },
    /// 1 was added: a norm's factor, where Hugging Face stores its distance from 1.
    PlusOne,
    /// As the device holds it, where the folder's file has this order.
    Rows(Layout),
    /// Another order, or a part of it; others have the rest.
    Share(Share),
}

#[derive(Clone, Debug)]
pub struct Place {
    pub tensor: String,
    /// This one of so many along the first dimension.
    pub part: Option<(usize, usize)>,
    pub fix: Fix,
}

/// Where the weights are, each in one tensor or shared by several.
pub type Places = BTreeMap<String, Vec<Place>>;

/// The tensors of every weight, by what the weight is for: the spec's names are the Hugging Face ones. `there` knows the tensors
/// of a file that is read.
pub(super) fn places(spec: &Spec, family: Option<&Family>, there: impl Fn(&str) -> bool) -> Places {
    let names = &spec.names;
    let norm = if spec.norm_weight == NormWeight::FromOne { Fix::PlusOne } else { Fix::Keep };
    let moved = family.is_some_and(|family| family.moves_rows(spec));
    let mut all = Places::new();
    let mut put =
        |name: String, tensor: String, part, fix| all.entry(name).or_default().push(Place { tensor, part, fix });
    put(format!("{}.weight", names.embed), "token_embd.weight".into(), None, Fix::Keep);
    if spec.positions == Positions::Learned {
        put(format!("{}.weight", names.positions), "position_embd.weight".into(), None, Fix::Keep);
    }
    put(format!("{}.weight", names.final_norm), "output_norm.weight".into(), None, norm);
    if spec.norm == NormKind::Layer(Bias::Present) {
        put(format!("{}.bias", names.final_norm), "output_norm.bias".into(), None, Fix::Keep);
    }
    put(format!("{}.weight", names.head), "output.weight".into(), None, Fix::Keep);
    if spec.head_bias == Bias::Present {
        put(format!("{}.bias", names.head), "output.bias".into(), None, Fix::Keep);
    }
    for l in 0..spec.layers {
        for of_layer in spec.norms() {
            let Some(tensor) = of_module(spec, family, of_layer.module) else { continue };
            let modules = of_layer.files().0;
            let parts = modules.len();
            for (i, module) in modules.iter().enumerate() {
                let part = (parts > 1).then_some((i, parts));
                put(format!("{}.weight", names.of(l, module)), format!("blk.{l}.{tensor}.weight"), part, norm);
            }
            if of_layer.bias == Bias::Present {
                put(format!("{}.bias", names.of(l, &modules[0])), format!("blk.{l}.{tensor}.bias"), None, Fix::Keep);
            }
        }
        for linear in spec.linears(l) {
            let Some(tensor) = of_module(spec, family, linear.module) else { continue };
            let heads = [(names.q, spec.H), (names.k, spec.K)].into_iter().find(|(name, _)| *name == linear.module);
            let layout = spec.layout_of(linear.module);
            let (weight, bias) = match heads.filter(|_| moved) {
                Some((_, heads)) => (Fix::Interleaved { heads }, Fix::Interleaved { heads }),
                None => (rows(layout), rows(layout.of_rows())),
            };
            let module = names.of(l, linear.module);
            if let Some(shares) = spec.latent.as_ref().and_then(|latent| latent_shares(spec, latent, linear.module))
                && !there(&format!("blk.{l}.{tensor}.weight"))
            {
                for (tensor, share) in shares {
                    put(format!("{module}.weight"), format!("blk.{l}.{tensor}.weight"), None, Fix::Share(share));
                }
                continue;
            }
            put(format!("{module}.weight"), format!("blk.{l}.{tensor}.weight"), None, weight);
            if linear.bias == Bias::Present {
                put(format!("{module}.bias"), format!("blk.{l}.{tensor}.bias"), None, bias);
            }
        }
        if spec.sinks == Sinks::PerHead {
            put(names.of(l, names.sinks), format!("blk.{l}.attn_sinks.weight"), None, Fix::Keep);
        }
        if let Some(bias) = spec.choice_bias(l) {
            put(names.of(l, bias), format!("blk.{l}.exp_probs_b.bias"), None, Fix::Keep);
        }
        for linear in spec.experts(l) {
            if spec.moe.as_ref().is_some_and(|moe| moe.files == ExpertFiles::Stacked) {
                for (name, tensor, share) in stacked(spec, l, &linear) {
                    put(name, tensor, None, Fix::Share(share));
                }
                continue;
            }
            let Some(module) = of_module(spec, family, linear.module) else { continue };
            let stacked = format!("blk.{l}.{module}_exps.weight");
            let modules = spec.expert_names(l, linear.module);
            let E = modules.len();
            for (e, name) in modules.into_iter().enumerate() {
                // files from before 2024 hold the experts one by one
                let (tensor, part) = match there(&stacked) {
                    false if there(&format!("blk.{l}.{module}.{e}.weight")) => {
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

/// The two tensors of k and v out of their narrow row.
fn latent_shares(spec: &Spec, latent: &LatentSpec, module: &str) -> Option<[(&'static str, Share); 2]> {
    let (H, U, Y) = (spec.H, latent.U, latent.Y);
    let both = [("attn_k_b", Share::Keys { H, U, Y }), ("attn_v_b", Share::Values { H, U, Y })];
    (module == latent.names.kv_b).then_some(both)
}

/// Weights, tensors and shares of a module of a layer's experts that the folder has in one tensor: of gate and up there are two.
fn stacked(spec: &Spec, l: usize, linear: &LinearSpec) -> Vec<(String, String, Share)> {
    let Some(moe) = &spec.moe else { return Vec::new() };
    let modules: &[&str] = if linear.module == moe.down { &["ffn_down"] } else { &["ffn_gate", "ffn_up"] };
    let (name, step) = (spec.names.of(l, linear.module), modules.len());
    let one = |(first, module): (usize, &&str)| {
        let (tensor, weight) = (format!("blk.{l}.{module}_exps"), Share::Experts { first, step });
        let bias = (format!("{name}_bias"), format!("{tensor}.bias"), Share::Biases { first, step });
        let bias = (linear.bias == Bias::Present).then_some(bias);
        [(name.clone(), format!("{tensor}.weight"), weight)].into_iter().chain(bias)
    };
    modules.iter().enumerate().flat_map(one).collect()
}

fn rows(layout: Layout) -> Fix {
    if layout == Layout::Rows { Fix::Keep } else { Fix::Rows(layout) }
}

/// What GGUF calls a module of a layer, if it has a name for it.
fn of_module(spec: &Spec, family: Option<&Family>, module: &str) -> Option<&'static str> {
    let n = &spec.names;
    let known = [
        (n.attention_norm, "attn_norm"),
        (n.mlp_norm, family.map_or("ffn_norm", |family| family.mlp_norm)),
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
    let of_latent = spec.latent.iter().flat_map(|latent| {
        let n = &latent.names;
        [
            (n.q_a, "attn_q_a"),
            (n.q_a_norm, "attn_q_a_norm"),
            (n.q_b, "attn_q_b"),
            (n.kv_a, "attn_kv_a_mqa"),
            (n.kv_a_norm, "attn_kv_a_norm"),
            // of older files; newer ones have its two shares
            (n.kv_b, "attn_kv_b"),
        ]
    });
    let of_experts = spec.moe.iter().flat_map(|moe| {
        [(moe.router, "ffn_gate_inp"), (moe.gate, "ffn_gate"), (moe.up, "ffn_up"), (moe.down, "ffn_down")]
    });
    let shared = spec.moe.iter().filter_map(|moe| moe.shared.as_ref()).flat_map(|shared| {
        let weighed = match shared.weighed {
            super::super::spec::Weighed::Sigmoid { by } => by,
            super::super::spec::Weighed::Plain => "",
        };
        [
            (shared.gate, "ffn_gate_shexp"),
            (shared.up, "ffn_up_shexp"),
            (shared.down, "ffn_down_shexp"),
            (weighed, "ffn_gate_inp_shexp"),
        ]
    });
    // norms after branches alone have the names that others use for the MLP's norm
    let applies = |(name, tensor): &(&str, &str)| {
        *name == module && (spec.norm_place.before() || !["attn_norm", "ffn_norm"].contains(tensor))
    };
    known.into_iter().chain(of_latent).chain(of_experts).chain(shared).find(applies).map(|(_, tensor)| tensor)
}

/// Rows of heads whose RoPE pairs are neighbours, as rows whose pairs lie half a head apart: row 2j + s of a head becomes
/// row s·D/2 + j.
pub(super) fn in_halves<T: Copy>(values: &[T], rows: usize, heads: usize) -> Vec<T> {
    let half = rows / heads / 2;
    moved(values, rows, heads, |i| i % half * 2 + i / half)
}

/// The reverse.
pub(super) fn in_neighbours<T: Copy>(values: &[T], rows: usize, heads: usize) -> Vec<T> {
    let half = rows / heads / 2;
    moved(values, rows, heads, |i| i % 2 * half + i / 2)
}

/// In each head, row i from row `from(i)`.
fn moved<T: Copy>(values: &[T], rows: usize, heads: usize, from: impl Fn(usize) -> usize) -> Vec<T> {
    let (row, D) = (values.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks(D * row) {
        (0..D).for_each(|i| out.extend_from_slice(&head[from(i) * row..][..row]));
    }
    out
}

impl Fix {
    /// The values of a Hugging Face tensor of this shape as a GGUF file has them.
    pub fn to_gguf(self, values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match self {
            Fix::Keep => values,
            Fix::Interleaved { heads } => in_neighbours(&values, shape[0], heads),
            Fix::PlusOne => values.iter().map(|x| x + 1.0).collect(),
            Fix::Rows(layout) => layout.to_device(&values, matrix(shape), 1),
            Fix::Share(share) => share.taken(&values, shape),
        }
    }
    /// The reverse, of a whole weight.
    pub fn to_folder(self, values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match self {
            Fix::Keep => values,
            Fix::Interleaved { heads } => in_halves(&values, shape[0], heads),
            Fix::PlusOne => values.iter().map(|x| x - 1.0).collect(),
            Fix::Rows(layout) => layout.to_file(&values, matrix(shape), 1),
            Fix::Share(share) => {
                let mut all = vec![0.0; shape.iter().product()];
                share.put(&mut all, shape, &values);
                all
            }
        }
    }
    /// The shape there.
    pub fn shape(self, shape: &[usize]) -> Vec<usize> {
        match (self, shape) {
            (Fix::Rows(layout), [rows, cols]) => layout.turned([*rows, *cols]).to_vec(),
            (Fix::Share(share), shape) => share.shape(shape),
            _ => shape.to_vec(),
        }
    }
}

pub(super) fn matrix(shape: &[usize]) -> [usize; 2] {
    let cols = if shape.len() == 1 { 1 } else { shape.last().copied().unwrap_or(1) };
    [shape.iter().product::<usize>() / cols.max(1), cols]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_neighbours_become_halves_and_back() {
        let rows: Vec<u8> = (0..16).collect();
        let halves = in_halves(&rows, 8, 2);
        assert_eq!(halves, [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
        assert_eq!(in_neighbours(&halves, 8, 2), rows);
    }
}
