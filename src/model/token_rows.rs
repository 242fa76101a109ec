//! Rows of the embedding or of the head that are trained alone, as new tokens' are: PEFT's `trainable_token_indices`. They are a
//! weight of their own, whose values stand in the table's rows whenever it is read; the rest of the table is frozen.
//!
//! embedding  drows[i,:] += scale·Σ_{n: ids[n] = token i} dout[n,:]
//! head       z = softcap(scale·h·rowsᵀ + bias) [n, tokens],  dz = coef·(1[label] − exp(z − lse))·softcap′,  drows += scale·dzᵀ·h
//! The head's lse is that of all logits, so a few columns are computed a second time, and dz of the others is not looked at.
use super::lora::{LoraConfig, TokenIndices};
use super::param::Param;
use super::spec::{Head, Spec};
use super::table::Table;
use crate::backend::{Backend, Buf, Scope};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::bias::Bias;
use crate::ops::embedding::{self, Embedding};
use crate::ops::logprob::{IGNORE, LogProb};
use crate::ops::matmul::MatMul;
use std::collections::HashMap;
use std::path::Path;

/// What PEFT calls such a weight, after its module's name.
pub const SUFFIX: &str = ".token_adapter.trainable_tokens_delta";

/// Tokens at most, where there are more than the base has.
pub const MAX_VOCAB: usize = 1 << 22;

pub struct TokenRows {
    pub ids: Vec<u32>,
    /// [tokens, C]
    pub rows: Param,
}

/// The tokens of the embedding and of the head whose rows are trained; those of a tied head are the embedding's.
pub fn wanted<'c>(config: &'c LoraConfig, spec: &Spec, model: &Path) -> Result<[Option<&'c [u32]>; 2]> {
    let key = "trainable_token_indices";
    let wrong = |what: String| Err(config.error(model, key, what));
    let (embed, head) = (spec.names.embed, spec.names.head);
    let mut found: [Option<&[u32]>; 2] = [None, None];
    match &config.trainable_token_indices {
        None => {}
        Some(TokenIndices::Embedding(ids)) => found[0] = Some(ids),
        Some(TokenIndices::Named(modules)) => {
            for (name, ids) in modules {
                match [embed, head].iter().position(|module| module.ends_with(name.as_str()) && !name.is_empty()) {
                    Some(place) => found[place] = Some(ids),
                    None => return wrong(format!("`{name}` is neither the embedding, {embed}, nor the head, {head}")),
                }
            }
        }
    }
    for (module, ids) in [embed, head].iter().zip(&found) {
        let Some(ids) = ids else { continue };
        let mut sorted = ids.to_vec();
        sorted.sort();
        if ids.is_empty() || sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return wrong(format!("of {module} must be different tokens, at least one"));
        }
        if config.saves(module) {
            return wrong(format!(
                "{module} is among modules_to_save, where all of its rows are trained: name it once"
            ));
        }
    }
    if spec.head == Head::Tied {
        if found[1].is_some() && found[1] != found[0] {
            return wrong(format!("{head} is tied to {embed}: name the same tokens of both, or of {embed} alone"));
        }
        if found[0].is_some() && config.saves(head) {
            return wrong(format!("{head} is tied to {embed} and among modules_to_save: name {embed} there too"));
        }
        found[1] = None;
    }
    Ok(found)
}

impl TokenRows {
    /// The rows as the table has them.
    pub fn new(b: &dyn Backend, module: &str, ids: &[u32], table: &Table, C: usize, train: bool) -> Result<TokenRows> {
        let table = table.param().ok_or_else(|| Error::Bug(format!("{module}: packed rows cannot be trained")))?;
        let mut rows = Param::zeros(b, &format!("{module}{SUFFIX}"), &[ids.len(), C], table.value.dtype())?;
        let mut values = Vec::with_capacity(ids.len() * C);
        for (_, first, count) in runs(ids) {
            values.extend(b.download_f32(&table.value.view(first * C, count * C))?);
        }
        if train {
            rows.unfreeze(b)?;
        }
        rows.set(b, &values)?;
        Ok(TokenRows { ids: ids.to_vec(), rows })
    }

    /// Puts the rows into the table.
    pub fn put(&self, b: &dyn Backend, table: &Table) -> Result<()> {
        let C = self.rows.shape[1];
        let table = table.param().ok_or_else(|| Error::Bug("packed rows cannot be trained".into()))?;
        for (at, first, count) in runs(&self.ids) {
            b.copy(&mut table.value.view(first * C, count * C), &self.rows.value.view(at * C, count * C))?;
        }
        Ok(())
    }

    fn places(&self) -> HashMap<u32, u32> {
        self.ids.iter().copied().zip(0..).collect()
    }
}

/// Neighbours among the ids: the place of the first, its id, and how many.
fn runs(ids: &[u32]) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
    let mut at = 0;
    ids.chunk_by(|a, b| a.checked_add(1) == Some(*b)).map(move |run| {
        at += run.len();
        (at - run.len(), run[0] as usize, run.len())
    })
}

/// A weight or bias with a row of `width` values per token, with rows added up to `V`: the mean of the others, as transformers' own
/// resizing has it but for its noise.
pub fn grow(values: &mut Vec<f32>, width: usize, V: usize) {
    let rows = values.len() / width;
    let mut mean = vec![0.0f64; width];
    values.chunks(width).for_each(|row| mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += *x as f64));
    (rows..V).for_each(|_| values.extend(mean.iter().map(|sum| (sum / rows as f64) as f32)));
}

