//! A model's spec as the metadata of a GGUF file: the reverse of `config`.
use super::config::{LONG, SHORT};
use super::families::{FAMILIES, Family};
use super::names::{Places, places};
use super::{latent, limits};
use crate::error::{Error, Result};
use crate::io::gguf::{Item, Pairs};
use crate::model::rope::{Rope, RopeScaling};
use crate::model::spec::{Positions, RopePairs, Scores, Spec};

/// What a GGUF file says of a model beside its weights.
pub struct Described {
    pub architecture: &'static str,
    pub pairs: Pairs,
    /// Tensors that are no weights, F32.
    pub extra: Vec<(&'static str, Vec<f32>)>,
    /// Where each weight goes.
    pub places: Places,
}

/// What it says of a model of this spec; an error where llama.cpp has no architecture that computes the same.
pub fn describe(spec: &Spec) -> Result<Described> {
    let Some(family) = Family::of_model_type(&spec.model_type) else {
        let known: Vec<_> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        return refuse(spec, &format!("supported: {}", known.join(", ")));
    };
    if family.pairs == RopePairs::Halves && spec.rope_pairs == RopePairs::Interleaved {
        return refuse(spec, "its channels are turned in other pairs");
    }
    if let Some(why) = limits::broken(spec, family) {
        return refuse(spec, why);
    }
    let mut pairs = Keys { architecture: family.architecture, pairs: Vec::new() };
    sizes(spec, family, &mut pairs);
    experts(spec, family, &mut pairs)?;
    windows(spec, &mut pairs);
    scales(spec, family, &mut pairs);
    let extra = rope(spec, family, &mut pairs)?;
    let places = places(spec, Some(family), |_| false);
    Ok(Described { architecture: family.architecture, pairs: pairs.pairs, extra, places })
}

pub(super) fn refuse<T>(spec: &Spec, why: &str) -> Result<T> {
    Err(Error::Usage(format!("{} models of this kind cannot be written as GGUF: {why}", spec.model_type)))
}

pub(super) struct Keys {
    architecture: &'static str,
    pairs: Pairs,
}

impl Keys {
    pub fn put(&mut self, key: &str, item: Item) {
        self.pairs.push((format!("{}.{key}", self.architecture), item));
    }
    pub fn size(&mut self, key: &str, size: usize) {
        self.put(key, Item::U32(size as u32));
    }
    pub fn real(&mut self, key: &str, value: f64) {
        self.put(key, Item::F32(value as f32));
    }
}

fn sizes(spec: &Spec, family: &Family, keys: &mut Keys) {
    keys.size("block_count", spec.layers);
    keys.size("context_length", spec.max_positions);
    keys.size("embedding_length", spec.C);
    keys.size("feed_forward_length", spec.F);
    keys.size("attention.head_count", spec.H);
    match &spec.latent {
        Some(latent) => latent::write_sizes(spec, latent, keys),
        None => {
            keys.size("attention.head_count_kv", spec.K);
            keys.size("attention.key_length", spec.D);
            keys.size("attention.value_length", spec.D);
        }
    }
    keys.size("vocab_size", spec.V);
    keys.real(family.eps.0, spec.eps.into());
    if family.architecture == "gptneox" || family.architecture == "stablelm" {
        let parallel = spec.residual != crate::model::spec::ResidualKind::Sequential;
        keys.put("use_parallel_residual", Item::Bool(parallel));
    }
}

fn experts(spec: &Spec, family: &Family, keys: &mut Keys) -> Result<()> {
    let Some(moe) = &spec.moe else { return Ok(()) };
    if moe.scores == Scores::Softmax && moe.weights != family.router {
        return refuse(spec, "llama.cpp weighs its chosen experts otherwise (norm_topk_prob)");
    }
    keys.size("expert_count", moe.E);
    keys.size("expert_used_count", moe.S);
    keys.size("expert_feed_forward_length", moe.F);
    match &moe.shared {
        Some(shared) if moe.scores == Scores::Softmax => keys.size("expert_shared_feed_forward_length", shared.F),
        _ => latent::write_experts(moe, keys),
    }
    Ok(())
}

/// The window, and which layers have it.
fn windows(spec: &Spec, keys: &mut Keys) {
    let window = |l: usize| spec.kinds[spec.kind_of[l]].window;
    let Some(largest) = (0..spec.layers).filter_map(window).max() else { return };
    keys.size("attention.sliding_window", largest);
    // where a family has windows in every other layer, "in all" must be said, too
    let alternates = keys.architecture == "gpt-oss";
    if alternates || (0..spec.layers).any(|l| window(l).is_none()) {
        let slides = (0..spec.layers).map(|l| window(l).is_some()).collect();
        keys.put("attention.sliding_window_pattern", Item::Bools(slides));
    }
}

fn scales(spec: &Spec, family: &Family, keys: &mut Keys) {
    if family.architecture == "granite" {
        keys.real("attention.scale", spec.attention_scale.into());
        keys.real("embedding_scale", spec.embed_scale.into());
        keys.real("residual_scale", spec.residual_scale.into());
        // llama.cpp divides by it
        keys.real("logit_scale", 1.0 / f64::from(spec.logit_scale));
    }
    if ["command-r", "cohere2"].contains(&family.architecture) {
        keys.real("logit_scale", spec.logit_scale.into());
    }
    if family.architecture == "gemma2" {
        keys.real("attn_logit_softcapping", spec.attention_softcap.into());
    }
    if ["gemma2", "gemma3"].contains(&family.architecture) {
        keys.real("final_logit_softcapping", spec.logit_softcap.into());
    }
}

/// RoPE of the layers without a window, and its theta where layers with one have another; factors of its pairs are tensors.
fn rope(spec: &Spec, family: &Family, keys: &mut Keys) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let of = |window: bool| spec.kinds.iter().find(|kind| kind.window.is_some() == window);
    let ropes = [of(false), of(true)].map(|kind| kind.and_then(|kind| kind.rope.as_ref()));
    let Some(rope) = ropes[0].or(ropes[1]) else {
        return if spec.positions == Positions::Learned { Ok(Vec::new()) } else { refuse(spec, "it has no RoPE") };
    };
    keys.size("rope.dimension_count", spec.A);
    keys.real("rope.freq_base", rope.theta);
    if family.architecture == "gemma3"
        && let Some(sliding) = ropes[1]
    {
        keys.real("rope.freq_base_swa", sliding.theta);
    }
    if let Some(latent) = &spec.latent {
        latent::write_yarn(spec, latent, rope, keys)?;
    }
    scaling(spec, rope, keys)
}

