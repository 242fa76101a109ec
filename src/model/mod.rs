//! The decoder: hand-written forward and backward over packed tokens, no tape.
//!
//! ```text
//! ids [N] -> embed -> block × L -> final norm -> head, in chunks of tokens -> logp [N]
//! ```
//! A training method is a function of logp: it gives coef = ∂loss/∂logp, and [`Session::backward`] turns that into gradients.
use crate::backend::{Backend, Buf};
use crate::dtype::DType;
use crate::error::Result;

pub mod adapters;
pub mod arch;
pub mod attention;
mod balance;
pub mod batch;
pub mod block;
pub mod check;
mod config;
pub mod dora;
pub mod dropout;
pub mod experts;
pub mod fp8;
pub mod gguf;
mod head;
mod kept;
pub mod latent;
pub mod layout;
pub mod linear;
pub mod load;
pub mod lora;
pub mod mlp;
pub mod moe;
mod neftune;
pub mod norm;
pub mod paged;
pub mod param;
pub mod plan;
pub mod quantized;
pub mod rope;
pub mod sampler;
pub mod session;
pub mod shared;
pub mod spec;
pub mod streamed;
pub mod table;
mod thin;
pub mod token_rows;
pub mod watch;
pub mod weights;
pub use batch::Tokens;
pub use check::check;
pub use fp8::Compute;
pub use load::LoadOptions;
pub use plan::{Keep, Plan};
pub use session::{Common, Session};
pub use streamed::{Place, Places};
pub use weights::Weights;

/// Weights on a device.
pub struct Model {
    pub spec: spec::Spec,
    /// Of activations and unquantized weights.
    pub dtype: DType,
    pub embed: table::Table,
    /// Rows of `embed` that are trained alone.
    pub embed_rows: Option<token_rows::TokenRows>,
    /// Added to the embedding by position.
    pub positions: Option<param::Param>,
    pub blocks: Vec<block::Block>,
    pub final_norm: norm::NormParams,
    /// `None`: the embedding's weight.
    pub head: Option<table::Table>,
    pub head_rows: Option<token_rows::TokenRows>,
    pub head_bias: Option<param::Param>,
    /// The adapter's config, if there is one.
    pub lora: Option<lora::LoraConfig>,
    /// The blocks' frozen weights, where they wait on the host.
    pub streamed: Option<streamed::Streamed>,
}

impl Model {
    /// Every weight that is no quantized base, in the order of the forward pass.
    pub fn params(&self) -> impl Iterator<Item = &param::Param> {
        let blocks = self.blocks.iter().flat_map(block::Block::params);
        let embed_rows = self.embed_rows.as_ref().map(|rows| &rows.rows);
        let head_rows = self.head_rows.as_ref().map(|rows| &rows.rows);
        let before = self.embed.param().into_iter().chain(embed_rows).chain(&self.positions);
        let head = self.head.iter().filter_map(table::Table::param).chain(head_rows).chain(&self.head_bias);
        before.chain(blocks).chain(self.final_norm.params()).chain(head)
    }
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut param::Param> {
        let blocks = self.blocks.iter_mut().flat_map(block::Block::params_mut);
        let embed_rows = self.embed_rows.as_mut().map(|rows| &mut rows.rows);
        let head_rows = self.head_rows.as_mut().map(|rows| &mut rows.rows);
        let before = self.embed.param_mut().into_iter().chain(embed_rows).chain(&mut self.positions);
        let head = self.head.iter_mut().filter_map(table::Table::param_mut).chain(head_rows).chain(&mut self.head_bias);
        before.chain(blocks).chain(self.final_norm.params_mut()).chain(head)
    }
    /// The weights that are trained.
    pub fn trained(&self) -> impl Iterator<Item = &param::Param> {
        self.params().filter(|p| p.train.is_some())
    }
    /// Trained values, counted as PEFT's `print_trainable_parameters` does.
    pub fn trainable_parameters(&self) -> usize {
        self.trained().map(param::Param::elements).sum()
    }
    /// Gives back the memory of what is not trained; trained weights may have moved to an optimizer's buffers.
    pub fn free(self, b: &dyn Backend) {
        let frozen = self.params().filter(|p| p.train.is_none()).map(|p| &p.value);
        let linears = self.linears().chain(self.experts().map(|experts| &experts.stack));
        let tables = [Some(&self.embed), self.head.as_ref()].into_iter().flatten().filter_map(table::Table::packed);
        let bufs = frozen.chain(linears.flat_map(|linear| linear.weight.quantized())).chain(tables);
        let away = |buf: &&Buf| self.streamed.as_ref().is_some_and(|streamed| streamed.holds(buf));
        bufs.filter(|buf| !away(buf)).for_each(|buf| b.free(buf.view(0, buf.len())));
        if let table::Table::Host(rows) = self.embed {
            b.host_free(rows);
        }
        if let Some(streamed) = self.streamed {
            streamed.free(b);
        }
    }
    /// All values, those of the adapter and of its own copies of modules included.
    pub fn all_parameters(&self) -> u64 {
        let own = |p: &&param::Param| {
            p.name.contains(".lora_")
                || p.name.ends_with(token_rows::SUFFIX)
                || self.lora.as_ref().is_some_and(|config| config.saves_param(&p.name))
        };
        self.spec.parameters() + self.params().filter(own).map(|p| p.elements() as u64).sum::<u64>()
    }
    /// Trained values by the last name of their modules (`q_proj`), in the order of the forward pass.
    pub fn trainable_parts(&self) -> Vec<(String, usize)> {
        let mut parts: Vec<(String, usize)> = Vec::new();
        for param in self.trained() {
            let module = param.name.split(".lora_").next().unwrap_or_default();
            let module = module.strip_suffix(token_rows::SUFFIX).unwrap_or(module);
            let leaf = lora::module_of(module).rsplit('.').next().unwrap_or_default();
            match parts.iter_mut().find(|(part, _)| part == leaf) {
                Some((_, count)) => *count += param.elements(),
                None => parts.push((leaf.to_string(), param.elements())),
            }
        }
        parts
    }
    /// Puts rows that are trained alone where they are read.
    pub fn put_token_rows(&self, b: &dyn Backend) -> Result<()> {
        let head = self.head.as_ref().unwrap_or(&self.embed);
        for (rows, table) in [(&self.embed_rows, &self.embed), (&self.head_rows, head)] {
            rows.as_ref().map_or(Ok(()), |rows| rows.put(b, table))?;
        }
        Ok(())
    }
    pub fn linears(&self) -> impl Iterator<Item = &linear::Linear> {
        self.blocks.iter().flat_map(block::Block::linears)
    }
    pub fn experts(&self) -> impl Iterator<Item = &experts::Experts> {
        self.blocks.iter().flat_map(block::Block::experts)
    }
}
