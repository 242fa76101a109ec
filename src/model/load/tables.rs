//! Weights with a row per token.
use super::Loader;
use crate::error::Result;
use crate::model::param::Param;
use crate::model::quantized::Stored;
use crate::model::table::Table;
use crate::model::{lora, token_rows};

impl Loader<'_> {
    /// The weight of the embedding or the head, which stays in blocks if it is stored so and the adapter has none of its own.
    pub(super) fn table(&self, from: &str, name: &str, V: usize, own: bool, train: bool) -> Result<Table> {
        match self.tensors.find(from, &[self.spec.V, self.spec.C])? {
            Stored::Gguf(q) if !own && V == self.spec.V => q.upload(self.b).map(Table::Packed),
            _ => self.grown(from, name, V, train).map(Table::Dense),
        }
    }

    /// The embedding's rows in host memory, in the model's type.
    pub(super) fn host_table(&self, from: &str, V: usize) -> Result<Table> {
        let (rows, C, dtype) = (self.spec.V, self.spec.C, self.options.dtype);
        let mut table = self.b.host_alloc(V * C, dtype)?;
        match self.tensors.find(from, &[rows, C])? {
            _ if self.b.is_dry() => {}
            Stored::Float(floats) if floats.dtype == dtype && V == rows => {
                self.b.host_upload(&mut table, &floats.bytes)?;
            }
            stored => {
                let mut values = stored.to_f32();
                token_rows::grow(&mut values, C, V);
                self.b.host_upload(&mut table, &dtype.encode(&values))?;
            }
        }
        Ok(Table::Host(table))
    }

    /// A weight or bias with a row per token, grown to `V` rows.
    pub(super) fn grown(&self, from: &str, name: &str, V: usize, train: bool) -> Result<Param> {
        let (rows, C) = (self.spec.V, self.spec.C);
        let is_bias = from.ends_with(".bias");
        let shape = |V: usize| if is_bias { vec![V] } else { vec![V, C] };
        if V == rows {
            return self.param(from, name, &shape(V), train);
        }
        let mut values = self.tensors.find(from, &shape(rows))?.to_f32();
        let width = if is_bias { 1 } else { C };
        token_rows::grow(&mut values, width, V);
        let train = train || self.options.train && self.options.saves(lora::module_of(name));
        let mut param = Param::zeros(self.b, name, &shape(V), self.options.dtype)?;
        if train {
            param.unfreeze_as(self.b, self.options.training())?;
        }
        param.set(self.b, &values)?;
        Ok(param)
    }
}
