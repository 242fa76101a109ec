//! Forward: s = mask(scale·q·kᵀ), m = max s, e = exp(s − m), z = Σ e, lse = m + log z, out = (e/z)·v.
use super::graph::{FLOAT, Graph, Pointwise, Reduce};
use super::problem::{KEYS, Problem, QUERIES, id, lengths};
use crate::error::Result;

pub(super) fn graph(p: &Problem) -> Result<Graph> {
    let mut graph = Graph::default();
    let g = &mut graph;
    let tables = p.tables(g)?;
    let [ld_q, ld_k, ld_v] = p.ld;
    let (scores, rows) = (p.score_dims(), p.row_dims());
    let q = p.of_queries(g, id::Q, ld_q, tables.map(|t| t.q))?;
    let kt = p.transposed(g, id::K, ld_k, tables.map(|t| t.k))?;
    let v = p.of_keys(g, id::V, ld_v, tables.map(|t| t.v))?;
    let out = p.of_queries(g, id::OUT, p.H * p.D, tables.map(|t| t.out))?;
    let lse = p.of_rows(g, id::LSE, tables.map(|t| t.lse))?;
    let (scale, never) = (g.scalar(id::SCALE)?, g.scalar(id::NEVER)?);

    let mut s = p.scores(g, q, kt, scale, lengths(tables, [QUERIES, KEYS, None]))?;
    if let Some(tables) = tables {
        s = g.mask_padding(s, never, tables.lengths, scores)?;
    }
    let s = p.mask_causal(g, s, never)?;
    let m = g.between(FLOAT, rows)?;
    g.reduce(Reduce::CUDNN_REDUCE_TENSOR_MAX, s, m)?;
    let shifted = g.map(Pointwise::CUDNN_POINTWISE_SUB, &[s, m], scores)?;
    let e = g.map(Pointwise::CUDNN_POINTWISE_EXP, &[shifted], scores)?;
    let z = g.between(FLOAT, rows)?;
    g.reduce(Reduce::CUDNN_REDUCE_TENSOR_ADD, e, z)?;
    let log_z = g.map(Pointwise::CUDNN_POINTWISE_LOG, &[z], rows)?;
    g.map_to(Pointwise::CUDNN_POINTWISE_ADD, &[m, log_z], lse)?;
    let probs = g.between(p.data(), scores)?;
    g.map_to(Pointwise::CUDNN_POINTWISE_DIV, &[e, z], probs)?;
    g.product_to(probs, v, lengths(tables, [QUERIES, None, KEYS]), out)?;
    Ok(graph)
}
