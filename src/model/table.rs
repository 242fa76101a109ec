//! The [V, C] weight of the embedding or of the head: floats, or in blocks that stay packed.
//!
//! An embedding takes the packed rows of its tokens and dequantizes those; a head dequantizes a slice of rows at a time into
//! a scratch of bounded size.
use super::linear::GgufWeight;
use super::param::Param;
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::embedding::Embedding;
use crate::ops::rows::Rows;

/// Bytes of dequantized rows alive at a time, at most, but for 64 rows at least.
pub(super) const SLICE_BYTES: usize = 64 << 20;
/// Rows of a slice are a multiple of it: so views of the blocks, and of logits in 16 bits, start at whole words.
const SLICE_ROWS: usize = 64;

pub enum Table {
    Dense(Param),
    Packed(GgufWeight),
}

impl Table {
    /// What packed rows lie in.
    pub fn packed(&self) -> Option<&Buf> {
        if let Table::Packed(weight) = self { Some(&weight.blocks) } else { None }
    }
    pub fn param(&self) -> Option<&Param> {
        if let Table::Dense(param) = self { Some(param) } else { None }
    }
    pub fn param_mut(&mut self) -> Option<&mut Param> {
        if let Table::Dense(param) = self { Some(param) } else { None }
    }
}

/// What an embedding needs to look into a packed table.
pub(super) struct EmbedScratch {
    /// 0, 1 .. N − 1
    ids: Buf,
    /// Packed rows.
    rows: Buf,
}

impl EmbedScratch {
    /// For `N` tokens; `None`: the table needs none.
    pub fn new(scope: &Scope, table: &Table, V: usize, N: usize) -> Result<Option<EmbedScratch>> {
        let Table::Packed(weight) = table else { return Ok(None) };
        let mut ids = scope.alloc(N, DType::U32)?;
        scope.backend().upload_u32(&mut ids, &(0..N as u32).collect::<Vec<_>>())?;
        Ok(Some(EmbedScratch { ids, rows: scope.alloc(N * (weight.blocks.len() / V), DType::U8)? }))
    }
}

/// out [N, C] = scale·table[ids]; `values` [N, C] is scratch.
pub(super) fn embed(
    b: &dyn Backend,
    table: &Table,
    scratch: &mut Option<EmbedScratch>,
    (out, values): (&mut Buf, &mut Buf),
    ids: &Buf,
    p: &Embedding,
) -> Result<()> {
    match (table, scratch) {
        (Table::Packed(weight), Some(EmbedScratch { ids: all, rows })) => {
            let bytes = rows.len() as u32 / p.N;
            b.rows_gather(rows, ids, &weight.blocks, &Rows { N: p.N, V: p.V, C: bytes })?;
            weight.format.dequantize(b, values, rows)?;
            b.embedding_forward(out, all, values, &Embedding { V: p.N, ..*p })
        }
        (table, _) => {
            let param = table.param().expect("a packed table has its scratch");
            b.embedding_forward(out, ids, &param.value, p)
        }
    }
}

/// A table as a head multiplies with it: a slice of rows at a time.
pub(super) struct Slices {
    V: usize,
    C: usize,
    /// Rows of a slice.
    rows: usize,
    /// Dequantized; `None`: floats need none.
    values: Option<Buf>,
}

impl Slices {
    /// Of at most `bytes`; of floats, what a call of the backend sees at once.
    pub fn new(scope: &Scope, table: &Table, [V, C]: [usize; 2], dtype: DType, bytes: usize) -> Result<Slices> {
        let rows = |bytes: usize, size: usize| (bytes / (C * size) / SLICE_ROWS * SLICE_ROWS).max(SLICE_ROWS).min(V);
        if let Some(param) = table.param() {
            // gradients are f32
            let size = if param.train.is_some() { DType::F32.size() } else { dtype.size() };
            return Ok(Slices { V, C, rows: rows(scope.backend().rules().room(), size), values: None });
        }
        let rows = rows(bytes, dtype.size());
        Ok(Slices { V, C, rows, values: Some(scope.alloc(rows * C, dtype)?) })
    }

    /// First row and number of rows of each slice.
    pub fn each(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (V, rows) = (self.V, self.rows);
        (0..V).step_by(rows).map(move |first| (first, rows.min(V - first)))
    }
    pub fn is_one(&self) -> bool {
        self.rows == self.V
    }

    /// Rows `first..first + count` as floats; the last call's are gone.
    pub fn get(&self, b: &dyn Backend, table: &Table, first: usize, count: usize) -> Result<Buf> {
        match (table, &self.values) {
            (Table::Packed(weight), Some(values)) => {
                let row = weight.blocks.len() / self.V;
                let mut values = values.view(0, count * self.C);
                weight.format.dequantize(b, &mut values, &weight.blocks.view(first * row, count * row))?;
                Ok(values)
            }
            (table, _) => {
                let param = table.param().expect("a packed table has its scratch");
                Ok(param.value.view(first * self.C, count * self.C))
            }
        }
    }
}
