//! Text <-> token ids, from the files a Hugging Face model directory has: `tokenizer.json`, `tokenizer_config.json`,
//! `special_tokens_map.json`, `generation_config.json`, `chat_template.jinja`.
//!
//! The files are untrusted: [`tokenizer_check`](super::tokenizer_check) looks first, and a panic of the crate is an error here.
use super::token_bytes::Writing;
use super::{NewTokens, tokenizer_check};
use crate::error::{Error, Result};
use crate::io::gguf::{self, Gguf};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

pub(super) const MAX_TOKENIZER: u64 = 64 << 20;
pub(super) const MAX_CONFIG: u64 = 16 << 20;
/// Loading ends with encoding and decoding this: a tokenizer that fails on plain text fails now.
const PROBE: &str = "The quick brown fox, 1234 jumps\n\n\tover «ünïcödé» 汉字 🙂 dogs.  ";

/// A model's chat template and the file it came from.
#[derive(Clone, Debug)]
pub struct TemplateText {
    pub file: PathBuf,
    pub text: String,
}

/// A token id with the bytes `start..end` of the text that it stands for.
pub type Token = (u32, std::ops::Range<usize>);

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: PathBuf,
    vocab_size: usize,
    /// `bos_token` -> `<s>` and so on, as a chat template may ask for them.
    names: BTreeMap<String, String>,
    special: Vec<String>,
    /// Ids of tokens beside the vocabulary, whose texts are what they stand for.
    added: BTreeSet<u32>,
    writing: Writing,
    eos: Vec<u32>,
    template: Option<TemplateText>,
    fingerprint: String,
}

impl Tokenizer {
    /// Reads a model directory, of which only `tokenizer.json` must be there, or a GGUF file. A `tokenizer.json` beside a GGUF
    /// file wins over what is in it.
    pub fn load(path: &Path) -> Result<Tokenizer> {
        Tokenizer::load_with(path, &NewTokens::default())
    }

    /// The same with more tokens.
    pub fn load_with(path: &Path, new: &NewTokens) -> Result<Tokenizer> {
        let mut parts = parts(path)?;
        new.apply(&mut parts)?;
        let Parts { file, json, config_file, names, template, generation_file, generation } = parts;
        let writing = Writing::of(&json);
        let (inner, text) = open(&file, json)?;
        let all = serde_json::json!([text, names, generation.get("eos_token_id")]);
        let fingerprint = blake3::hash(all.to_string().as_bytes()).to_hex().to_string();
        let vocab = inner.get_vocab(true);
        let added = inner.get_added_tokens_decoder();
        let special = added.values().filter(|t| t.special).map(|t| t.content.clone()).collect();
        let added = added.into_keys().collect();
        let vocab_size = vocab.values().max().map_or(0, |id| *id as usize + 1);
        let eos = vec![];
        let mut tokenizer =
            Tokenizer { inner, file, vocab_size, names, special, added, writing, eos, template, fingerprint };
        tokenizer.special.sort();
        tokenizer.eos = tokenizer.eos_ids_of(&config_file, &generation_file, generation)?;
        tokenizer.probe()?;
        Ok(tokenizer)
    }

    /// Takes over the chat template of another directory, if it has one.
    pub fn adopt_template(&mut self, dir: &Path) -> Result<()> {
        let config_file = dir.join("tokenizer_config.json");
        if let Some(own) = template(dir, &config_file, &object(&config_file)?)? {
            self.template = Some(own);
        }
        Ok(())
    }

