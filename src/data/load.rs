//! Sources -> examples: read, check and encode everything before any training.
use super::example::{Encoder, Example, TrainOn};
use super::finding::{Finding, Findings};
use super::record::{self, Body, Record};
use super::{DataOptions, Dataset, Report, Source, Template, Tokenizer, merge, read};
use crate::error::{Error, Result};
use crate::rng::Rng;
use rayon::prelude::*;
use std::collections::HashSet;
use std::ops::Range;

/// The stream of the seed that decides the split; epochs use 0, 1, 2 ...
const SPLIT_STREAM: u64 = u64::MAX;
/// Streams of the source that stands at 0, 1, 2 ...: which records its weight leaves, and who its chats go on with.
const WEIGHT_STREAMS: u64 = 1 << 62;
const EXTENSION_STREAMS: u64 = 1 << 61;

/// Reads, checks and encodes everything; examples keep the order of the files.
pub fn load(opts: &DataOptions, tokenizer: &Tokenizer) -> Result<Dataset> {
    check(opts)?;
    let mut loader = Loader { opts, tokenizer, template: None, report: Report::default() };
    let (train, of_source) = loader.examples(&opts.sources)?;
    let (mut eval, _) = loader.examples(&opts.eval_sources)?;
    let mut kept = vec![true; train.len()];
    if opts.eval_split > 0.0 {
        kept = split(train.len(), opts)?;
        eval.extend(train.iter().zip(&kept).filter(|(_, kept)| !**kept).map(|(example, _)| example.clone()));
    }
    let mut report = loader.report;
    duplicates(&train, &kept, &eval, opts.eval_sources.is_empty(), &mut report.findings);
    let train = weigh(train, &kept, &of_source, opts)?;
    report.tokens = train.iter().map(Example::len).sum();
    report.targets = train.iter().map(Example::targets).sum();
    let mut data = Dataset { train, eval, report };
    data.report.fingerprint = fingerprint(&data);
    Ok(data)
}

fn check(opts: &DataOptions) -> Result<()> {
    let wrong = |what: String| Err(Error::Usage(what));
    if opts.sources.is_empty() {
        return wrong("no data files are given".into());
    }
    if opts.max_length < 2 {
        return wrong(format!("max_length must be at least 2, got {}", opts.max_length));
    }
    if !(0.0..1.0).contains(&opts.eval_split) {
        return wrong(format!("eval_split must be at least 0 and below 1, got {}", opts.eval_split));
    }
    if opts.eval_split > 0.0 && !opts.eval_sources.is_empty() {
        return wrong("give eval_split or eval files, not both".into());
    }
    for source in opts.sources.iter().chain(&opts.eval_sources) {
        if !(source.weight > 0.0 && source.weight <= 1e6) {
            return wrong(format!(
                "{}: weight must be more than 0 and at most 1e6, got {}",
                source.path, source.weight
            ));
        }
        if source.conversation_extension == 0 {
            return wrong(format!("{}: conversation_extension must be 1 or more", source.path));
        }
    }
    match opts.eval_sources.iter().find(|source| source.weight != 1.0) {
        Some(source) => wrong(format!("{}: an evaluation sees each record once; take its weight out", source.path)),
        None => Ok(()),
    }
}

struct Loader<'a> {
    opts: &'a DataOptions,
    tokenizer: &'a Tokenizer,
    /// Loaded when the first chat comes.
    template: Option<Template>,
    report: Report,
}

