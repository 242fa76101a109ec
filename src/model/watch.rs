//! How far a forward or a backward is: for whoever moves weights before the one, or uses gradients up before all of them are there.
use super::Model;
use super::param::Param;
use super::table::Table;
use crate::error::Result;

/// What a backward passes, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Of a model whose head is its own.
    Head,
    /// From the last to the first.
    Layer(usize),
    /// Of a model whose head is its own: a tied one's gradient grows from the first on.
    Embedding,
}

/// Is told what a forward and a backward pass.
pub trait Watch {
    /// The forward reads this layer's weights next: now they must be those of this step. But for its first norm, which the layer
    /// before makes with its output.
    fn forward(&mut self, layer: usize) -> Result<()>;
    /// The gradients of its weights grow next: now they must be in place.
    fn before(&mut self, part: Part) -> Result<()>;
    /// They are whole, as far as this backward goes.
    fn after(&mut self, part: Part) -> Result<()>;
}

/// Nobody watches.
impl Watch for () {
    fn forward(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
    fn before(&mut self, _: Part) -> Result<()> {
        Ok(())
    }
    fn after(&mut self, _: Part) -> Result<()> {
        Ok(())
    }
}

impl Model {
    /// The part with which the gradient of each trained weight grows, in the order of [`Model::trained`]; `None`: it grows at several
    /// places, or belongs to none.
    pub fn trained_parts(&self) -> Vec<Option<Part>> {
        let table = |table: Option<&Table>| table.and_then(Table::param).map(|p| p as *const Param);
        let (embed, head) = (table(Some(&self.embed)), table(self.head.as_ref()));
        let in_blocks = self.blocks.iter().enumerate();
        let in_blocks: Vec<_> =
            in_blocks.flat_map(|(l, block)| block.params().map(move |p| (p as *const Param, l))).collect();
        let layers: std::collections::HashMap<*const Param, usize> = in_blocks.into_iter().collect();
        let part = |p: &Param| match p as *const Param {
            at if Some(at) == head => Some(Part::Head),
            at if Some(at) == embed => self.head.is_some().then_some(Part::Embedding),
            at => layers.get(&at).copied().map(Part::Layer),
        };
        self.trained().map(part).collect()
    }
}
