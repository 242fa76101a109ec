//! How far two models are apart on the same tokens: one is run after the other, so that memory holds one at a time.
//!
//! KL(a‖b) = Σ_v p_a(v)·(ln p_a(v) − ln p_b(v)) for each token, in nats.
use super::peft;
use crate::backend::Backend;
use crate::data::Tokenizer;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::spec::Spec;
use crate::model::{self, LoadOptions, Model, Plan, Session, Tokens};
use rayon::prelude::*;
use std::path::Path;

/// Tokens that both go on with after the first text, each by itself.
const GREEDY: usize = 8;

/// A model, maybe with an adapter on it.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    pub model: &'a Path,
    pub adapter: Option<&'a Path>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub tokens: usize,
    /// KL(a‖b), the mean of all tokens and the largest.
    pub mean_kl: f64,
    pub max_kl: f64,
    /// The largest difference of two logits.
    pub max_logit: f64,
    /// The share of tokens after which both hold the same token likeliest.
    pub top1: f64,
    /// Mean −ln p of the texts' own tokens, of a and of b.
    pub loss: [f64; 2],
    /// Tokens that both say alike from the first text on, of how many.
    pub greedy: (usize, usize),
}

impl Side<'_> {
    /// The tokenizer that goes with it, if it has one.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let checked = model::check(self.model)?;
        let V = checked.spec.as_ref().map_or(Ok(0), |spec| self.vocab(spec))?;
        checked.tokenizer.map(|base| peft::tokenizer(self.adapter, base, V)).transpose()
    }

    /// Tokens of its vocabulary, the adapter's own among them.
    fn vocab(&self, spec: &Spec) -> Result<usize> {
        self.adapter.map_or(Ok(spec.V), |adapter| peft::vocab(adapter, spec))
    }

    fn load(&self, b: &dyn Backend, dtype: DType) -> Result<Model> {
        peft::load_model(b, self.model, self.adapter, LoadOptions::frozen(dtype))
    }

    /// The logits after each token of each text, and what it says after the first.
    fn run(&self, b: &dyn Backend, texts: &[Vec<u32>], dtype: DType) -> Result<Ran> {
        let model = self.load(b, dtype)?;
        let V = model.spec.V;
        if let Some(id) = texts.iter().flatten().find(|id| **id as usize >= V) {
            let what = format!("token {id} is beyond its vocabulary of {V}: not a model for these texts");
            return Err(Error::content(self.model, "", what));
        }
        let logits = texts.iter().map(|ids| logits(b, &model, ids)).collect::<Result<_>>()?;
        let said = texts.first().map_or(Ok(Vec::new()), |ids| greedy(b, &model, ids))?;
        model.free(b);
        Ok(Ran { V, logits, said })
    }
}

struct Ran {
    V: usize,
    logits: Vec<Vec<f32>>,
    said: Vec<u32>,
}

fn logits(b: &dyn Backend, model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    let N = ids.len();
    let mut session = Session::new(b, model, N, N, Plan::Inference)?;
    session.forward(model, &Tokens::single(ids))?;
    session.logits(model, 0, N)
}

fn greedy(b: &dyn Backend, model: &Model, prompt: &[u32]) -> Result<Vec<u32>> {
    let mut ids = prompt.to_vec();
    for _ in 0..GREEDY {
        let all = logits(b, model, &ids)?;
        ids.push(likeliest(&all[all.len() - model.spec.V..]));
    }
    Ok(ids[prompt.len()..].to_vec())
}

fn likeliest(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0) as u32
}

/// ln Σ e^logit.
fn normalizer(logits: &[f32]) -> f64 {
    let most = logits.iter().fold(f32::NEG_INFINITY, |m, z| m.max(*z)) as f64;
    most + logits.iter().map(|z| (*z as f64 - most).exp()).sum::<f64>().ln()
}

/// What one token's two rows of logits come to.
#[derive(Clone, Copy)]
struct Row {
    kl: f64,
    difference: f64,
    same: bool,
    /// ln p of the token that the text goes on with, if it does.
    next: Option<[f64; 2]>,
}

/// The larger of two; NaN where either is one.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b <= a { a } else { b }
}

fn row(a: &[f32], b: &[f32], next: Option<u32>) -> Row {
    let (za, zb) = (normalizer(a), normalizer(b));
    let term = |(a, b): (&f32, &f32)| {
        let (a, b) = (*a as f64 - za, *b as f64 - zb);
        if a == f64::NEG_INFINITY { 0.0 } else { a.exp() * (a - b) }
    };
    let difference = a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).abs());
    Row {
        kl: larger(0.0, a.iter().zip(b).map(term).sum::<f64>()),
        difference: difference.fold(0.0, larger),
        same: likeliest(a) == likeliest(b),
        next: next.map(|id| [a[id as usize] as f64 - za, b[id as usize] as f64 - zb]),
    }
}

/// Runs both on the texts (token ids), in `dtype`.
pub fn compare(b: &dyn Backend, one: &Side, other: &Side, texts: &[Vec<u32>], dtype: DType) -> Result<Comparison> {
    if texts.iter().all(Vec::is_empty) {
        return Err(Error::Usage("there are no tokens to compare the models on".into()));
    }
    let ran = [one.run(b, texts, dtype)?, other.run(b, texts, dtype)?];
    let V = ran[0].V;
    if V != ran[1].V {
        let what = format!("its vocabulary has {} tokens, the other model's {V}: not comparable", ran[1].V);
        return Err(Error::content(other.model, "", what));
    }
    let rows: Vec<Row> = texts
        .par_iter()
        .zip(&ran[0].logits)
        .zip(&ran[1].logits)
        .flat_map_iter(|((ids, a), b)| {
            let rows = a.chunks(V).zip(b.chunks(V)).enumerate();
            rows.map(|(i, (a, b))| row(a, b, ids.get(i + 1).copied())).collect::<Vec<_>>()
        })
        .collect();
    let largest = |of: fn(&Row) -> f64| rows.iter().map(of).fold(0.0, larger);
    let next: Vec<[f64; 2]> = rows.iter().filter_map(|row| row.next).collect();
    let loss = |side: usize| -next.iter().map(|logp| logp[side]).sum::<f64>() / next.len().max(1) as f64;
    let alike = ran[0].said.iter().zip(&ran[1].said).take_while(|(a, b)| a == b).count();
    Ok(Comparison {
        tokens: rows.len(),
        mean_kl: rows.iter().map(|row| row.kl).sum::<f64>() / rows.len() as f64,
        max_kl: largest(|row| row.kl),
        max_logit: largest(|row| row.difference),
        top1: rows.iter().filter(|row| row.same).count() as f64 / rows.len() as f64,
        loss: [loss(0), loss(1)],
        greedy: (alike, ran[0].said.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_two_small_distributions() {
        // p = (3/4, 1/4), q = (1/2, 1/2)
        let got = row(&[3f32.ln(), 0.0], &[1.0, 1.0], Some(1));
        assert!((got.kl - (0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln())).abs() < 1e-7, "{}", got.kl);
        assert!((got.next.unwrap()[0] - 0.25f64.ln()).abs() < 1e-7 && !got.same);
        let same = row(&[3.0, 0.0], &[4.0, 1.0], None);
        assert!(same.kl < 1e-9 && same.same && (same.difference - 1.0).abs() < 1e-9);
        let odd = row(&[f32::NAN, 0.0], &[0.0, 0.0], None);
        assert!(odd.difference.is_nan() && odd.kl.is_nan());
    }
}
