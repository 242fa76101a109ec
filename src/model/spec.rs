//! A decoder as data: what an architecture's config says, in terms the layers understand.
use super::layout::Layout;
use super::rope::{Reach, Rope};
use crate::ops::activation;

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
    /// head_dim
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
    /// Mixtures of experts in the place of MLPs; F is then an expert's.
    pub moe: Option<MoeSpec>,
    pub norm: NormKind,
    pub norm_weight: NormWeight,
    pub norm_place: NormPlace,
    pub qk_norm: QkNorm,
    pub residual: ResidualKind,
    pub mlp: MlpKind,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm.
    Rms,
    /// LayerNorm, with or without a bias.
    Layer(Bias),
}

/// What the MLP reads and what its output is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResidualKind {
    /// The stream after attention.
    Sequential,
    /// The stream before attention, through a norm of its own.
    Parallel,
    /// The same through attention's norm.
    ParallelShared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// down(act(gate(x))·up(x))
    Gated,
    /// down(act(up(x)))
    Plain,
}

/// How tokens know where they are, RoPE aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Not otherwise.
    Implicit,
    /// A weight [max_positions, C] is added to the embedding.
    Learned,
}

/// How the file orders the weights of linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// [O, C], parts of a fused module one after the other.
    Rows,
    /// [C, O]: transformers' `Conv1D`.
    Conv1d,
    /// Rows; those of the fused q, k, v head after head.
    PerHead,
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
    /// Each head with a weight of its own: [H, D] in all. Where `{}` in its name is the head's number, each is a tensor.
    EachHead,
}

impl QkNorm {
    /// (rows, length of a row) of a norm of N tokens' `heads`.
    pub fn shape(self, N: usize, heads: usize, D: usize) -> (usize, usize) {
        if self == QkNorm::Whole { (N, heads * D) } else { (N * heads, D) }
    }
}

/// Of the MLP, or of its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// `gelu_pytorch_tanh`, `gelu_new`
    GeluTanh,
    /// Exact: `gelu`
    Gelu,
    /// x·σ(1.702·x)
    QuickGelu,
    Relu,
    /// relu(x)²
    Relu2,
}

impl Activation {
    /// (act, slope, cubic) of the ops.
    pub fn coefficients(self) -> (u32, f32, f32) {
        let gelu = (8.0 / std::f64::consts::PI).sqrt();
        match self {
            Activation::Silu => (activation::SIGMOID, 1.0, 0.0),
            Activation::GeluTanh => (activation::SIGMOID, gelu as f32, (gelu * 0.044715) as f32),
            Activation::QuickGelu => (activation::SIGMOID, 1.702, 0.0),
            Activation::Gelu => (activation::GELU, 0.0, 0.0),
            Activation::Relu => (activation::RELU, 0.0, 0.0),
            Activation::Relu2 => (activation::RELU2, 0.0, 0.0),
        }
    }
}

/// Which experts there are and how a token chooses.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// Experts.
    pub E: usize,
    /// Experts of a token (num_experts_per_tok).
    pub S: usize,
    pub weights: RouterWeights,
    /// The router's module within the layer; its weight is [E, C]. Modules of the experts are gate, up and down of the [`Names`],
    /// where `{}` is the expert's number.
    pub router: &'static str,
}

/// What the chosen experts count: their probabilities among all.
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
    /// Read with [`Positions::Learned`] only.
    pub positions: &'static str,
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
    /// The modules that make q, k and v: three, or one.
    pub fn qkv(&self) -> Vec<LinearSpec> {
        let (n, kv) = (&self.names, self.K * self.D);
        fused(&[(n.q, self.H * self.D), (n.k, kv), (n.v, kv)], self.C, self.qkv_bias)
    }
    pub fn o(&self) -> LinearSpec {
        LinearSpec { module: self.names.o, parts: vec![self.C], C: self.H * self.D, bias: self.o_bias }
    }
    /// The modules that make gate and up: two, or one; without a gate, up alone. Of an expert where there are experts.
    pub fn gate_up(&self) -> Vec<LinearSpec> {
        let (gate, up) = ((self.names.gate, self.F), (self.names.up, self.F));
        match self.mlp {
            MlpKind::Gated => fused(&[gate, up], self.C, self.mlp_bias),
            MlpKind::Plain => fused(&[up], self.C, self.mlp_bias),
        }
    }
    pub fn down(&self) -> LinearSpec {
        LinearSpec { module: self.names.down, parts: vec![self.C], C: self.F, bias: self.mlp_bias }
    }
    /// What chooses experts, if there are any.
    pub fn router(&self) -> Option<LinearSpec> {
        let linear =
            |moe: &MoeSpec| LinearSpec { module: moe.router, parts: vec![moe.E], C: self.C, bias: Bias::Absent };
        self.moe.as_ref().map(linear)
    }
    /// The linear modules of a block, those of experts not counted.
    pub fn linears(&self) -> Vec<LinearSpec> {
        let mlp = match self.router() {
            Some(router) => vec![router],
            None => [self.gate_up(), vec![self.down()]].concat(),
        };
        [self.qkv(), vec![self.o()], mlp].concat()
    }
    /// Gate, up and down of the experts; none where there are no experts.
    pub fn experts(&self) -> Vec<LinearSpec> {
        if self.moe.is_some() { [self.gate_up(), vec![self.down()]].concat() } else { Vec::new() }
    }
    /// A module of a layer's experts, for all of them: `model.layers.0.mlp.experts.3.gate_proj`.
    pub fn expert_names(&self, layer: usize, module: &str) -> Vec<String> {
        let E = self.moe.as_ref().map_or(0, |moe| moe.E);
        (0..E).map(|e| self.names.of(layer, &module.replace("{}", &e.to_string()))).collect()
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
            for linear in self.linears() {
                let module = self.names.of(l, linear.module);
                let shape = self.layout_of(linear.module).turned([linear.O(), linear.C]);
                all.push(weight(module.clone(), &shape));
                if linear.bias == Bias::Present {
                    all.push(bias(&module, linear.O()));
                }
            }
            for linear in self.experts() {
                let names = self.expert_names(l, linear.module);
                all.extend(names.into_iter().map(|name| weight(name, &[linear.O(), linear.C])));
            }
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

    pub fn parameters(&self) -> u64 {
        self.weights().iter().map(|w| w.shape.iter().product::<usize>() as u64).sum()
    }
}