    /// The ids of `text`; with `add_special_tokens` as the tokenizer's own post-processor frames it (BOS, ..).
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.guard("encode", || self.inner.encode_fast(text, add_special_tokens))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`Tokenizer::encode`], each id with its place in `text`; a framing token has an empty one at 0.
    pub fn encode_spans(&self, text: &str, add_special_tokens: bool) -> Result<Vec<Token>> {
        let encoding = self.guard("encode", || self.inner.encode(text, add_special_tokens))?;
        Ok(encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .map(|(id, (start, end))| (*id, *start..*end))
            .collect())
    }

    /// The text of `ids`; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.guard("decode", || self.inner.decode(ids, skip_special_tokens))
    }

    /// For text that comes token by token.
    pub fn stream(&self, skip_special_tokens: bool) -> Stream<'_> {
        Stream { tokenizer: self, skip_special_tokens, ids: vec![], shown: 0, context: 0 }
    }

    /// One more than the largest id; a model's embedding must have at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
    pub fn bos_id(&self) -> Option<u32> {
        self.named("bos_token")
    }
    /// Whether a text of this model begins with BOS.
    pub fn adds_bos(&self) -> Result<bool> {
        Ok(self.bos_id().is_some() && self.encode("", true)?.first().copied() == self.bos_id())
    }
    /// What ends a document: `eos_token`, else the first id of `generation_config.json`.
    pub fn eos_id(&self) -> Option<u32> {
        self.named("eos_token").or(self.eos.first().copied())
    }
    /// Whatever ends a generation: `eos_token` and all of `generation_config.json`.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }
    /// Fills what no loss and no other token sees: `pad_token`, else EOS, else 0.
    pub fn pad_id(&self) -> u32 {
        self.named("pad_token").or(self.eos_id()).unwrap_or(0)
    }
    /// The texts of the special tokens, sorted.
    pub fn special_tokens(&self) -> &[String] {
        &self.special
    }
    /// `bos_token`, `eos_token`, `pad_token` .. with their texts.
    pub fn special_names(&self) -> &BTreeMap<String, String> {
        &self.names
    }
    /// The model's own chat template.
    pub fn chat_template(&self) -> Option<&TemplateText> {
        self.template.as_ref()
    }
    pub fn file(&self) -> &Path {
        &self.file
    }
    /// Of all that decides how texts become ids, and of the named tokens; not of the chat template.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// As in tokenizer.json.
    pub(super) fn json(&self) -> Result<Value> {
        let text = self.guard("save", || self.inner.to_string(false))?;
        parse(&self.file, &text)
    }

    /// The bytes that a token stands for, also of one that is a part of a character.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        let text = self.id_to_token(id).unwrap_or_default();
        if self.added.contains(&id) { text.into_bytes() } else { self.writing.bytes(&text) }
    }

    fn named(&self, name: &str) -> Option<u32> {
        self.token_to_id(self.names.get(name)?)
    }

    fn guard<T>(&self, verb: &str, f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
        guard(&self.file, verb, f)
    }

    fn eos_ids_of(&self, config: &Path, file: &Path, mut generation: Map<String, Value>) -> Result<Vec<u32>> {
        for name in ["bos_token", "eos_token", "pad_token"] {
            if let Some(token) = self.names.get(name).filter(|t| self.token_to_id(t).is_none()) {
                return Err(Error::content(
                    config,
                    name,
                    format!("{token:?} is not a token of {}", self.file.display()),
                ));
            }
        }
        let mut ids: Vec<u32> = self.named("eos_token").into_iter().collect();
        let more = generation.remove("eos_token_id").unwrap_or(Value::Null);
        let more = if let Value::Array(list) = more { list } else { vec![more] };
        for id in more.iter().filter(|id| !id.is_null()) {
            let Some(id) = id.as_u64().filter(|id| *id < self.vocab_size as u64) else {
                let what = format!("must be ids of tokens (below {}), got {id}", self.vocab_size);
                return Err(Error::content(file, "eos_token_id", what));
            };
            ids.push(id as u32);
        }
        let mut seen = vec![];
        ids.retain(|id| !seen.contains(id) && (seen.push(*id), true).1);
        Ok(ids)
    }

    fn probe(&self) -> Result<()> {
        let mut ids = self.encode(PROBE, true)?;
        ids.extend(self.encode_spans(PROBE, false)?.iter().map(|token| token.0));
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(Error::content(
                &self.file,
                "",
                format!("encodes a plain text to the id {id}, which is no token"),
            ));
        }
        self.decode(&ids, false).map(|_| ())
    }
}

/// Decodes ids as they come: [`Stream::push`] gives the text that has become certain.
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    ids: Vec<u32>,
    /// ids[context..shown] have been shown; they are decoded again, for a decoder may treat a text's first token apart.
    context: usize,
    shown: usize,
}

impl Stream<'_> {
    /// Empty while the ids end within a character.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.rest()?;
        if text.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        if !text.is_empty() {
            (self.context, self.shown) = (self.shown, self.ids.len());
        }
        Ok(text)
    }

    /// What is left at the end, with U+FFFD for an unfinished character.
    pub fn finish(mut self) -> Result<String> {
        self.rest()
    }

    fn rest(&mut self) -> Result<String> {
        let old = self.tokenizer.decode(&self.ids[self.context..self.shown], self.skip_special_tokens)?;
        let all = self.tokenizer.decode(&self.ids[self.context..], self.skip_special_tokens)?;
        Ok(all.get(old.len()..).unwrap_or_default().to_string())
    }
}

/// Runs code of the `tokenizers` crate; its errors and its panics become ours.
fn guard<T>(file: &Path, verb: &str, f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Error::content(file, "", format!("this tokenizer cannot {verb}: {e}"))),
        Err(_) => Err(Error::content(file, "", format!("this tokenizer contradicts itself: it failed to {verb}"))),
    }
}

