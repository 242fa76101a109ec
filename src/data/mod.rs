//! Data files -> batches: [`source`] finds files ([`hub`] fetches them), [`read`] their rows, [`record`] says what a row is, [`template`] and
//! [`tokenizer`] turn records into token ids ([`new_tokens`]
//! gives a tokenizer more), [`example`] says which of these the loss counts, [`finding`] what is odd,
//! [`cache`] keeps them, [`pack`] plans an epoch, [`batch`] builds its batches.
//!
//! ```no_run
//! # fn main() -> luthier::error::Result<()> {
//! use luthier::data::{self, BatchOptions, DataOptions, Packing, Source, Tokenizer};
//! let tokenizer = Tokenizer::load("model".as_ref())?;
//! let sources = vec![Source::new("chats/*.jsonl"), Source { weight: 0.5, ..Source::new("more.parquet") }];
//! let data = data::load(&DataOptions { sources, max_length: 2048, ..Default::default() }, &tokenizer)?;
//! let pad_id = tokenizer.pad_id();
//! let opts = BatchOptions { max_length: 2048, rows: 4, packing: Packing::Bfd, seed: 0, shuffle: true, pad_id };
//! for batch in data::batches(&data.train, &opts, 0) {
//!     assert_eq!(batch.ids.len(), 4 * 2048);
//! }
//! # Ok(()) }
//! ```
//!
//! Files are read some 8 MB at a time and encoded in parallel. Tokens take 4 bytes each in memory, or lie in a file
//! of the [`cache`] that is mapped, and then some 100 bytes an example stay in memory, however long it is.
pub mod batch;
pub mod builtin;
pub mod cache;
pub mod example;
pub mod examples;
pub mod finding;
pub mod gguf;
pub mod hub;
mod load;
mod merge;
mod message;
pub mod new_tokens;
pub mod pack;
mod python;
pub mod read;
pub mod record;
pub mod source;
mod store;
pub mod template;
mod token_bytes;
pub mod tokenizer;
mod tokenizer_check;

pub use batch::{Batch, IGNORE, batches};
pub use example::{Example, TrainOn};
pub use examples::{ExampleRef, Examples};
pub use finding::{Finding, Findings};
pub use load::{load, load_watched};
pub use merge::check as check_merged_prompt;
pub use message::ROLES;
pub use new_tokens::NewTokens;
pub use pack::{BatchOptions, EpochPlan, Packing};
pub use source::Source;
use std::path::{Path, PathBuf};
pub use template::{Chat, Template};
pub use tokenizer::Tokenizer;

#[derive(Clone, Debug, Default)]
pub struct DataOptions {
    pub sources: Vec<Source>,
    pub eval_sources: Vec<Source>,
    /// The part of `sources` that is kept for evaluation, 0 <= eval_split < 1; not with eval_sources.
    pub eval_split: f64,
    /// Of the split, of the records that a weight chooses, and of chats that go on with others.
    pub seed: u64,
    /// Examples are cut to this many tokens; documents of a pretraining are not, they go on in the next row.
    pub max_length: usize,
    pub train_on: TrainOn,
    /// Documents: plain text files are taken too, and every token is trained.
    pub pretrain: bool,
    /// The name of a built-in template, a `.jinja` file, or None for the model's own.
    pub chat_template: Option<String>,
    /// The folder where tokens are kept for the next time, see [`cache`]; None: in memory.
    pub cache: Option<PathBuf>,
}

/// How far a file is encoded.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    pub file: &'a Path,
    /// Records of it so far.
    pub rows: usize,
}

/// Sees progress block by block; `false` ends the loading with [`Error::Interrupted`](crate::error::Error::Interrupted).
pub type Watch<'w> = dyn FnMut(Progress) -> bool + 'w;

/// What [`load`] did. records = those of train, before weights, + eval + without targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub files: usize,
    pub records: usize,
    /// Tokens of the train examples, and how many of them count in the loss.
    pub tokens: usize,
    pub targets: usize,
    pub findings: Findings,
    /// Changes if any example, its mask or the split does.
    pub fingerprint: String,
}

pub struct Dataset {
    pub train: Examples,
    pub eval: Examples,
    pub report: Report,
    /// Where tokens came from; unlike the report not the same for the same data.
    pub notes: Vec<String>,
}
