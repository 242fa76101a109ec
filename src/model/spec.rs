//! A decoder as data: what an architecture's config says, in terms the layers understand.
use super::rope::{Reach, Rope};

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
    pub norm_weight: NormWeight,
    pub norm_place: NormPlace,
    pub qk_norm: QkNorm,
    pub sinks: Sinks,
    pub activation: Activation,
    /// Of q·k.
    pub attention_scale: f32,
    /// The embedding's output is multiplied by it, rounded to the model's dtype.
    pub embed_scale: f32,
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
    pub rope: Rope,
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
}

/// A norm of each head's q and k, before RoPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    Absent,
    PerHead,
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

/// Which experts there are and how a token chooses.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// Experts.
    pub E: usize,
    /// Experts of a token (num_experts_per_tok).
    pub S: usize,
    pub weights: RouterWeights,
    /// The router's module within the layer; its weight is [E, C].
    pub router: &'static str,
    pub router_bias: Bias,
    pub unit: GatedUnit,
    pub files: ExpertFiles,
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

/// How files hold the experts, whose modules are gate, up and down of the [`Names`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertFiles {
    /// A module each, `<module>.weight` [O, C], where `{}` is the expert's number.
    Modules,
    /// One tensor for all, `<module>` [E, C, O], and `<module>_bias` [E, O].
    Stacked,
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
    pub final_norm: &'static str,
    pub head: &'static str,
    pub attention_norm: &'static str,
    /// Norms of outputs; read with [`NormPlace::BeforeAndAfter`] only.
    pub attention_post_norm: &'static str,
    pub mlp_norm: &'static str,
    pub mlp_post_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    /// Read with [`QkNorm::PerHead`] only.
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
        self.kinds
            .iter()
            .any(|kind| T > 0 && kind.rope.reach(T) == Reach::Long && kind.rope.reach(T - 1) != Reach::Long)
    }
    /// The modules that make q, k and v: three, or one.
    pub fn qkv(&self) -> Vec<LinearSpec> {
        let (n, kv) = (&self.names, self.K * self.D);
        fused(&[(n.q, self.H * self.D), (n.k, kv), (n.v, kv)], self.C, self.qkv_bias)
    }
    pub fn o(&self) -> LinearSpec {
        LinearSpec { module: self.names.o, parts: vec![self.C], C: self.H * self.D, bias: self.o_bias }
    }
    /// The modules that make gate and up: two, or one. Of an expert where there are experts.
    pub fn gate_up(&self) -> Vec<LinearSpec> {
        fused(&[(self.names.gate, self.F), (self.names.up, self.F)], self.C, self.mlp_bias)
    }
    pub fn down(&self) -> LinearSpec {
        LinearSpec { module: self.names.down, parts: vec![self.C], C: self.F, bias: self.mlp_bias }
    }
    /// What chooses experts, if there are any.
    pub fn router(&self) -> Option<LinearSpec> {
        let linear =
            |moe: &MoeSpec| LinearSpec { module: moe.router, parts: vec![moe.E], C: self.C, bias: moe.router_bias };
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
    /// Gate, up and down of the experts, those of one name together; none where there are no experts.
    pub fn experts(&self) -> Vec<LinearSpec> {
        if self.moe.is_some() { [self.gate_up(), vec![self.down()]].concat() } else { Vec::new() }
    }
    /// A module of a layer's experts, for all of them: `model.layers.0.mlp.experts.3.gate_proj`. Where they are stacked, E times
    /// the stack's name.
    pub fn expert_names(&self, layer: usize, module: &str) -> Vec<String> {
        let E = self.moe.as_ref().map_or(0, |moe| moe.E);
        (0..E).map(|e| self.names.of(layer, &module.replace("{}", &e.to_string()))).collect()
    }

    /// The norms of a block: name within the layer and length.
    pub fn norms(&self) -> Vec<(&'static str, usize)> {
        let (n, C) = (&self.names, self.C);
        let mut all = vec![(n.attention_norm, C), (n.mlp_norm, C)];
        if self.norm_place == NormPlace::BeforeAndAfter {
            all.extend([(n.attention_post_norm, C), (n.mlp_post_norm, C)]);
        }
        if self.qk_norm == QkNorm::PerHead {
            all.extend([(n.q_norm, self.D), (n.k_norm, self.D)]);
        }
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
            for linear in self.linears() {
                let module = self.names.of(l, linear.module);
                all.push(weight(module.clone(), &[linear.O(), linear.C]));
                if linear.bias == Bias::Present {
                    all.push(WeightSpec { name: format!("{module}.bias"), shape: vec![linear.O()] });
                }
            }
            all.extend(self.experts().iter().flat_map(|linear| self.expert_weights(l, linear)));
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
