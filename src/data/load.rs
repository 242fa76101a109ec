//! Sources -> examples: read, check and encode everything before any training.
use super::example::{Encoder, Example, TrainOn};
use super::examples::{Examples, Stores};
use super::finding::{Finding, Findings};
use super::record::{self, Body, Record};
use super::store::{self, Builder, Meta, Store};
use super::{DataOptions, Dataset, Progress, Report, Source, Template, Tokenizer, Watch, cache, merge, read};
use crate::error::{Error, Result};
use crate::rng::Rng;
use rayon::prelude::*;
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The stream of the seed that decides the split; epochs use 0, 1, 2 ...
const SPLIT_STREAM: u64 = u64::MAX;
/// Streams of the source that stands at 0, 1, 2 ...: which records its weight leaves, and who its chats go on with.
const WEIGHT_STREAMS: u64 = 1 << 62;
const EXTENSION_STREAMS: u64 = 1 << 61;

/// Reads, checks and encodes everything; examples keep the order of the files.
pub fn load(opts: &DataOptions, tokenizer: &Tokenizer) -> Result<Dataset> {
    load_watched(opts, tokenizer, &mut |_| true)
}

/// As [`load`]; `watch` sees how it goes.
pub fn load_watched(opts: &DataOptions, tokenizer: &Tokenizer, watch: &mut Watch) -> Result<Dataset> {
    check(opts)?;
    let mut loader = Loader { opts, tokenizer, watch, template: None, report: Report::default(), notes: vec![] };
    let (stores, of_source) = loader.stores(&opts.sources)?;
    let (eval_stores, _) = loader.stores(&opts.eval_sources)?;
    let (mut report, notes) = (loader.report, loader.notes);
    let kept = match opts.eval_split > 0.0 {
        true => split(stores.len(), opts)?,
        false => vec![true; stores.len()],
    };
    let picks = weigh(&kept, &of_source, opts)?;
    let held_out = || (0..kept.len()).filter(|i| !kept[*i]).collect();
    let eval = match opts.eval_sources.is_empty() {
        true => Examples::new(stores.clone(), held_out()),
        false => Examples::new(eval_stores.clone(), (0..eval_stores.len()).collect()),
    };
    let all = Examples::new(stores.clone(), (0..stores.len()).collect());
    duplicates(&all, &kept, &eval, opts.eval_sources.is_empty(), &mut report.findings);
    let mut data = Dataset { train: Examples::new(stores, picks), eval, report, notes };
    measure(&mut data);
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

struct Loader<'a, 'w> {
    opts: &'a DataOptions,
    tokenizer: &'a Tokenizer,
    watch: &'a mut Watch<'w>,
    /// Loaded when the first chat comes.
    template: Option<Template>,
    report: Report,
    notes: Vec<String>,
}

impl Loader<'_, '_> {
    /// The examples of all sources, and which of them are whose.
    fn stores(&mut self, sources: &[Source]) -> Result<(Arc<Stores>, Vec<Range<usize>>)> {
        let (mut stores, mut of_source, before, mut start) = (vec![], vec![], self.report.records, 0);
        for (i, source) in sources.iter().enumerate() {
            let store = self.source(source, i as u64)?;
            of_source.push(start..start + store.len());
            start += store.len();
            stores.push(store);
        }
        if let (0, Some(first)) = (start, sources.first()) {
            let what = format!(
                "the loss counts no token of any of the {} records; is there an assistant's message, and does \
                max_length = {} reach it?",
                self.report.records - before,
                self.opts.max_length
            );
            return Err(Error::content(&first.path, "", what));
        }
        Ok((Arc::new(Stores::new(stores)), of_source))
    }

    fn source(&mut self, source: &Source, index: u64) -> Result<Store> {
        let files = source.files(self.opts.pretrain)?;
        let mut notes = vec![];
        let (store, meta) = match &self.opts.cache {
            Some(folder) => {
                let before = cache::stamps(&files)?;
                let key = cache::key(source, index, &files, self.opts, self.tokenizer)?;
                let make = |builder: &mut Builder| {
                    let meta = self.encode_all(source, index, &files, builder)?;
                    unchanged(&files, before)?;
                    Ok(meta)
                };
                cache::get(folder, &key, &mut notes, make)?
            }
            None => {
                let mut builder = Builder::in_memory();
                let before = cache::stamps(&files)?;
                let meta = self.encode_all(source, index, &files, &mut builder)?;
                unchanged(&files, before)?;
                (builder.into_store(), meta)
            }
        };
        self.notes.extend(notes);
        self.tell(meta, &files)?;
        Ok(store)
    }

    /// Takes over what was seen of a source.
    fn tell(&mut self, meta: Meta, files: &[PathBuf]) -> Result<()> {
        if meta.chats {
            self.template()?;
        }
        self.report.files += files.len();
        self.report.records += meta.records;
        for (finding, count, file, at) in meta.findings {
            let place = || format!("{}: {at}", files.get(file).map_or(Path::new(""), PathBuf::as_path).display());
            self.report.findings.add(finding, count, place);
        }
        Ok(())
    }

    fn template(&mut self) -> Result<&Template> {
        if self.template.is_none() {
            let template = Template::load(self.opts.chat_template.as_deref(), self.tokenizer)?;
            let unknown = template.unknown_tokens(self.tokenizer);
            self.report.findings.add(Finding::TemplateTokens, unknown.len(), || unknown.join(", "));
            self.template = Some(template);
        }
        Ok(self.template.as_ref().expect("loaded above"))
    }

    fn encode_all(&mut self, source: &Source, index: u64, files: &[PathBuf], out: &mut Builder) -> Result<Meta> {
        let (mut all, mut meta): (Vec<(usize, Record)>, Meta) = (vec![], Meta::default());
        for (n, file) in files.iter().enumerate() {
            let mut rows = 0;
            let wants = |name: &str| record::wants(source, name);
            read::read(file, self.opts.pretrain, &wants, &mut |block| {
                rows += block.len();
                let records = record::records(file, source, block)?;
                match source.conversation_extension {
                    1 => self.encode(&records, |_| n, out, &mut meta)?,
                    _ => all.extend(records.into_iter().map(|record| (n, record))),
                }
                match (self.watch)(Progress { file, rows }) {
                    true => Ok(()),
                    false => Err(Error::Interrupted("interrupted while the data was encoded".into())),
                }
            })?;
            if rows == 0 {
                return Err(Error::content(file, "", "has no record"));
            }
        }
        let rng = Rng::stream(self.opts.seed, EXTENSION_STREAMS + index);
        let (of_file, records): (Vec<usize>, Vec<Record>) = all.into_iter().unzip();
        let records = merge::extend(records, source.conversation_extension, rng)?;
        self.encode(&records, |i| of_file[i], out, &mut meta)?;
        Ok(meta)
    }

    /// In parallel; the error is the first bad record's, whatever thread it came from. `file`: the number of a record's file.
    fn encode(
        &mut self,
        records: &[Record],
        file: impl Fn(usize) -> usize,
        out: &mut Builder,
        meta: &mut Meta,
    ) -> Result<()> {
        if records.iter().any(|r| matches!(r.body, Body::Chat { .. })) {
            meta.chats = true;
            self.template()?;
        }
        let pretrain = self.opts.pretrain;
        let encoder = Encoder {
            tokenizer: self.tokenizer,
            template: self.template.as_ref(),
            train_on: if pretrain { TrainOn::Everything } else { self.opts.train_on },
            max_length: if pretrain { usize::MAX } else { self.opts.max_length },
        };
        let encode = |record| {
            let (example, found) = encoder.encode(record)?;
            Ok((store::hash(&example.ids), example, found))
        };
        let encoded: Vec<Result<(u64, Example, Vec<Finding>)>> = records.par_iter().map(encode).collect();
        for (i, (record, result)) in records.iter().zip(encoded).enumerate() {
            let (hash, example, found) = result?;
            meta.records += 1;
            found.iter().for_each(|finding| meta.find(*finding, file(i), &record.at));
            if !found.contains(&Finding::WithoutTargets) {
                out.push(&example, hash)?;
            }
        }
        Ok(())
    }
}

fn unchanged(files: &[PathBuf], before: Vec<cache::Stamp>) -> Result<()> {
    let now = cache::stamps(files)?;
    match (0..files.len()).find(|i| now[*i] != before[*i]) {
        Some(i) => Err(Error::content(&files[i], "", "was changed while it was read: start again once it is whole")),
        None => Ok(()),
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
fn weigh(kept: &[bool], of_source: &[Range<usize>], opts: &DataOptions) -> Result<Vec<usize>> {
    let mut out = vec![];
    for (i, (source, range)) in opts.sources.iter().zip(of_source).enumerate() {
        let mut mine: Vec<usize> = range.clone().filter(|i| kept[*i]).collect();
        let (whole, part) = (source.weight.trunc() as usize, source.weight.fract());
        (0..whole).for_each(|_| out.extend(&mine));
        let some = (mine.len() as f64 * part).round() as usize;
        if whole == 0 && some == 0 && !mine.is_empty() {
            let what = format!("weight {} leaves none of {} records", source.weight, mine.len());
            return Err(Error::content(&source.path, "", what));
        }
        if some > 0 {
            Rng::stream(opts.seed, WEIGHT_STREAMS + i as u64).shuffle(&mut mine);
            mine.truncate(some);
            mine.sort();
            out.extend(mine);
        }
    }
    Ok(out)
}

/// What comes twice; of a split, an example that is evaluated and trained on counts as repeated, too.
fn duplicates(all: &Examples, kept: &[bool], eval: &Examples, is_split: bool, findings: &mut Findings) {
    let mut seen = HashSet::new();
    let repeated = all.hashes().filter(|hash| !seen.insert(*hash)).count();
    findings.add(Finding::Repeated, repeated, String::new);
    if is_split {
        seen = all.hashes().zip(kept).filter(|(_, kept)| **kept).map(|(hash, _)| hash).collect();
    }
    let shared = eval.hashes().filter(|hash| seen.contains(hash)).count();
    findings.add(Finding::EvalInTrain, shared, String::new);
}

/// Counts tokens, and hashes all of them with their masks.
fn measure(data: &mut Dataset) {
    let (mut hash, mut bytes) = (blake3::Hasher::new(), vec![]);
    for examples in [&data.train, &data.eval] {
        hash.update(&(examples.len() as u64).to_le_bytes());
        for example in examples.iter() {
            bytes.clear();
            bytes.extend((example.len() as u64).to_le_bytes());
            example.ids().for_each(|id| bytes.extend(id.to_le_bytes()));
            bytes.extend(example.trained().map(u8::from));
            hash.update(&bytes);
        }
    }
    data.report.tokens = data.train.iter().map(|example| example.len()).sum();
    data.report.targets = data.train.iter().map(|example| example.targets()).sum();
    data.report.fingerprint = hash.finalize().to_hex().to_string();
}
