//! Data files -> batches: [`source`] reads and checks records, [`template`] and [`tokenizer`] turn them into token ids,
//! [`example`] says which of these the loss counts, [`pack`] plans an epoch, [`batch`] builds its batches.
//!
//! ```no_run
//! # fn main() -> luthier::error::Result<()> {
//! use luthier::data::{self, BatchOptions, DataOptions, Packing, Tokenizer};
//! let tokenizer = Tokenizer::load("model".as_ref())?;
//! let files = vec!["chats/*.jsonl".to_string()];
//! let data = data::load(&DataOptions { files, max_length: 2048, assistant_only_loss: true, ..Default::default() }, &tokenizer)?;
//! let pad_id = tokenizer.pad_id();
//! let opts = BatchOptions { max_length: 2048, rows: 4, packing: Packing::Bfd, seed: 0, shuffle: true, pad_id };
//! for batch in data::batches(&data.train, &opts, 0) {
//!     assert_eq!(batch.ids.len(), 4 * 2048);
//! }
//! # Ok(()) }
//! ```
pub mod batch;
pub mod example;
pub mod gguf;
pub mod pack;
mod python;
pub mod source;
pub mod template;
pub mod tokenizer;
mod tokenizer_check;

pub use batch::{Batch, IGNORE, batches};
pub use example::Example;
pub use pack::{BatchOptions, EpochPlan, Packing};
pub use template::{Chat, Template};
pub use tokenizer::Tokenizer;

use crate::error::{Error, Result};
use crate::rng::Rng;
use example::{Encoder, Notes};
use rayon::prelude::*;
use source::{Body, Record};

/// The stream of the seed that decides the split; epochs use 0, 1, 2 ...
const SPLIT_STREAM: u64 = u64::MAX;

#[derive(Clone, Debug, Default)]
pub struct DataOptions {
    /// Paths and globs.
    pub files: Vec<String>,
    pub eval_files: Vec<String>,
    /// The part of `files` that is kept for evaluation, 0 <= eval_split < 1; not with eval_files.
    pub eval_split: f64,
    pub seed: u64,
    /// Examples are cut to this many tokens; documents of a pretraining are not, they go on in the next row.
    pub max_length: usize,
    pub assistant_only_loss: bool,
    /// Documents: plain text files are taken too, and every token is trained.
    pub pretrain: bool,
    /// `chatml`, a `.jinja` file, or None for the model's own.
    pub chat_template: Option<String>,
}

/// What [`load`] did. records = train + eval + without_targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub files: usize,
    pub records: usize,
    /// Tokens of the train examples, and how many of them count in the loss.
    pub tokens: usize,
    pub targets: usize,
    /// Examples that were cut to max_length.
    pub truncated: usize,
    /// Examples that were left out, for the loss would count none of their tokens.
    pub without_targets: usize,
    /// Examples whose text did not end with a special token, so that EOS was appended.
    pub eos_added: usize,
    /// Chats with the text of a special token in a message.
    pub special_in_content: usize,
    /// Changes if any example, its mask or the split does.
    pub fingerprint: String,
}

pub struct Dataset {
    pub train: Vec<Example>,
    pub eval: Vec<Example>,
    pub report: Report,
}

/// Reads, checks and encodes everything; examples keep the order of the files.
pub fn load(opts: &DataOptions, tokenizer: &Tokenizer) -> Result<Dataset> {
    check(opts)?;
    let (train, eval) = (records(&opts.files, opts.pretrain)?, records(&opts.eval_files, opts.pretrain)?);
    let chats = train.1.iter().chain(&eval.1).any(|r| matches!(r.body, Body::Chat(_)));
    let template = if chats { Some(Template::load(opts.chat_template.as_deref(), tokenizer)?) } else { None };
    let encoder = Encoder {
        tokenizer,
        template: template.as_ref(),
        assistant_only_loss: opts.assistant_only_loss && !opts.pretrain,
        max_length: if opts.pretrain { usize::MAX } else { opts.max_length },
    };
    let mut report = Report { files: train.0 + eval.0, ..Report::default() };
    let mut data = Dataset {
        train: encode(&encoder, &train.1, &mut report)?,
        eval: encode(&encoder, &eval.1, &mut report)?,
        report,
    };
    if opts.eval_split > 0.0 {
        split(&mut data, opts)?;
    }
    data.report.tokens = data.train.iter().map(Example::len).sum();
    data.report.targets = data.train.iter().map(Example::targets).sum();
    data.report.fingerprint = fingerprint(&data);
    Ok(data)
}

