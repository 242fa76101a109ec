//! The vocabulary of a GGUF tokenizer: tokens with their kinds.
use super::KEY;
use crate::error::Result;
use crate::io::gguf::{Gguf, Value as Meta};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// llama.cpp's numbers for kinds of tokens.
pub(super) const NORMAL: u64 = 1;
pub(super) const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;
pub(super) const USER_DEFINED: u64 = 4;
pub(super) const UNUSED: u64 = 5;
pub(super) const BYTE: u64 = 6;
/// Longer tokens are refused: every way to cut one in two is looked up.
const MAX_TOKEN: usize = 1024;

pub(super) struct Pieces<'a> {
    /// By id.
    pub texts: Vec<&'a str>,
    kinds: Vec<u64>,
}

/// An array of the tokenizer's metadata.
pub(super) fn list<'a>(gguf: &'a Gguf, key: &str) -> Result<&'a [Meta]> {
    let key = format!("{KEY}.{key}");
    gguf.get(&key).and_then(Meta::as_array).map_or_else(|| gguf.wrong(&key, "a list is wanted"), Ok)
}

/// The same of texts.
pub(super) fn texts<'a>(gguf: &'a Gguf, key: &str) -> Result<Vec<&'a str>> {
    let all = list(gguf, key)?.iter().map(Meta::as_text).collect::<Option<Vec<_>>>();
    all.map_or_else(|| gguf.wrong(&format!("{KEY}.{key}"), "a list of texts is wanted"), Ok)
}

impl<'a> Pieces<'a> {
    pub fn read(gguf: &'a Gguf) -> Result<Pieces<'a>> {
        let texts = texts(gguf, "tokens")?;
        let kinds = match gguf.get(&format!("{KEY}.token_type")) {
            None => vec![NORMAL; texts.len()],
            Some(_) => list(gguf, "token_type")?.iter().map(|kind| kind.as_u64().unwrap_or(0)).collect(),
        };
        if kinds.len() != texts.len() {
            let what = format!("{} kinds of {} tokens", kinds.len(), texts.len());
            return gguf.wrong(&format!("{KEY}.token_type"), what);
        }
        if let Some(long) = texts.iter().find(|text| text.len() > MAX_TOKEN) {
            let what = format!("a token may have {MAX_TOKEN} bytes, one has {}", long.len());
            return gguf.wrong(&format!("{KEY}.tokens"), what);
        }
        let pieces = Pieces { texts, kinds };
        let mut seen = HashSet::new();
        let twice = pieces.used().find(|id| !seen.insert(pieces.texts[*id]));
        match twice {
            Some(id) => gguf.wrong(&format!("{KEY}.tokens"), format!("{:?} is there twice", pieces.texts[id])),
            None => Ok(pieces),
        }
    }

    pub fn is_control(&self, id: usize) -> bool {
        self.kinds[id] == CONTROL
    }
    pub fn is_unknown(&self, id: usize) -> bool {
        self.kinds[id] == UNKNOWN
    }
    /// Whether text can be merged into it.
    pub fn is_text(&self, id: usize) -> bool {
        ![UNKNOWN, CONTROL, UNUSED, BYTE].contains(&self.kinds[id])
    }
    /// Ids of tokens, without those that only fill up the embedding's rows.
    pub fn used(&self) -> impl Iterator<Item = usize> + '_ {
        let filler = |id: usize| self.kinds[id] == UNUSED && self.texts[id].starts_with("[PAD");
        (0..self.texts.len()).filter(move |id| !filler(*id) && !self.texts[*id].is_empty())
    }
    /// `model.vocab`.
    pub fn vocab(&self) -> Map<String, Value> {
        self.used().map(|id| (self.texts[id].to_string(), json!(id))).collect()
    }
    /// `added_tokens`: what is found in a text before it is split.
    pub fn added(&self, strip_after: bool) -> Vec<Value> {
        let found = self.used().filter(|id| [UNKNOWN, CONTROL, USER_DEFINED].contains(&self.kinds[*id]));
        let added = |id: usize| {
            let special = self.kinds[id] != USER_DEFINED;
            let rstrip = strip_after && !["<unk>", "<s>", "<|endoftext|>"].contains(&self.texts[id]);
            json!({"id": id, "content": self.texts[id], "single_word": false, "lstrip": false, "rstrip": rstrip,
                "normalized": false, "special": special})
        };
        found.map(added).collect()
    }
}