impl Loader<'_> {
    /// The examples of all sources, and which of them are whose.
    fn examples(&mut self, sources: &[Source]) -> Result<(Vec<Example>, Vec<Range<usize>>)> {
        let (mut examples, mut of_source, before) = (vec![], vec![], self.report.records);
        for (i, source) in sources.iter().enumerate() {
            let start = examples.len();
            self.source(source, i as u64, &mut examples)?;
            of_source.push(start..examples.len());
        }
        if let (true, Some(first)) = (examples.is_empty(), sources.first()) {
            let what = format!(
                "the loss counts no token of any of the {} records; is there an assistant's message, and does \
                max_length = {} reach it?",
                self.report.records - before,
                self.opts.max_length
            );
            return Err(Error::content(&first.path, "", what));
        }
        Ok((examples, of_source))
    }

    fn source(&mut self, source: &Source, index: u64, examples: &mut Vec<Example>) -> Result<()> {
        let mut all: Vec<Record> = vec![];
        for file in source.files(self.opts.pretrain)? {
            self.report.files += 1;
            let mut rows = 0;
            let wants = |name: &str| record::wants(source, name);
            read::read(&file, self.opts.pretrain, &wants, &mut |block| {
                rows += block.len();
                let records = record::records(&file, source, block)?;
                match source.conversation_extension {
                    1 => self.encode(&records, examples),
                    _ => {
                        all.extend(records);
                        Ok(())
                    }
                }
            })?;
            if rows == 0 {
                return Err(Error::content(&file, "", "has no record"));
            }
        }
        let rng = Rng::stream(self.opts.seed, EXTENSION_STREAMS + index);
        self.encode(&merge::extend(all, source.conversation_extension, rng)?, examples)
    }

    /// In parallel; the error is the first bad record's, whatever thread it came from.
    fn encode(&mut self, records: &[Record], examples: &mut Vec<Example>) -> Result<()> {
        if self.template.is_none() && records.iter().any(|r| matches!(r.body, Body::Chat { .. })) {
            let template = Template::load(self.opts.chat_template.as_deref(), self.tokenizer)?;
            let unknown = template.unknown_tokens(self.tokenizer);
            self.report.findings.add(Finding::TemplateTokens, unknown.len(), || unknown.join(", "));
            self.template = Some(template);
        }
        let pretrain = self.opts.pretrain;
        let encoder = Encoder {
            tokenizer: self.tokenizer,
            template: self.template.as_ref(),
            train_on: if pretrain { TrainOn::Everything } else { self.opts.train_on },
            max_length: if pretrain { usize::MAX } else { self.opts.max_length },
        };
        let encoded: Vec<Result<(Example, Vec<Finding>)>> = records.par_iter().map(|r| encoder.encode(r)).collect();
        for (record, result) in records.iter().zip(encoded) {
            let (example, found) = result?;
            self.report.records += 1;
            for finding in &found {
                self.report.findings.add(*finding, 1, || format!("{}: {}", record.file.display(), record.at));
            }
            if !found.contains(&Finding::WithoutTargets) {
                examples.push(example);
            }
        }
        Ok(())
    }
}

/// Which of `n` examples are trained on: all but round(n · eval_split), at least one.
fn split(n: usize, opts: &DataOptions) -> Result<Vec<bool>> {
    if n < 2 {
        return Err(Error::Usage("eval_split needs at least two examples".into()));
    }
    let wanted = ((n as f64 * opts.eval_split).round() as usize).clamp(1, n - 1);
    let mut order: Vec<usize> = (0..n).collect();
    Rng::stream(opts.seed, SPLIT_STREAM).shuffle(&mut order);
    let mut kept = vec![true; n];
    order[..wanted].iter().for_each(|i| kept[*i] = false);
    Ok(kept)
}

/// Takes each source's kept examples as often as its weight says.
fn weigh(all: Vec<Example>, kept: &[bool], of_source: &[Range<usize>], opts: &DataOptions) -> Result<Vec<Example>> {
    if opts.sources.iter().all(|source| source.weight == 1.0) {
        return Ok(all.into_iter().zip(kept).filter(|(_, kept)| **kept).map(|(example, _)| example).collect());
    }
    let mut out = vec![];
    for (i, (source, range)) in opts.sources.iter().zip(of_source).enumerate() {
        let mut mine: Vec<usize> = range.clone().filter(|i| kept[*i]).collect();
        let (whole, part) = (source.weight.trunc() as usize, source.weight.fract());
        for _ in 0..whole {
            out.extend(mine.iter().map(|i| all[*i].clone()));
        }
        let some = (mine.len() as f64 * part).round() as usize;
        if whole == 0 && some == 0 && !mine.is_empty() {
            let what = format!("weight {} leaves none of {} records", source.weight, mine.len());
            return Err(Error::content(&source.path, "", what));
        }
        Rng::stream(opts.seed, WEIGHT_STREAMS + i as u64).shuffle(&mut mine);
        mine.truncate(some);
        mine.sort();
        out.extend(mine.into_iter().map(|i| all[i].clone()));
    }
    Ok(out)
}

/// What comes twice; of a split, an example that is evaluated and trained on counts as repeated, too.
fn duplicates(train: &[Example], kept: &[bool], eval: &[Example], is_split: bool, findings: &mut Findings) {
    let hash = |example: &Example| *blake3::hash(bytemuck::cast_slice(&example.ids)).as_bytes();
    let mut seen = HashSet::new();
    let repeated = train.iter().filter(|example| !seen.insert(hash(example))).count();
    findings.add(Finding::Repeated, repeated, String::new);
    if is_split {
        seen = train.iter().zip(kept).filter(|(_, kept)| **kept).map(|(example, _)| hash(example)).collect();
    }
    let shared = eval.iter().filter(|example| seen.contains(&hash(example))).count();
    findings.add(Finding::EvalInTrain, shared, String::new);
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