fn check(opts: &DataOptions) -> Result<()> {
    let wrong = |what: String| Err(Error::Usage(what));
    if opts.files.is_empty() {
        return wrong("no data files are given".into());
    }
    if opts.max_length < 2 {
        return wrong(format!("max_length must be at least 2, got {}", opts.max_length));
    }
    if !(0.0..1.0).contains(&opts.eval_split) {
        return wrong(format!("eval_split must be at least 0 and below 1, got {}", opts.eval_split));
    }
    if opts.eval_split > 0.0 && !opts.eval_files.is_empty() {
        return wrong("give eval_split or eval files, not both".into());
    }
    Ok(())
}

/// The number of files and all their records.
fn records(entries: &[String], pretrain: bool) -> Result<(usize, Vec<Record>)> {
    let files = source::files(entries)?;
    let mut all = vec![];
    for file in &files {
        all.extend(source::read(file, pretrain)?);
    }
    Ok((files.len(), all))
}

/// In parallel; the error is the first bad record's, whatever thread it came from.
fn encode(encoder: &Encoder, records: &[Record], report: &mut Report) -> Result<Vec<Example>> {
    let encoded: Vec<Result<(Example, Notes)>> = records.par_iter().map(|record| encoder.encode(record)).collect();
    let mut examples = vec![];
    for result in encoded {
        let (example, notes) = result?;
        report.records += 1;
        report.truncated += notes.truncated as usize;
        report.eos_added += notes.eos_added as usize;
        report.special_in_content += notes.special_in_content as usize;
        if example.targets() > 0 {
            examples.push(example);
        } else {
            report.without_targets += 1;
        }
    }
    if let (true, Some(first)) = (examples.is_empty(), records.first()) {
        let what = format!(
            "the loss counts no token of any of the {} records; is there an assistant's message, and does \
            max_length = {} reach it?",
            records.len(),
            encoder.max_length
        );
        return Err(Error::content(&*first.file, "", what));
    }
    Ok(examples)
}

/// Takes round(n · eval_split) examples, at least one, out of `train`; both keep their order.
fn split(data: &mut Dataset, opts: &DataOptions) -> Result<()> {
    let n = data.train.len();
    if n < 2 {
        return Err(Error::Usage("eval_split needs at least two examples".into()));
    }
    let wanted = ((n as f64 * opts.eval_split).round() as usize).clamp(1, n - 1);
    let mut order: Vec<usize> = (0..n).collect();
    Rng::stream(opts.seed, SPLIT_STREAM).shuffle(&mut order);
    let mut chosen = vec![false; n];
    order[..wanted].iter().for_each(|i| chosen[*i] = true);
    for (example, eval) in std::mem::take(&mut data.train).into_iter().zip(chosen) {
        if eval { &mut data.eval } else { &mut data.train }.push(example);
    }
    Ok(())
}

fn fingerprint(data: &Dataset) -> String {
    let mut hash = blake3::Hasher::new();
    for examples in [&data.train, &data.eval] {
        hash.update(&(examples.len() as u64).to_le_bytes());
        for example in examples {
            hash.update(&(example.len() as u64).to_le_bytes());
            hash.update(bytemuck::cast_slice(&example.ids));
            hash.update(&example.trained.iter().map(|t| *t as u8).collect::<Vec<_>>());
        }
    }
    hash.finalize().to_hex().to_string()
}
