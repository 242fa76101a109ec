//! What decides how a weight is moved: weights that have it in common move together.
use super::hyper::{Decay, Hyper, Precision, Rule};
use crate::dtype::DType;
use crate::model::Model;
use crate::model::param::{Masters, Param};
use std::collections::HashSet;

/// Smaller tensors keep f32 states, as in bitsandbytes (`min_8bit_size`).
const MIN_8BIT: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kind {
    pub dtype: DType,
    pub gradient: DType,
    /// The optimizer moves the weight itself.
    pub masters: Masters,
    pub rule: Rule,
    pub precision: Precision,
    /// The learning rate, in units of the run's.
    pub rate: f64,
    pub decays: bool,
    /// Of an adapter, and not of the base: memory counts them apart.
    pub adapter: bool,
}

/// What is to be known of a model to tell the kinds of its weights.
pub(super) struct Kinds<'h> {
    hyper: &'h Hyper,
    /// Names of weights in blocks.
    in_blocks: HashSet<String>,
    /// Names of tables that tokens or positions are looked up in.
    embeddings: Vec<String>,
}

impl<'h> Kinds<'h> {
    pub fn new(model: &Model, hyper: &'h Hyper) -> Kinds<'h> {
        let in_blocks = model.blocks.iter().flat_map(|block| block.params()).map(|p| p.name.clone()).collect();
        let embeddings = model.embed.param().into_iter().chain(&model.positions).map(|p| p.name.clone()).collect();
        Kinds { hyper, in_blocks, embeddings }
    }

    pub fn of(&self, param: &Param, rate: f64) -> Kind {
        let rule = match self.hyper.rule {
            Rule::Muon if !self.is_matrix(param) => Rule::AdamW,
            rule => rule,
        };
        // transformers keeps those of embeddings in 32 bits
        let small = param.elements() < MIN_8BIT || self.embeddings.contains(&param.name);
        let precision = if small { Precision::F32 } else { self.hyper.precision };
        let decays = self.hyper.decay == Decay::All || decays(param);
        let adapter = param.name.contains(".lora_");
        let train = param.train.as_ref().expect("only of what is trained");
        let masters = if train.master.is_some() { Masters::F32 } else { Masters::None };
        let (dtype, gradient) = (param.value.dtype(), train.grad.dtype());
        Kind { dtype, gradient, masters, rule, precision, rate, decays, adapter }
    }

    /// A weight that multiplies, in a block: no vector, no norm of heads, no bias of experts.
    fn is_matrix(&self, param: &Param) -> bool {
        param.is_matrix() && self.in_blocks.contains(&param.name)
    }
}

/// transformers' rule: no decay on norms (those of each head are a matrix) and biases; those of stacked experts are matrices,
/// sinks and DoRA's magnitudes are neither.
fn decays(param: &Param) -> bool {
    let neither = [".sinks", ".lora_magnitude_vector"].iter().any(|end| param.name.ends_with(end));
    neither || param.is_matrix()
}
