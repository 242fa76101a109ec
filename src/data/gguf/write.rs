//! A tokenizer as a GGUF file's metadata: what `parts` reads, and llama.cpp.
//!
//! Byte-level BPE goes with its merges and the name of its splitting rule. SentencePiece's BPE goes with scores instead: a
//! token's is minus the place of the first merge that makes it, so that merges come in their order.
use super::pieces::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use super::{KEY, ROLES, bpe};
use crate::data::{Template, Tokenizer};
use crate::error::{Error, Result};
use crate::io::gguf::{Item, Pairs};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// The metadata of a tokenizer for a model of V tokens, its chat template among them.
pub fn metadata(tokenizer: &Tokenizer, V: usize) -> Result<Pairs> {
    let json = tokenizer.json()?;
    let model = &json["model"];
    let wrong = |at: &str, what: &str| Err(Error::content(tokenizer.file(), at, what));
    if model["type"] != "BPE" {
        return wrong("model.type", "only BPE can be stored in a GGUF file: byte-level, or SentencePiece's");
    }
    let pieces = model["byte_fallback"] == true;
    let mut pairs = Pairs::new();
    let mut put = |key: &str, item: Item| pairs.push((format!("{KEY}.{key}"), item));
    put("model", Item::Text(if pieces { "llama" } else { "gpt2" }.into()));
    let merges = merges(model);
    if pieces {
        put("pre", Item::Text("default".into()));
        put("add_space_prefix", Item::Bool(space_prefix(&json)));
    } else {
        let Some(name) = bpe::name(&json) else {
            let what = format!("llama.cpp has no name for how it splits text; known: {}", bpe::names().join(", "));
            return wrong("pre_tokenizer", &what);
        };
        put("pre", Item::Text(name.into()));
    }
    let tokens = tokens(&json, V, pieces);
    if pieces {
        put("scores", Item::F32s(scores(&tokens, &merges)));
    }
    let (texts, kinds) = tokens.into_iter().unzip();
    put("tokens", Item::Texts(texts));
    put("token_type", Item::I32s(kinds));
    if !pieces {
        put("merges", Item::Texts(merges.iter().map(|(a, b)| format!("{a} {b}")).collect()));
    }
    for (role, key) in ROLES {
        let id = tokenizer.special_names().get(role).and_then(|token| tokenizer.token_to_id(token));
        if let Some(id) = id {
            put(key, Item::U32(id));
        }
    }
    // what ends a turn, where it is not what ends a document
    if let Some(id) = tokenizer.eos_ids().iter().find(|id| Some(**id) != tokenizer.eos_id()) {
        put("eot_token_id", Item::U32(*id));
    }
    put("add_bos_token", Item::Bool(tokenizer.adds_bos()?));
    put("add_eos_token", Item::Bool(tokenizer.encode("a", true)?.last().copied() == tokenizer.eos_id()));
    if tokenizer.chat_template().is_some() {
        pairs.push(("tokenizer.chat_template".into(), Item::Text(Template::portable_own(tokenizer)?)));
    }
    Ok(pairs)
}

/// Pairs, in the order they are made; older files have them as one text.
fn merges(model: &Value) -> Vec<(String, String)> {
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())),
        other => Some((other[0].as_str()?.to_string(), other[1].as_str()?.to_string())),
    };
    model["merges"].as_array().into_iter().flatten().filter_map(pair).collect()
}

/// Whether a text begins with a blank of the tokenizer's own.
fn space_prefix(json: &Value) -> bool {
    let all = |stage: &Value, list: &str| match stage[list].as_array() {
        Some(stages) => stages.clone(),
        None => vec![stage.clone()],
    };
    let prepends = all(&json["normalizer"], "normalizers").iter().any(|stage| stage["type"] == "Prepend");
    let space = |stage: &Value| stage["type"] == "Metaspace" && stage["prepend_scheme"] != "never";
    prepends || all(&json["pre_tokenizer"], "pretokenizers").iter().any(space)
}

/// Text and kind of every id; ids without a token only fill up the embedding's rows.
fn tokens(json: &Value, V: usize, pieces: bool) -> Vec<(String, i32)> {
    let mut all: BTreeMap<usize, (String, i32)> = BTreeMap::new();
    let unknown = json["model"]["unk_token"].as_str();
    for (text, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        let byte = pieces && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = match byte {
            true => BYTE,
            false if pieces && Some(text.as_str()) == unknown => UNKNOWN,
            false => NORMAL,
        };
        id.as_u64().map(|id| all.insert(id as usize, (text.clone(), kind as i32)));
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(id), Some(text)) = (added["id"].as_u64(), added["content"].as_str()) else { continue };
        let unknown = all.get(&(id as usize)).is_some_and(|(_, kind)| *kind == UNKNOWN as i32);
        let (text, kind) = match added["special"] == true || looks_special(text) {
            _ if unknown => (text.to_string(), UNKNOWN),
            true => (text.to_string(), CONTROL),
            false => (text.replace('▁', " "), USER_DEFINED),
        };
        all.insert(id as usize, (text, kind as i32));
    }
    (0..V).map(|id| all.remove(&id).unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED as i32))).collect()
}

/// Tokens that llama.cpp's conversion takes for special ones although their files do not say so.
fn looks_special(text: &str) -> bool {
    let framed = |open: &str, close: &str| text.starts_with(open) && text.ends_with(close);
    let named = ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text);
    named || framed("<|", "|>") || framed("<｜", "｜>") || framed("<unused", ">")
}

fn scores(tokens: &[(String, i32)], merges: &[(String, String)]) -> Vec<f32> {
    let mut first: HashMap<String, usize> = HashMap::new();
    for (place, (a, b)) in merges.iter().enumerate() {
        first.entry(format!("{a}{b}")).or_insert(place);
    }
    let score = |(text, kind): &(String, i32)| match *kind == NORMAL as i32 {
        true => -(first.get(text).copied().unwrap_or(merges.len()) as f32),
        false => 0.0,
    };
    tokens.iter().map(score).collect()
}
