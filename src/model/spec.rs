//! A decoder as data: what an architecture's config says, in terms the layers understand.
use super::layout::Layout;
use super::rope::{Reach, Rope};

mod latent;
mod mechanisms;
mod moe;
mod names;
pub use latent::{LatentNames, LatentSpec, NarrowSpec};
pub use mechanisms::*;
pub use moe::*;
pub use names::Names;

/// Sizes and mechanisms of a decoder. Letters are the dims of the op table.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// `model_type` of the Hugging Face config.
    pub model_type: String,
    pub layers: usize,
    /// hidden_size
    pub C: usize,
    /// intermediate_size
    pub F: usize,
    /// num_attention_heads
    pub H: usize,
    /// num_key_value_heads
    pub K: usize,
    /// head_dim; of latent attention the larger of q's and v's, even.
    pub D: usize,
    /// Channels of a head that RoPE turns: head_dim·partial_rotary_factor.
    pub A: usize,
    pub rope_pairs: RopePairs,
    /// vocab_size
    pub V: usize,
    /// rms_norm_eps
    pub eps: f32,
    /// The kinds of layers there are, and which kind each layer is.
    pub kinds: Vec<LayerKind>,
    pub kind_of: Vec<usize>,
    /// q, k, v have a bias.
    pub qkv_bias: Bias,
    /// o has a bias.
    pub o_bias: Bias,
    /// gate, up, down have a bias.
    pub mlp_bias: Bias,
    /// q, k and v come out of narrow rows; K is then H.
    pub latent: Option<LatentSpec>,
    /// Mixtures of experts in the place of MLPs.
    pub moe: Option<MoeSpec>,
    /// The layers that have an MLP all the same.
    pub dense_layers: Vec<usize>,
    /// Layers after the last, which checkpoints may hold and nothing here reads: they predict further tokens.
    pub ignored_layers: usize,
    pub norm: NormKind,
    pub residual: ResidualKind,
    pub gating: Gating,
    pub norm_weight: NormWeight,
    pub norm_place: NormPlace,
    pub qk_norm: QkNorm,
    pub sinks: Sinks,
    pub activation: Activation,
    /// Of q·k.
    pub attention_scale: f32,
    /// The embedding's output is multiplied by it, rounded to the model's dtype.
    pub embed_scale: f32,
    /// What attention and MLP add to the residual stream is multiplied by it.
    pub residual_scale: f32,
    /// Logits are multiplied by it, before the cap.
    pub logit_scale: f32,
    /// Scores and logits stay within ± it; 0: no cap.
    pub attention_softcap: f32,
    pub logit_softcap: f32,
    pub head: Head,
    /// The head has a bias.
    pub head_bias: Bias,
    pub max_positions: usize,
    pub positions: Positions,
    pub layout: WeightLayout,
    /// Standard deviation of freshly made weights.
    pub initializer_range: f32,
    pub names: Names,
}

/// Where the output projection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// A weight of its own.
    Own,
    /// The embedding's weight (`tie_word_embeddings`).
    Tied,
}

/// A named weight of the checkpoint and its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSpec {
    pub name: String,
    pub shape: Vec<usize>,
}

/// A linear module of a block.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearSpec {
    /// Its name within the layer.
    pub module: &'static str,
    /// Output channels of each projection in it: one, or several that are fused.
    pub parts: Vec<usize>,
    /// Input channels.
    pub C: usize,
    pub bias: Bias,
}

/// A norm of a block.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Its name within the layer.
    pub module: &'static str,
    pub shape: Vec<usize>,
    pub bias: Bias,
}

impl NormSpec {
    /// The modules it is in files, and the shape of each.
    pub fn files(&self) -> (Vec<String>, &[usize]) {
        match self.module.contains("{}") {
            true => ((0..self.shape[0]).map(|h| self.module.replace("{}", &h.to_string())).collect(), &self.shape[1..]),
            false => (vec![self.module.into()], &self.shape),
        }
    }
}

