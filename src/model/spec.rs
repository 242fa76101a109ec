//! A decoder as data: what an architecture's config says, in terms the layers understand.
use super::rope::{Reach, Rope};

mod latent;
pub use latent::{LatentNames, LatentSpec, NarrowSpec};

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
    pub max_positions: usize,
    /// Standard deviation of freshly made weights.
    pub initializer_range: f32,
    pub names: Names,
}

/// What may differ between the attentions of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerKind {
    /// A token sees so many tokens back, itself included; `None`: all.
    pub window: Option<usize>,
    /// `None`: no positions.
    pub rope: Option<Rope>,
}

/// Which two channels of a head RoPE turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// d and d + A/2.
    Halves,
    /// 2d and 2d + 1.
    Interleaved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    Absent,
    Present,
}

/// How a norm's factor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormWeight {
    Factor,
    /// As factor − 1.
    FromOne,
}

impl NormWeight {
    /// What the op adds to the stored weight.
    pub fn shift(self) -> f32 {
        if self == NormWeight::FromOne { 1.0 } else { 0.0 }
    }
}

/// The norms of attention and MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// On their input.
    Before,
    /// And on their output, before it is added to the residual stream.
    BeforeAndAfter,
    /// On their output alone.
    After,
}

impl NormPlace {
    pub fn before(self) -> bool {
        self != NormPlace::After
    }
    pub fn after(self) -> bool {
        self != NormPlace::Before
    }
}

/// A norm of q and of k, before RoPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    Absent,
    /// Each head by itself, all with one weight [D].
    PerHead,
    /// All heads as one row.
    Whole,
}

impl QkNorm {
    /// (rows, length of a row) of a norm of N tokens' `heads`.
    pub fn shape(self, N: usize, heads: usize, D: usize) -> (usize, usize) {
        if self == QkNorm::Whole { (N, heads * D) } else { (N * heads, D) }
    }
}

/// A learned score of each head that takes its share of the softmax and gives no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sinks {
    Absent,
    PerHead,
}

/// Of the MLP's gate: x·σ(x·(slope + cubic·x²)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// `gelu_pytorch_tanh`
    GeluTanh,
}

impl Activation {
    /// (slope, cubic)
    pub fn coefficients(self) -> (f32, f32) {
        let gelu = (8.0 / std::f64::consts::PI).sqrt();
        match self {
            Activation::Silu => (1.0, 0.0),
            Activation::GeluTanh => (gelu as f32, (gelu * 0.044715) as f32),
        }
    }
}

/// What follows attention in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    Dense,
    Moe,
}

/// Which experts there are and how a token chooses.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// Experts.
    pub E: usize,
    /// Hidden channels of one.
    pub F: usize,
    /// Experts of a token (num_experts_per_tok).
    pub S: usize,
    pub scores: Scores,
    pub weights: RouterWeights,
    /// The router's module within the layer; its weight is [E, C].
    pub router: &'static str,
    pub router_bias: Bias,
    pub unit: GatedUnit,
    pub files: ExpertFiles,
    /// Modules of the experts, where `{}` is the expert's number.
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    /// An MLP that every token goes through, besides.
    pub shared: Option<SharedSpec>,
}

/// What an expert makes of gate and up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GatedUnit {
    /// silu(gate)·up.
    SwiGlu,
    /// g·σ(alpha·g)·(u + 1), with g = gate up to `limit` and u = up within ± `limit`. Gate and up are one module, their channels
    /// in turn.
    Clamped { alpha: f32, limit: f32 },
}

/// How files hold the experts, as modules or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertFiles {
    /// A module each, `<module>.weight` [O, C], where `{}` is the expert's number.
    Modules,
    /// One tensor for all, `<module>` [E, C, O], and `<module>_bias` [E, O].
    Stacked,
}

/// What a token's choice goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scores {
    Softmax,
    /// Sigmoids, and with a bias only for the choice: the best experts of the `kept` best of `groups` groups.
    Sigmoid {
        groups: usize,
        kept: usize,
        /// What the weights are multiplied by.
        scale: f32,
        /// The bias's name within the layer, a frozen f32 [E].
        bias: &'static str,
    },
}