fn scaling(spec: &Spec, rope: &Rope, keys: &mut Keys) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let kind = |keys: &mut Keys, name: &str| keys.put("rope.scaling.type", Item::Text(name.into()));
    let f32s = |values: &[f64]| values.iter().map(|x| *x as f32).collect::<Vec<f32>>();
    match &rope.scaling {
        RopeScaling::Default => Ok(Vec::new()),
        RopeScaling::Dynamic { .. } => refuse(spec, "RoPE of type dynamic changes with a text's length"),
        RopeScaling::Linear { factor } => {
            kind(keys, "linear");
            keys.real("rope.scaling.factor", *factor);
            Ok(Vec::new())
        }
        RopeScaling::Llama3 { .. } => {
            let plain = Rope { theta: rope.theta, scaling: RopeScaling::Default };
            let freqs = |rope: &Rope| rope.inv_freq(spec.A, crate::model::rope::Reach::Short);
            let factors: Vec<f64> = freqs(&plain).iter().zip(freqs(rope)).map(|(plain, own)| plain / own).collect();
            Ok(vec![("rope_freqs.weight", f32s(&factors))])
        }
        RopeScaling::Yarn(yarn) => {
            kind(keys, "yarn");
            keys.real("rope.scaling.factor", yarn.factor);
            keys.size("rope.scaling.original_context_length", yarn.original as usize);
            keys.real("rope.scaling.yarn_beta_fast", yarn.fast);
            keys.real("rope.scaling.yarn_beta_slow", yarn.slow);
            Ok(Vec::new())
        }
        RopeScaling::LongRope { short, long, original, attention_factor } => {
            kind(keys, "longrope");
            keys.size("rope.scaling.original_context_length", *original);
            keys.real("rope.scaling.attn_factor", *attention_factor);
            Ok(vec![(LONG, f32s(long)), (SHORT, f32s(short))])
        }
    }
}