impl LinearSpec {
    /// Output channels in all.
    pub fn O(&self) -> usize {
        self.parts.iter().sum()
    }
}

/// Projections of one input, those of one name together.
fn fused(projections: &[(&'static str, usize)], C: usize, bias: Bias) -> Vec<LinearSpec> {
    let runs = projections.chunk_by(|a, b| a.0 == b.0);
    runs.map(|run| LinearSpec { module: run[0].0, parts: run.iter().map(|p| p.1).collect(), C, bias }).collect()
}

impl Spec {
    /// Whether a sequence of T tokens is the first to be too long for the angles of shorter ones.
    pub fn rope_turns_at(&self, T: usize) -> bool {
        let long = |rope: &Rope, T| rope.reach(T) == Reach::Long;
        T > 0 && self.kinds.iter().filter_map(|kind| kind.rope.as_ref()).any(|rope| long(rope, T) && !long(rope, T - 1))
    }
    /// Whether the angles of a sequence of T tokens are those of all shorter ones.
    pub fn rope_is_short(&self, T: usize) -> bool {
        self.kinds.iter().filter_map(|kind| kind.rope.as_ref()).all(|rope| rope.reach(T) == Reach::Short)
    }
    /// What follows attention in a layer.
    pub fn mlp(&self, layer: usize) -> MlpKind {
        if self.moe.is_some() && !self.dense_layers.contains(&layer) { MlpKind::Moe } else { MlpKind::Dense }
    }
    /// What follows attention in any layer.
    pub fn mlps(&self) -> Vec<MlpKind> {
        let all = [MlpKind::Dense, MlpKind::Moe];
        all.into_iter().filter(|kind| (0..self.layers).any(|l| self.mlp(l) == *kind)).collect()
    }
    /// The modules that make q, k and v: three, or one. Not of latent attention.
    pub fn qkv(&self) -> Vec<LinearSpec> {
        let (n, kv) = (&self.names, self.K * self.D);
        fused(&[(n.q, self.H * self.D), (n.k, kv), (n.v, kv)], self.C, self.qkv_bias)
    }
    pub fn o(&self) -> LinearSpec {
        let values = self.latent.as_ref().map_or(self.D, |latent| latent.Y);
        LinearSpec { module: self.names.o, parts: vec![self.C], C: self.H * values, bias: self.o_bias }
    }
    /// The modules that make gate and up: two, or one; without a gate, up alone.
    pub fn gate_up(&self) -> Vec<LinearSpec> {
        match self.gating {
            Gating::Gated => self.gated([self.names.gate, self.names.up], self.F, self.mlp_bias),
            Gating::Plain => fused(&[(self.names.up, self.F)], self.C, self.mlp_bias),
        }
    }
    pub fn down(&self) -> LinearSpec {
        LinearSpec { module: self.names.down, parts: vec![self.C], C: self.F, bias: self.mlp_bias }
    }
    fn gated(&self, [gate, up]: [&'static str; 2], F: usize, bias: Bias) -> Vec<LinearSpec> {
        fused(&[(gate, F), (up, F)], self.C, bias)
    }
    /// Gate and up, down, and what weighs them, of what all tokens share beside the experts, if there is such.
    pub fn shared(&self) -> Option<(Vec<LinearSpec>, LinearSpec, Option<LinearSpec>)> {
        let shared = self.moe.as_ref()?.shared.as_ref()?;
        let linear = |module, O, C| LinearSpec { module, parts: vec![O], C, bias: Bias::Absent };
        let weigh = match shared.weighed {
            Weighed::Plain => None,
            Weighed::Sigmoid { by } => Some(linear(by, 1, self.C)),
        };
        let gate_up = self.gated([shared.gate, shared.up], shared.F, Bias::Absent);
        Some((gate_up, linear(shared.down, self.C, shared.F), weigh))
    }
    /// What chooses experts, if there are any.
    pub fn router(&self) -> Option<LinearSpec> {
        let linear =
            |moe: &MoeSpec| LinearSpec { module: moe.router, parts: vec![moe.E], C: self.C, bias: moe.router_bias };
        self.moe.as_ref().map(linear)
    }
    /// The linear modules of a layer, those of experts not counted.
    pub fn linears(&self, layer: usize) -> Vec<LinearSpec> {
        let attention = self.latent.as_ref().map_or_else(|| self.qkv(), |latent| latent.linears(self));
        let mlp = match self.mlp(layer) {
            MlpKind::Dense => [self.gate_up(), vec![self.down()]].concat(),
            MlpKind::Moe => {
                let all =
                    |(gate_up, down, weigh): (Vec<_>, _, Option<_>)| gate_up.into_iter().chain([down]).chain(weigh);
                self.router().into_iter().chain(self.shared().into_iter().flat_map(all)).collect()
            }
        };
        [attention, vec![self.o()], mlp].concat()
    }
    /// Gate and up, those of one name together, and down of an expert, if there are experts.
    pub fn expert(&self) -> Option<(Vec<LinearSpec>, LinearSpec)> {
        let moe = self.moe.as_ref()?;
        let down = LinearSpec { module: moe.down, parts: vec![self.C], C: moe.F, bias: self.mlp_bias };
        Some((self.gated([moe.gate, moe.up], moe.F, self.mlp_bias), down))
    }
    /// Both of a layer's experts; none where it has none.
    pub fn experts(&self, layer: usize) -> Vec<LinearSpec> {
        let experts = self.expert().filter(|_| self.mlp(layer) == MlpKind::Moe);
        experts.map_or(Vec::new(), |(gate_up, down)| [gate_up, vec![down]].concat())
    }
    /// A module of a layer's experts, for all of them: `model.layers.0.mlp.experts.3.gate_proj`. Where they are stacked, E times
    /// the stack's name.
    pub fn expert_names(&self, layer: usize, module: &str) -> Vec<String> {
        let E = self.moe.as_ref().map_or(0, |moe| moe.E);
        (0..E).map(|e| self.names.of(layer, &module.replace("{}", &e.to_string()))).collect()
    }
    /// The bias of a layer's choice among experts, if it has one: its name within the layer.
    pub fn choice_bias(&self, layer: usize) -> Option<&'static str> {
        match self.moe.as_ref().filter(|_| self.mlp(layer) == MlpKind::Moe)?.scores {
            Scores::Sigmoid { bias, .. } => Some(bias),
            Scores::Softmax => None,
        }
    }

    /// That of the heads of q and k; theirs have no bias where each has a weight of its own.
    pub fn head_norm(&self) -> NormKind {
        match (self.qk_norm, self.norm) {
            (QkNorm::EachHead, _) => NormKind::Layer(Bias::Absent),
            (_, kind) => kind,
        }
    }

    /// The norms of a block.
    pub fn norms(&self) -> Vec<NormSpec> {
        let n = &self.names;
        let norm = |module, shape: &[usize], kind| {
            let bias = if kind == NormKind::Layer(Bias::Present) { Bias::Present } else { Bias::Absent };
            NormSpec { module, shape: shape.to_vec(), bias }
        };
        let row = |module| norm(module, &[self.C], self.norm);
        let mut all = Vec::new();
        if self.norm_place.before() {
            all.push(row(n.attention_norm));
            if self.residual != ResidualKind::ParallelShared {
                all.push(row(n.mlp_norm));
            }
        }
        if self.norm_place.after() {
            all.extend([row(n.attention_post_norm), row(n.mlp_post_norm)]);
        }
        for (module, heads) in [(n.q_norm, self.H), (n.k_norm, self.K)] {
            match self.qk_norm {
                QkNorm::Absent => {}
                QkNorm::EachHead => all.push(norm(module, &[heads, self.D], self.head_norm())),
                _ => all.push(norm(module, &[self.qk_norm.shape(1, heads, self.D).1], self.head_norm())),
            }
        }
        let narrow = self.latent.iter().flat_map(|latent| latent.norms(self));
        all.extend(narrow.map(|(module, len)| norm(module, &[len], self.norm)));
        all
    }

    /// How the file orders a linear layer's weight.
    pub fn layout_of(&self, module: &str) -> Layout {
        match self.layout {
            WeightLayout::Conv1d => Layout::Transposed,
            WeightLayout::PerHead if module == self.names.q => Layout::Heads { H: self.H, D: self.D },
            _ => Layout::Rows,
        }
    }

    /// Every weight a checkpoint of this model has, in the order of the forward pass.
    pub fn weights(&self) -> Vec<WeightSpec> {
        let weight =
            |module: String, shape: &[usize]| WeightSpec { name: format!("{module}.weight"), shape: shape.to_vec() };
        let bias = |module: &str, len| WeightSpec { name: format!("{module}.bias"), shape: vec![len] };
        let mut all = vec![weight(self.names.embed.into(), &[self.V, self.C])];
        if self.positions == Positions::Learned {
            all.push(weight(self.names.positions.into(), &[self.max_positions, self.C]));
        }
        for l in 0..self.layers {
            for norm in self.norms() {
                let (modules, shape) = norm.files();
                all.extend(modules.iter().map(|module| weight(self.names.of(l, module), shape)));
                if norm.bias == Bias::Present {
                    all.push(bias(&self.names.of(l, norm.module), shape[0]));
                }
            }
            if self.sinks == Sinks::PerHead {
                all.push(WeightSpec { name: self.names.of(l, self.names.sinks), shape: vec![self.H] });
            }
            for linear in self.linears(l) {
                let module = self.names.of(l, linear.module);
                let shape = self.layout_of(linear.module).turned([linear.O(), linear.C]);
                all.push(weight(module.clone(), &shape));
                if linear.bias == Bias::Present {
                    all.push(bias(&module, linear.O()));
                }
            }
            let E = self.moe.as_ref().map_or(0, |moe| moe.E);
            let bias = self.choice_bias(l).map(|bias| WeightSpec { name: self.names.of(l, bias), shape: vec![E] });
            all.extend(bias);
            all.extend(self.experts(l).iter().flat_map(|linear| self.expert_weights(l, linear)));
        }
        all.push(weight(self.names.final_norm.into(), &[self.C]));
        if self.norm == NormKind::Layer(Bias::Present) {
            all.push(bias(self.names.final_norm, self.C));
        }
        if self.head == Head::Own {
            all.push(weight(self.names.head.into(), &[self.V, self.C]));
        }
        if self.head_bias == Bias::Present {
            all.push(bias(self.names.head, self.V));
        }
        all
    }

    /// The weights of one module of all experts of a layer.
    fn expert_weights(&self, layer: usize, linear: &LinearSpec) -> Vec<WeightSpec> {
        let Some(moe) = &self.moe else { return Vec::new() };
        let (O, C) = (linear.O(), linear.C);
        if moe.files == ExpertFiles::Modules {
            let weight = |name| WeightSpec { name: format!("{name}.weight"), shape: vec![O, C] };
            return self.expert_names(layer, linear.module).into_iter().map(weight).collect();
        }
        let name = self.names.of(layer, linear.module);
        let mut all = vec![WeightSpec { name: name.clone(), shape: vec![moe.E, C, O] }];
        if linear.bias == Bias::Present {
            all.push(WeightSpec { name: format!("{name}_bias"), shape: vec![moe.E, O] });
        }
        all
    }

    pub fn parameters(&self) -> u64 {
        self.weights().iter().map(|w| w.shape.iter().product::<usize>() as u64).sum()
    }
}
