//! Backward: dot = Σ_d dout·out, p = exp(mask(scale·q·kᵀ − lse)), dv = pᵀ·dout, ds = scale·p·(dout·vᵀ − dot), dk = dsᵀ·q, dq = ds·k.
//!
//! cuDNN sums dq by atomics in f32: the same call may differ in its last bits.
use super::graph::{Dims, FLOAT, Graph, Place, Pointwise, Reduce, Tensor, packed};
use super::problem::{KEYS, Layout, Problem, QUERIES, Tables, id, lengths};
use crate::error::Result;

pub(super) fn graph(p: &Problem) -> Result<Graph> {
    let mut graph = Graph::default();
    let g = &mut graph;
    let tables = p.tables(g)?;
    let [ld_q, ld_k, ld_v] = p.ld;
    let (scores, rows) = (p.score_dims(), p.row_dims());
    let q = p.of_queries(g, id::Q, ld_q, tables.map(|t| t.q))?;
    let kt = p.transposed(g, id::K, ld_k, tables.map(|t| t.k))?;
    let vt = p.transposed(g, id::V, ld_v, tables.map(|t| t.v))?;
    let out = p.of_queries(g, id::OUT, p.H * p.D, tables.map(|t| t.out))?;
    let dout = p.of_queries(g, id::DOUT, p.H * p.D, tables.map(|t| t.out))?;
    let lse = p.of_rows(g, id::LSE, tables.map(|t| t.lse))?;
    let (scale, never, one) = (g.scalar(id::SCALE)?, g.scalar(id::NEVER)?, g.scalar(id::ONE)?);

    let both = g.map(Pointwise::CUDNN_POINTWISE_MUL, &[dout, out], p.q_dims())?;
    let sum = g.between(FLOAT, rows)?;
    g.reduce(Reduce::CUDNN_REDUCE_TENSOR_ADD, both, sum)?;
    let dot = p.of_rows(g, id::DOT, tables.map(|t| t.lse))?;
    g.map_to(Pointwise::CUDNN_POINTWISE_MUL, &[sum, one], dot)?;

    let mut s = p.scores(g, q, kt, scale, lengths(tables, [QUERIES, KEYS, None]))?;
    if let Some(tables) = tables {
        s = g.mask_padding(s, never, tables.lengths, scores)?;
    }
    let s = g.map(Pointwise::CUDNN_POINTWISE_SUB, &[s, lse], scores)?;
    let s = p.mask_causal(g, s, never)?;
    let probs = g.map(Pointwise::CUDNN_POINTWISE_EXP, &[s], scores)?;
    let dv = Of { id: id::DV, heads: id::DV_HEADS, ld: ld_v, starts: tables.map(|t| t.v) };
    of_keys(p, g, probs, dout, tables, dv)?;

    let dp = g.product(dout, vt, lengths(tables, [QUERIES, KEYS, None]), scores)?;
    let centred = g.map(Pointwise::CUDNN_POINTWISE_SUB, &[dp, dot], scores)?;
    let ds = g.map(Pointwise::CUDNN_POINTWISE_MUL, &[centred, probs], scores)?;
    let ds = g.map(Pointwise::CUDNN_POINTWISE_MUL, &[ds, scale], scores)?;
    let dk = Of { id: id::DK, heads: id::DK_HEADS, ld: ld_k, starts: tables.map(|t| t.k) };
    of_keys(p, g, ds, q, tables, dk)?;

    let k = g.tensor(Place::Virtual, p.data(), p.k_dims(), p.rows(ld_k), tables.map(|t| t.k))?;
    g.reshape(kt, k)?;
    let dq = p.of_queries(g, id::DQ, ld_q, tables.map(|t| t.q))?;
    let dq_sum = g.tensor(Place::Device(id::DQ_SUM), FLOAT, p.q_dims(), dq_sum_strides(p), tables.map(|t| t.q))?;
    g.product_to(ds, k, lengths(tables, [QUERIES, None, KEYS]), dq_sum)?;
    g.map_to(Pointwise::CUDNN_POINTWISE_IDENTITY, &[dq_sum], dq)?;
    Ok(graph)
}

/// A gradient of k or of v.
struct Of {
    id: i64,
    heads: i64,
    ld: i64,
    starts: Option<Tensor>,
}

/// scoresᵀ·right [B, H, S, D], summed over the query heads that share a kv head.
fn of_keys(p: &Problem, g: &mut Graph, scores: Tensor, right: Tensor, tables: Option<Tables>, of: Of) -> Result<()> {
    let strides = [p.H * p.S * p.S, p.S * p.S, 1, p.S];
    let turned = g.tensor(Place::Virtual, p.data(), p.score_dims(), strides, None)?;
    g.reshape(scores, turned)?;
    let sum = p.of_keys(g, of.id, of.ld, of.starts)?;
    let lengths = lengths(tables, [KEYS, None, QUERIES]);
    if !p.grouped() {
        return g.product_to(turned, right, lengths, sum);
    }
    let heads = match p.layout {
        Layout::Even => g.tensor(Place::Virtual, p.data(), p.q_dims(), packed(p.q_dims()), None)?,
        // cuDNN scales the offsets of k's heads to those of q's
        Layout::Ragged => {
            let group = p.H / p.K;
            let [b, h, s, d] = p.rows(of.ld);
            g.tensor(Place::Device(of.heads), p.data(), p.q_dims(), [b * group, h, s * group, d], of.starts)?
        }
    };
    g.product_to(turned, right, lengths, heads)?;
    g.reduce(Reduce::CUDNN_REDUCE_TENSOR_ADD, heads, sum)
}

fn dq_sum_strides(p: &Problem) -> Dims {
    match p.layout {
        Layout::Even => packed(p.q_dims()),
        Layout::Ragged => p.rows(p.ld[0]),
    }
}

/// Bytes for `tokens` rows that a run needs besides cuDNN's own: for `DQ_SUM`, `DK_HEADS` and `DV_HEADS`.
pub(super) fn scratch(p: &Problem, tokens: usize) -> [usize; 3] {
    let heads = |ld: i64| match p.layout {
        Layout::Ragged if p.grouped() => tokens * (ld * p.H / p.K) as usize * p.dtype.size(),
        _ => 0,
    };
    let dq = if p.layout == Layout::Even { p.H * p.D } else { p.ld[0] };
    [tokens * dq as usize * 4, heads(p.ld[1]), heads(p.ld[2])]
}
