//! What a plan depends on, and the tensors that both directions share.
use super::graph::{DataType, Dims, FLOAT, Graph, Lengths, Place, Pointwise, Tensor};
use crate::dtype::DType;
use crate::error::Result;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Direction {
    Forward,
    Backward,
}

/// How the sequences lie in the rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Layout {
    /// B sequences of S tokens, one after the other.
    Even,
    /// Up to B sequences of up to S tokens; tables say where each starts and how long it is.
    Ragged,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Mask {
    Causal,
    /// Causal, and at most a window of keys, whose size is given at each run.
    Sliding,
}

/// One plan fits all calls of the same problem: scale, window, lengths and addresses are given at each run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Problem {
    pub direction: Direction,
    pub dtype: DType,
    pub B: i64,
    pub S: i64,
    pub H: i64,
    pub K: i64,
    pub D: i64,
    /// Elements from one token to the next of q, k, v.
    pub ld: [i64; 3],
    pub mask: Mask,
    pub layout: Layout,
}

/// Ids of what is given at each run.
pub(super) mod id {
    pub const Q: i64 = 1;
    pub const K: i64 = 2;
    pub const V: i64 = 3;
    pub const OUT: i64 = 4;
    pub const LSE: i64 = 5;
    pub const DOUT: i64 = 6;
    pub const DQ: i64 = 7;
    pub const DK: i64 = 8;
    pub const DV: i64 = 9;
    pub const DOT: i64 = 10;
    /// dq as its parts are summed, f32, laid out as dq
    pub const DQ_SUM: i64 = 11;
    /// dk and dv of each query head, [N, H·D]
    pub const DK_HEADS: i64 = 12;
    pub const DV_HEADS: i64 = 13;
    /// Scalars on the host.
    pub const SCALE: i64 = 20;
    pub const NEVER: i64 = 21;
    pub const WINDOW: i64 = 22;
    pub const ONE: i64 = 23;
    /// Tables: tokens of each sequence, and its first element.
    pub const LENGTHS_Q: i64 = 30;
    pub const LENGTHS_K: i64 = 31;
    pub const STARTS_Q: i64 = 32;
    pub const STARTS_K: i64 = 33;
    pub const STARTS_V: i64 = 34;
    pub const STARTS_OUT: i64 = 35;
    pub const STARTS_LSE: i64 = 36;
}

/// One value per sequence (or one more), for ragged layouts.
#[derive(Clone, Copy)]
pub(super) struct Tables {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub out: Tensor,
    pub lse: Tensor,
    /// Of queries and of keys.
    pub lengths: [Tensor; 2],
}