/// For the embedding's rows. All buffers hold up to N tokens; those of a step that are trained fill their beginning.
pub(super) struct EmbedGrad {
    /// The trained tokens' places in the step, the rows they are of, and these sorted.
    places: Buf,
    rows: Buf,
    order: Buf,
    /// [N, C] Their gradients.
    dout: Buf,
}

impl EmbedGrad {
    pub fn new(scope: &Scope, N: usize, C: usize, dtype: DType) -> Result<EmbedGrad> {
        let n = || scope.alloc(N, DType::U32);
        Ok(EmbedGrad { places: n()?, rows: n()?, order: n()?, dout: scope.alloc(N * C, dtype)? })
    }

    /// `dout` [N, C] is the gradient of the embedding's output for `ids`.
    pub fn backward(
        &mut self,
        b: &dyn Backend,
        tokens: &mut TokenRows,
        ids: &[u32],
        dout: &Buf,
        scale: f32,
    ) -> Result<()> {
        let (place, C) = (tokens.places(), tokens.rows.shape[1]);
        let found = (0..).zip(ids).filter_map(|(n, id)| Some((n, *place.get(id)?)));
        let (places, rows): (Vec<u32>, Vec<u32>) = found.unzip();
        let (M, count) = (places.len(), tokens.ids.len());
        let Some(train) = tokens.rows.train.as_mut().filter(|_| M > 0) else { return Ok(()) };
        b.upload_u32(&mut self.places.view(0, M), &places)?;
        b.upload_u32(&mut self.rows.view(0, M), &rows)?;
        b.upload_u32(&mut self.order.view(0, M), &embedding::order(&rows))?;
        let mut gathered = self.dout.view(0, M * C);
        let p = Embedding { N: M as u32, V: ids.len() as u32, C: C as u32, scale: 1.0 };
        b.embedding_forward(&mut gathered, &self.places.view(0, M), dout, &p)?;
        let p = Embedding { V: count as u32, scale, ..p };
        b.embedding_backward(train.sum(b)?, &gathered, &self.rows.view(0, M), &self.order.view(0, M), &p)
    }
}

/// For the head's rows, a chunk of tokens at a time.
pub(super) struct HeadGrad {
    /// Row stride of z and dz.
    ld: usize,
    z: Buf,
    dz: Buf,
    /// [N]
    labels: Buf,
    /// The head's bias of these tokens.
    bias: Option<Buf>,
}

/// What the head knows of a chunk: its hidden states, and their logits' scale, softcap and lse.
pub(super) struct Chunk<'a> {
    pub n: usize,
    pub h: &'a Buf,
    pub coef: &'a Buf,
    pub lse: &'a Buf,
    pub labels: &'a [u32],
    pub scale: f32,
    pub softcap: f32,
}

impl HeadGrad {
    /// For chunks of up to `rows` tokens.
    pub fn new(
        scope: &Scope,
        tokens: &TokenRows,
        bias: Option<&Param>,
        rows: usize,
        N: usize,
        dtype: DType,
    ) -> Result<HeadGrad> {
        let b = scope.backend();
        let ld = tokens.ids.len().next_multiple_of(64);
        let own = |bias: &Param| -> Result<Buf> {
            let all = b.download_f32(&bias.value)?;
            let own: Vec<f32> = tokens.ids.iter().map(|id| all[*id as usize]).collect();
            scope.alloc_f32(&own, bias.value.dtype())
        };
        Ok(HeadGrad {
            ld,
            z: scope.alloc(rows * ld, DType::F32)?,
            dz: scope.alloc(rows * ld, dtype)?,
            labels: scope.alloc(N, DType::U32)?,
            bias: bias.map(own).transpose()?,
        })
    }

    pub fn backward(&mut self, b: &dyn Backend, tokens: &mut TokenRows, chunk: &Chunk) -> Result<()> {
        let (n, V, C) = (chunk.n, tokens.ids.len() as u32, tokens.rows.shape[1] as u32);
        let (place, ld) = (tokens.places(), self.ld as u32);
        let Some(train) = &mut tokens.rows.train else { return Ok(()) };
        // a label that has no row here is past all of them
        let label = |label: &u32| if *label == IGNORE { IGNORE } else { place.get(label).copied().unwrap_or(ld) };
        let mut labels = self.labels.view(0, n);
        b.upload_u32(&mut labels, &chunk.labels.iter().map(label).collect::<Vec<_>>())?;
        let (mut z, mut dz) = (self.z.view(0, n * self.ld), self.dz.view(0, n * self.ld));
        let p = MatMul { I: n as u32, J: V, Q: C, ld_out: ld, ld_a: C, ld_b: C, alpha: chunk.scale };
        b.matmul_nt(&mut z, chunk.h, &tokens.rows.value, &p)?;
        if let Some(bias) = &self.bias {
            b.bias_forward(&mut z, bias, &Bias { N: n as u32, O: V, ld_out: ld })?;
        }
        let p = LogProb { N: n as u32, V, ld_logits: ld, ld_dlogits: ld, softcap: chunk.softcap };
        b.logprob_backward(&mut dz, chunk.coef, chunk.lse, &z, &labels, &p)?;
        let p = MatMul { I: V, J: C, Q: n as u32, ld_out: C, ld_a: ld, ld_b: C, alpha: chunk.scale };
        b.matmul_tn_add(train.sum(b)?, &dz, chunk.h, &p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_go_together() {
        assert_eq!(runs(&[7, 8, 9, 3, 5, 6]).collect::<Vec<_>>(), [(0, 7, 3), (3, 3, 1), (4, 5, 2)]);
        assert_eq!(runs(&[u32::MAX, 0]).count(), 2);
    }
}