/// What a tokenizer is made from, with the files that errors about it should name.
pub(super) struct Parts {
    pub file: PathBuf,
    /// As in tokenizer.json.
    pub json: Value,
    pub config_file: PathBuf,
    /// `bos_token` -> `<s>` ..
    pub names: BTreeMap<String, String>,
    pub template: Option<TemplateText>,
    pub generation_file: PathBuf,
    /// As in generation_config.json.
    pub generation: Map<String, Value>,
}

fn parts(path: &Path) -> Result<Parts> {
    let Some(gguf) = gguf::find(path)? else { return parts_of(path) };
    let inside = Gguf::open(&gguf)?;
    if !gguf.with_file_name("tokenizer.json").exists() {
        return super::gguf::parts(&inside);
    }
    let beside = parts_of(gguf.parent().unwrap_or(Path::new("")))?;
    let template = beside.template.or_else(|| super::gguf::template(&inside));
    Ok(Parts { template, ..beside })
}

fn parts_of(dir: &Path) -> Result<Parts> {
    let file = dir.join("tokenizer.json");
    let config_file = dir.join("tokenizer_config.json");
    let config = object(&config_file)?;
    let json = read_json(&file)?;
    let mut names = special_names(&object(&dir.join("special_tokens_map.json"))?);
    names.extend(special_names(&config));
    let template = template(dir, &config_file, &config)?;
    let generation_file = dir.join("generation_config.json");
    let generation = object(&generation_file)?;
    Ok(Parts { file, json, config_file, names, template, generation_file, generation })
}

fn read_json(file: &Path) -> Result<Value> {
    if !file.exists() && file.with_file_name("tokenizer.model").exists() {
        let what =
            "is missing; there is only tokenizer.model: convert it with transformers' AutoTokenizer, save_pretrained";
        return Err(Error::content(file, "", what));
    }
    parse(file, &read(file, MAX_TOKENIZER)?)
}

/// The tokenizer, and the text it was made from.
fn open(file: &Path, mut json: Value) -> Result<(tokenizers::Tokenizer, String)> {
    tokenizer_check::check(&mut json).map_err(|(at, what)| Error::content(file, at, what))?;
    let text = json.to_string();
    let mut inner = guard(file, "load", || tokenizers::Tokenizer::from_bytes(&text))?;
    inner.with_padding(None);
    Ok((inner, text))
}

/// The text of `file`, of at most `limit` bytes, without a byte order mark.
pub(super) fn read(file: &Path, limit: u64) -> Result<String> {
    let size = std::fs::metadata(file).map_err(Error::read(file))?.len();
    if size > limit {
        return Err(Error::content(file, "", format!("has {size} bytes; at most {limit} are read")));
    }
    let bytes = std::fs::read(file).map_err(Error::read(file))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::content(file, "", format!("must be UTF-8, is not at byte {}", e.utf8_error().valid_up_to()))
    })?;
    Ok(text.strip_prefix('\u{FEFF}').map(str::to_string).unwrap_or(text))
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(file: &Path, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::content(file, format!("line {}", e.line()), format!("bad JSON: {e}")))
}

/// A file that may be absent, as a JSON object.
fn object(file: &Path) -> Result<Map<String, Value>> {
    if file.exists() { parse(file, &read(file, MAX_CONFIG)?) } else { Ok(Map::new()) }
}

/// The entries `x_token`, which are texts or objects with a `content`.
fn special_names(config: &Map<String, Value>) -> BTreeMap<String, String> {
    let named = config.iter().filter(|(name, _)| name.ends_with("_token"));
    let texts = named.filter_map(|(name, v)| Some((name.clone(), v.as_str().or(v["content"].as_str())?.to_string())));
    texts.collect()
}

/// `chat_template.jinja` wins over the config's entry, as in transformers; of a list of named ones, `default`.
fn template(dir: &Path, config_file: &Path, config: &Map<String, Value>) -> Result<Option<TemplateText>> {
    let file = dir.join("chat_template.jinja");
    if file.exists() {
        let text = read(&file, MAX_CONFIG)?;
        return Ok(Some(TemplateText { file, text }));
    }
    let text = match config.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(list)) => {
            let default = list.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str());
            let what = "is a list of named templates, and none is called `default`";
            default.ok_or_else(|| Error::content(config_file, "chat_template", what))?.to_string()
        }
        Some(_) => return Err(Error::content(config_file, "chat_template", "must be a text or a list of named texts")),
    };
    Ok(Some(TemplateText { file: config_file.to_path_buf(), text }))
}
