//! The [V, C] weight of the embedding or of the head: floats, or in blocks that stay packed.
//!
//! An embedding takes the packed rows of its tokens and dequantizes those, or has them brought from the host; a head dequantizes a slice of rows at a time into
//! a scratch of bounded size.
use super::linear::GgufWeight;
use super::param::Param;
use crate::backend::dry::Rules;
use crate::backend::{Backend, Buf, HostBuf, Scope};
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
    /// An embedding of floats that waits in host memory, of which the rows of a step come.
    Host(HostBuf),
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

/// What an embedding needs to look into a table that is no [V, C] on the device.
pub(super) struct EmbedScratch {
    /// 0, 1 .. N − 1
    ids: Buf,
    /// Packed rows, where they are packed.
    rows: Option<Buf>,
}

impl EmbedScratch {
    /// For `N` tokens; `None`: the table needs none.
    pub fn new(scope: &Scope, table: &Table, V: usize, N: usize) -> Result<Option<EmbedScratch>> {
        let rows = match table {
            Table::Dense(_) => return Ok(None),
            Table::Packed(weight) => Some(scope.alloc(N * (weight.blocks.len() / V), DType::U8)?),
            Table::Host(_) => None,
        };
        let mut ids = scope.alloc(N, DType::U32)?;
        scope.backend().upload_u32(&mut ids, &(0..N as u32).collect::<Vec<_>>())?;
        Ok(Some(EmbedScratch { ids, rows }))
    }
}

/// out [N, C] = scale·table[ids]; `values` [N, C] is scratch. The ids are on the device, and on the host.
pub(super) fn embed(
    b: &dyn Backend,
    table: &Table,
    scratch: &mut Option<EmbedScratch>,
    (out, values): (&mut Buf, &mut Buf),
    (ids, host_ids): (&Buf, &[u32]),
    p: &Embedding,
) -> Result<()> {
    match (table, scratch) {
        (Table::Host(weight), Some(_)) if p.scale == 1.0 => b.rows_from_host(out, weight, host_ids),
        (Table::Host(weight), Some(EmbedScratch { ids: all, .. })) => {
            b.rows_from_host(values, weight, host_ids)?;
            b.embedding_forward(out, all, values, &Embedding { V: p.N, ..*p })
        }
        (Table::Packed(weight), Some(EmbedScratch { ids: all, rows: Some(rows) })) => {
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
        let rows = Self::rows(&*scope.backend().rules(), table, [V, C], dtype, bytes);
        let values = table.packed().map(|_| scope.alloc(rows * C, dtype)).transpose()?;
        Ok(Slices { V, C, rows, values })
    }
    /// Rows of a slice.
    pub fn rows(rules: &dyn Rules, table: &Table, [V, C]: [usize; 2], dtype: DType, bytes: usize) -> usize {
        let (bytes, size) = match table {
            Table::Packed(_) => (bytes, dtype.size()),
            // gradients are f32
            Table::Dense(Param { train: Some(_), .. }) => (rules.room(), DType::F32.size()),
            Table::Dense(_) | Table::Host(_) => (rules.room(), dtype.size()),
        };
        (bytes / (C * size) / SLICE_ROWS * SLICE_ROWS).max(SLICE_ROWS).min(V)
    }

    /// First row and number of rows of each slice.
    pub fn each(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (V, rows) = (self.V, self.rows);
        (0..V).step_by(rows).map(move |first| (first, rows.min(V - first)))
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