/// What the output of shared experts is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighed {
    Plain,
    /// σ of this module's one output.
    Sigmoid {
        by: &'static str,
    },
}

/// The experts that all tokens share, as one gated MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedSpec {
    pub F: usize,
    pub weighed: Weighed,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

/// What the chosen experts count: their scores among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterWeights {
    Plain,
    /// Divided by their sum.
    Renormalised,
}

/// Where the output projection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// A weight of its own.
    Own,
    /// The embedding's weight (`tie_word_embeddings`).
    Tied,
}

/// What an architecture calls its modules; weights are `<module>.weight` and `<module>.bias`. Where q, k and v (gate and up)
/// have one name they are one module, their rows in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Names {
    pub embed: &'static str,
    /// `{}` is the layer's number.
    pub layer: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    /// Norms of inputs; not read with [`NormPlace::After`].
    pub attention_norm: &'static str,
    pub mlp_norm: &'static str,
    /// Norms of outputs; not read with [`NormPlace::Before`].
    pub attention_post_norm: &'static str,
    pub mlp_post_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    /// Not read with [`QkNorm::Absent`].
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    /// A weight's own name; read with [`Sinks::PerHead`] only.
    pub sinks: &'static str,
    pub o: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

impl Names {
    /// A module of a layer: `model.layers.3.self_attn.q_proj`.
    pub fn of(&self, layer: usize, module: &str) -> String {
        format!("{}.{module}", self.layer.replace("{}", &layer.to_string()))
    }
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
    /// The modules that make gate and up: two, or one.
    pub fn gate_up(&self) -> Vec<LinearSpec> {
        self.gated([self.names.gate, self.names.up], self.F, self.mlp_bias)
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

    /// The norms of a block: name within the layer and length.
    pub fn norms(&self) -> Vec<(&'static str, usize)> {
        let (n, C) = (&self.names, self.C);
        let mut all = Vec::new();
        if self.norm_place.before() {
            all.extend([(n.attention_norm, C), (n.mlp_norm, C)]);
        }
        if self.norm_place.after() {
            all.extend([(n.attention_post_norm, C), (n.mlp_post_norm, C)]);
        }
        if self.qk_norm != QkNorm::Absent {
            let length = |heads| self.qk_norm.shape(1, heads, self.D).1;
            all.extend([(n.q_norm, length(self.H)), (n.k_norm, length(self.K))]);
        }
        all.extend(self.latent.iter().flat_map(|latent| latent.norms(self)));
        all
    }

    /// Every weight a checkpoint of this model has, in the order of the forward pass.
    pub fn weights(&self) -> Vec<WeightSpec> {
        let weight =
            |module: String, shape: &[usize]| WeightSpec { name: format!("{module}.weight"), shape: shape.to_vec() };
        let mut all = vec![weight(self.names.embed.into(), &[self.V, self.C])];
        for l in 0..self.layers {
            for (norm, len) in self.norms() {
                all.push(weight(self.names.of(l, norm), &[len]));
            }
            if self.sinks == Sinks::PerHead {
                all.push(WeightSpec { name: self.names.of(l, self.names.sinks), shape: vec![self.H] });
            }
            for linear in self.linears(l) {
                let module = self.names.of(l, linear.module);
                all.push(weight(module.clone(), &[linear.O(), linear.C]));
                if linear.bias == Bias::Present {
                    all.push(WeightSpec { name: format!("{module}.bias"), shape: vec![linear.O()] });
                }
            }
            let E = self.moe.as_ref().map_or(0, |moe| moe.E);
            let bias = self.choice_bias(l).map(|bias| WeightSpec { name: self.names.of(l, bias), shape: vec![E] });
            all.extend(bias);
            all.extend(self.experts(l).iter().flat_map(|linear| self.expert_weights(l, linear)));
        }
        all.push(weight(self.names.final_norm.into(), &[self.C]));
        if self.head == Head::Own {
            all.push(weight(self.names.head.into(), &[self.V, self.C]));
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
