//! `luthier compare`: how far two models are apart on a text.
use super::{download, dtype, out};
use clap::Args;
use luthier::backend::pick;
use luthier::data::{self, BatchOptions, DataOptions, Packing};
use luthier::dtype::DType;
use luthier::export::compare::{Comparison, Side, compare};
use luthier::io::hub::Kind;
use luthier::{Error, Result};
use std::path::PathBuf;

/// Compare two models (folders, names on the Hub, GGUF files), with or without adapters, on the tokens of a text.
#[derive(Args)]
pub struct Compare {
    /// The model that counts as right; its tokenizer is used.
    a: PathBuf,
    b: PathBuf,
    /// An adapter for A: a folder as PEFT writes it, or its name on the Hub.
    #[arg(long)]
    adapter_a: Option<PathBuf>,
    /// The same for B.
    #[arg(long)]
    adapter_b: Option<PathBuf>,
    /// Text files and records, or names of data sets on the Hub, as for pretraining.
    #[arg(long, required = true, num_args = 1..)]
    data: Vec<String>,
    /// At most so many tokens are compared; the logits of all of A's lie in memory.
    #[arg(long, default_value_t = 2048)]
    max_tokens: usize,
    /// Tokens of a row.
    #[arg(long, default_value_t = 512)]
    max_length: usize,
    /// Storage of weights and activations.
    #[arg(long, default_value = "float32", value_parser = dtype)]
    dtype: DType,
    /// Where to run.
    #[arg(long, default_value = "auto", value_parser = pick::NAMES.to_vec())]
    backend: String,
}

impl Compare {
    pub fn run(self) -> Result<()> {
        let model = |path: &PathBuf| download::resolve(path, Kind::Model);
        let adapter =
            |path: &Option<PathBuf>| path.as_ref().map(|path| download::resolve(path, Kind::Adapter)).transpose();
        let (a, b) = (model(&self.a)?, model(&self.b)?);
        let (adapter_a, adapter_b) = (adapter(&self.adapter_a)?, adapter(&self.adapter_b)?);
        let one = Side { model: &a, adapter: adapter_a.as_deref() };
        let other = Side { model: &b, adapter: adapter_b.as_deref() };
        let texts = self.texts(&one)?;
        let (backend, which) = pick::pick(&self.backend)?;
        super::say!("{which}");
        out(&shown(&compare(&*backend, &one, &other, &texts, self.dtype)?))
    }

    fn texts(&self, side: &Side) -> Result<Vec<Vec<u32>>> {
        let Some(tokenizer) = side.tokenizer()? else {
            return Err(Error::content(side.model, "", "a tokenizer is wanted, to compare on texts"));
        };
        let sources = download::sources(&self.data)?;
        let data = DataOptions { sources, max_length: self.max_length, pretrain: true, ..DataOptions::default() };
        let data = data::load(&data, &tokenizer)?;
        let (max_length, pad_id) = (self.max_length, tokenizer.pad_id());
        let options = BatchOptions { max_length, rows: 1, packing: Packing::Wrapped, seed: 0, shuffle: false, pad_id };
        let (mut texts, mut left) = (Vec::new(), self.max_tokens);
        for batch in data::batches(&data.train, &options, 0) {
            let ids = &batch.ids[..batch.tokens.min(left)];
            left -= ids.len();
            texts.push(ids.to_vec());
            if left == 0 {
                break;
            }
        }
        Ok(texts)
    }
}

/// What was found, a line each.
pub fn shown(found: &Comparison) -> String {
    let Comparison { tokens, mean_kl, max_kl, max_logit, top1, loss: [a, b], greedy: (alike, said) } = found;
    format!(
        "tokens compared           {tokens}\nmean KL divergence        {mean_kl:.3e}\nmax KL divergence         {max_kl:.3e}\n\
         largest logit difference  {max_logit:.3e}\ntop-1 agreement           {:.2}%\nloss of A, of B           {a:.5}, {b:.5}\n\
         greedy tokens alike       {alike} of {said}\n",
        top1 * 100.0
    )
}
