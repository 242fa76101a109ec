//! A decoder as data: what an architecture's config says, in terms the layers understand.
use super::config::Keys;
use crate::error::Result;

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
    /// vocab_size
    pub V: usize,
    /// rms_norm_eps
    pub eps: f32,
    pub rope: Rope,
    /// q, k, v have a bias.
    pub qkv_bias: Bias,
    /// o has a bias.
    pub o_bias: Bias,
    /// gate, up, down have a bias.
    pub mlp_bias: Bias,
    /// Mixtures of experts in the place of MLPs; F is then an expert's.
    pub moe: Option<MoeSpec>,
    pub head: Head,
    pub max_positions: usize,
    /// Standard deviation of freshly made weights.
    pub initializer_range: f32,
    pub names: Names,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    Absent,
    Present,
}

/// Where the output projection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// A weight of its own.
    Own,
    /// The embedding's weight (`tie_word_embeddings`).
    Tied,
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

impl MoeSpec {
    /// `experts` is the key of their number.
    pub fn read(
        keys: &Keys,
        experts: &str,
        default: usize,
        weights: RouterWeights,
        router: &'static str,
    ) -> Result<MoeSpec> {
        let E = keys.size(experts, Some(default))?;
        let S = keys.size("num_experts_per_tok", Some(2))?;
        if S > E {
            return keys.wrong("num_experts_per_tok", format!("at most {experts} = {E} is wanted, got {S}"));
        }
        Ok(MoeSpec { E, S, weights, router })
    }
}

/// Rotary positions: angle of (position t, pair d) = t·inv_freq[d].
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    Default,
    /// Positions divided by a factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by a factor, high ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
}

impl Rope {
    /// Radians per position of each of the D/2 pairs.
    pub fn inv_freq(&self, D: usize) -> Vec<f64> {
        let plain = (0..D / 2).map(|d| self.theta.powf(-2.0 * d as f64 / D as f64));
        plain.map(|f| self.scaled(f)).collect()
    }

    fn scaled(&self, f: f64) -> f64 {
        match self.scaling {
            RopeScaling::Default => f,
            RopeScaling::Linear { factor } => f / factor,
            RopeScaling::Llama3 { factor, low, high, original } => {
                let turns = original * f / std::f64::consts::TAU;
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - smooth) * f / factor + smooth * f
            }
        }
    }

    /// The op's table: per position cos of the D/2 angles, then sin. Frequencies and angles are rounded to f32, as the models
    /// were trained with: at large positions an exact angle would be another one.
    pub fn table(&self, positions: usize, D: usize) -> Vec<f32> {
        let freq: Vec<f32> = self.inv_freq(D).into_iter().map(|f| f as f32).collect();
        let row = |t: usize| {
            let angles: Vec<f64> = freq.iter().map(|f| (t as f32 * f) as f64).collect();
            let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
            cos.into_iter().chain(angles.into_iter().map(|a| a.sin() as f32))
        };
        (0..positions).flat_map(row).collect()
    }
}

/// What an architecture calls its modules; weights are `<module>.weight` and `<module>.bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Names {
    pub embed: &'static str,
    /// `{}` is the layer's number.
    pub layer: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    pub attention_norm: &'static str,
    pub mlp_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
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

/// One module of the experts: name within the layer (`{}` is the expert's number), output channels, input channels.
pub type ExpertSpec = (&'static str, usize, usize);

impl Spec {
    /// The linear modules of a block, experts not counted: name within the layer, output channels, input channels, bias.
    pub fn linears(&self) -> Vec<(&'static str, usize, usize, Bias)> {
        let (n, q, kv) = (&self.names, self.H * self.D, self.K * self.D);
        let mut all = vec![
            (n.q, q, self.C, self.qkv_bias),
            (n.k, kv, self.C, self.qkv_bias),
            (n.v, kv, self.C, self.qkv_bias),
            (n.o, self.C, q, self.o_bias),
        ];
        match &self.moe {
            Some(moe) => all.push((moe.router, moe.E, self.C, Bias::Absent)),
            None => all.extend([
                (n.gate, self.F, self.C, self.mlp_bias),
                (n.up, self.F, self.C, self.mlp_bias),
                (n.down, self.C, self.F, self.mlp_bias),
            ]),
        }
        all
    }

    /// Gate, up and down of the experts, where there are some.
    pub fn experts(&self) -> Option<[ExpertSpec; 3]> {
        let (n, C, F) = (&self.names, self.C, self.F);
        self.moe.as_ref().map(|_| [(n.gate, F, C), (n.up, F, C), (n.down, C, F)])
    }

    /// The modules of a layer's experts: `model.layers.0.mlp.experts.3.gate_proj`, for all of them.
    pub fn expert_names(&self, layer: usize, module: &str) -> Vec<String> {
        let E = self.moe.as_ref().map_or(0, |moe| moe.E);
        (0..E).map(|e| self.names.of(layer, &module.replace("{}", &e.to_string()))).collect()
    }

    /// Every weight a checkpoint of this model has, in the order of the forward pass.
    pub fn weights(&self) -> Vec<WeightSpec> {
        let weight =
            |module: String, shape: &[usize]| WeightSpec { name: format!("{module}.weight"), shape: shape.to_vec() };
        let mut all = vec![weight(self.names.embed.into(), &[self.V, self.C])];
        for l in 0..self.layers {
            for norm in [self.names.attention_norm, self.names.mlp_norm] {
                all.push(weight(self.names.of(l, norm), &[self.C]));
            }
            for (module, O, C, bias) in self.linears() {
                let module = self.names.of(l, module);
                all.push(weight(module.clone(), &[O, C]));
                if bias == Bias::Present {
                    all.push(WeightSpec { name: format!("{module}.bias"), shape: vec![O] });
                }
            }
            for (module, O, C) in self.experts().into_iter().flatten() {
                all.extend(self.expert_names(l, module).into_iter().map(|name| weight(name, &[O, C])));
            }
        }
        all.push(weight(self.names.final_norm.into(), &[self.C]));
        if self.head == Head::Own {
            all.push(weight(self.names.head.into(), &[self.V, self.C]));
        }
        all
    }

    pub fn parameters(&self) -> u64 {
        self.weights().iter().map(|w| w.shape.iter().product::<usize>() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let plain = Rope { theta: 500000.0, scaling: RopeScaling::Default }.inv_freq(128);
        let scaled = Rope { theta: 500000.0, scaling }.inv_freq(128);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-12);
        assert!(plain.iter().zip(&scaled).all(|(p, s)| *s <= *p && *s >= p / 8.0));
    }

    #[test]
    fn the_table_is_cos_then_sin() {
        let table = Rope { theta: 10000.0, scaling: RopeScaling::Default }.table(3, 4);
        assert_eq!(table[..4], [1.0, 1.0, 0.0, 0.0]);
        assert!((table[2 * 4] - 2f32.cos()).abs() < 1e-7 && (table[2 * 4 + 2] - 2f32.sin()).abs() < 1e-7);
    }
}
