//! Data files -> batches: [`source`] finds files, [`read`] their rows, [`record`] says what a row is, [`template`] and
//! [`tokenizer`] turn records into token ids, [`example`] says which of these the loss counts, [`finding`] what is odd,
//! [`pack`] plans an epoch, [`batch`] builds its batches.
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
//! Files are read some 32 MB at a time and encoded in parallel; what stays in memory are the examples, 5 bytes a token.
pub mod batch;
pub mod builtin;
pub mod example;
pub mod finding;
mod load;
mod merge;
mod message;
pub mod pack;
mod python;
pub mod read;
pub mod record;
pub mod source;
pub mod template;
pub mod tokenizer;
mod tokenizer_check;

pub use batch::{Batch, IGNORE, batches};
pub use example::{Example, TrainOn};
pub use finding::{Finding, Findings};
pub use load::load;
pub use merge::check as check_merged_prompt;
pub use message::ROLES;
pub use pack::{BatchOptions, EpochPlan, Packing};
pub use source::Source;
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
}

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
    pub train: Vec<Example>,
    pub eval: Vec<Example>,
    pub report: Report,
}