impl Problem {
    /// Sizes that cuDNN has engines for, in both directions.
    pub fn fits(&self, capability: (i32, i32)) -> bool {
        let most = if capability.0 == 9 { 256 } else { 128 };
        // dq, dk and dv summed over ragged rows are wrong for other head sizes
        let step = if self.layout == Layout::Ragged { 16 } else { 8 };
        self.D <= most && self.D % step == 0
    }
    /// For people.
    pub fn words(&self) -> String {
        let Problem { direction, dtype, B, S, H, K, D, mask, layout, .. } = self;
        let dtype = dtype.name();
        format!("{direction:?} {layout:?} {mask:?} {dtype} B={B} S={S} H={H} K={K} D={D}")
    }
    pub fn data(&self) -> DataType {
        match self.dtype {
            DType::F16 => DataType::CUDNN_DATA_HALF,
            _ => DataType::CUDNN_DATA_BFLOAT16,
        }
    }
    /// Of q, of k and v, of one value per query, of scores.
    pub fn q_dims(&self) -> Dims {
        [self.B, self.H, self.S, self.D]
    }
    pub fn k_dims(&self) -> Dims {
        [self.B, self.K, self.S, self.D]
    }
    pub fn row_dims(&self) -> Dims {
        [self.B, self.H, self.S, 1]
    }
    pub fn score_dims(&self) -> Dims {
        [self.B, self.H, self.S, self.S]
    }
    /// Strides of [tokens, heads·D] with `ld` elements from token to token, as [B, heads, S, D].
    pub fn rows(&self, ld: i64) -> Dims {
        [self.S * ld, self.D, ld, 1]
    }
    /// Strides of [N, H] as [B, H, S, 1].
    pub fn row_values(&self) -> Dims {
        [self.S * self.H, 1, self.H, 1]
    }
    /// Groups of query heads share a kv head.
    pub fn grouped(&self) -> bool {
        self.H != self.K
    }
    pub fn tables(&self, g: &mut Graph) -> Result<Option<Tables>> {
        if self.layout == Layout::Even {
            return Ok(None);
        }
        let mut table = |id, data, rows| g.tensor(Place::Device(id), data, [rows, 1, 1, 1], [1; 4], None);
        let int64 = DataType::CUDNN_DATA_INT64;
        let mut starts = |id| table(id, int64, self.B + 1);
        let (q, k, v) = (starts(id::STARTS_Q)?, starts(id::STARTS_K)?, starts(id::STARTS_V)?);
        let (out, lse) = (starts(id::STARTS_OUT)?, starts(id::STARTS_LSE)?);
        let mut lengths = |id| table(id, DataType::CUDNN_DATA_INT32, self.B);
        Ok(Some(Tables { q, k, v, out, lse, lengths: [lengths(id::LENGTHS_Q)?, lengths(id::LENGTHS_K)?] }))
    }
    /// A tensor of the storage type: q, out, and their gradients.
    pub fn of_queries(&self, g: &mut Graph, id: i64, ld: i64, starts: Option<Tensor>) -> Result<Tensor> {
        g.tensor(Place::Device(id), self.data(), self.q_dims(), self.rows(ld), starts)
    }
    pub fn of_keys(&self, g: &mut Graph, id: i64, ld: i64, starts: Option<Tensor>) -> Result<Tensor> {
        g.tensor(Place::Device(id), self.data(), self.k_dims(), self.rows(ld), starts)
    }
    /// k or v as the right side of a product with its transpose, [B, K, D, S].
    pub fn transposed(&self, g: &mut Graph, id: i64, ld: i64, starts: Option<Tensor>) -> Result<Tensor> {
        let ([b, h, s, d], [sb, sh, ss, sd]) = (self.k_dims(), self.rows(ld));
        g.tensor(Place::Device(id), self.data(), [b, h, d, s], [sb, sh, sd, ss], starts)
    }
    /// lse or dot, f32 [N, H].
    pub fn of_rows(&self, g: &mut Graph, id: i64, starts: Option<Tensor>) -> Result<Tensor> {
        g.tensor(Place::Device(id), FLOAT, self.row_dims(), self.row_values(), starts)
    }
    /// scale·q·kᵀ, unmasked but for padding.
    pub fn scores(&self, g: &mut Graph, q: Tensor, kt: Tensor, scale: Tensor, lengths: Lengths) -> Result<Tensor> {
        let dims = self.score_dims();
        let raw = g.product(q, kt, lengths, dims)?;
        g.map(Pointwise::CUDNN_POINTWISE_MUL, &[raw, scale], dims)
    }
    pub fn mask_causal(&self, g: &mut Graph, scores: Tensor, never: Tensor) -> Result<Tensor> {
        let window = match self.mask {
            Mask::Causal => None,
            Mask::Sliding => Some(g.scalar(id::WINDOW)?),
        };
        g.mask_causal(scores, never, window, self.score_dims())
    }
}

/// Of a product's rows, columns and terms, which are queries and which are keys.
pub(super) fn lengths(tables: Option<Tables>, [rows, columns, terms]: [Option<usize>; 3]) -> Lengths {
    let of = |side: Option<usize>| tables.and_then(|t| side.map(|side| t.lengths[side]));
    Lengths { rows: of(rows), columns: of(columns), terms: of(terms) }
}
/// Sides of [`lengths`].
pub(super) const QUERIES: Option<usize> = Some(0);
pub(super) const KEYS: Option<usize> = Some(1);
