//! What `tokenizer.json` must satisfy before the `tokenizers` crate sees it: sizes, ids, merges and references agree.
//! The crate trusts its file; a wrong one can panic or ask for all memory there.
use serde_json::Value;
use std::collections::{HashMap, HashSet};

const MAX_TOKENS: usize = 1 << 20;
const MAX_ADDED: usize = 1 << 16;
/// How much longer the `Replace` normalizers together may make a text.
const MAX_GROWTH: usize = 256;

type Check = Result<(), (String, String)>;

/// Checks `json`, and takes out what must not act while training: truncation, padding, dropout of merges.
/// `Err` holds where in the file, and what is wrong.
pub fn check(json: &mut Value) -> Check {
    let Some(top) = json.as_object_mut() else { return wrong("", "must be a JSON object") };
    top.remove("truncation");
    top.remove("padding");
    let Some(model) = top.get_mut("model").and_then(Value::as_object_mut) else {
        return wrong("model", "is missing; this is not a tokenizer.json of the `tokenizers` library");
    };
    model.remove("dropout");
    let vocab = vocab(&json["model"])?;
    if json["model"].get("merges").is_some() {
        merges(&json["model"], &vocab)?;
    }
    let tokens = added(&json["added_tokens"], vocab)?;
    for part in ["normalizer", "pre_tokenizer", "decoder"] {
        let mut growth = 1;
        pipeline(&json[part], part, &mut growth)?;
    }
    post_processor(&json["post_processor"], "post_processor", &tokens)
}

fn wrong<T>(at: &str, what: impl ToString) -> Result<T, (String, String)> {
    Err((at.to_string(), what.to_string()))
}

/// Token -> id. A Unigram vocabulary is a list of [token, score], the others are maps.
fn vocab(model: &Value) -> Result<HashMap<&str, usize>, (String, String)> {
    let at = "model.vocab";
    let mut tokens = HashMap::new();
    match &model["vocab"] {
        Value::Object(map) => {
            for (token, id) in map {
                let Some(id) = id.as_u64().filter(|id| *id < MAX_TOKENS as u64) else {
                    return wrong(at, format!("the id of {token:?} must be below {MAX_TOKENS}, got {id}"));
                };
                tokens.insert(token.as_str(), id as usize);
            }
            if tokens.values().collect::<HashSet<_>>().len() != tokens.len() {
                return wrong(at, "two tokens share one id");
            }
        }
        Value::Array(list) => {
            for (id, entry) in list.iter().take(MAX_TOKENS + 1).enumerate() {
                match (entry[0].as_str(), entry[1].as_f64()) {
                    (Some(token), Some(score)) if score.is_finite() => tokens.insert(token, id),
                    _ => return wrong(at, format!("entry {id} must be [token, score], got {entry}")),
                };
            }
            if model["unk_id"].as_u64().is_some_and(|id| id >= list.len() as u64) {
                return wrong("model.unk_id", "is not an entry of the vocabulary");
            }
        }
        _ => return wrong(at, "is missing, or neither a map nor a list"),
    }
    match tokens.len() {
        0 => wrong(at, "is empty"),
        n if n > MAX_TOKENS => wrong(at, format!("may hold {MAX_TOKENS} tokens")),
        _ => Ok(tokens),
    }
}

/// Each merge must be two tokens whose concatenation is a token.
fn merges(model: &Value, vocab: &HashMap<&str, usize>) -> Check {
    let at = "model.merges";
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or("");
    let Some(list) = model["merges"].as_array() else { return wrong(at, "must be a list") };
    if list.len() > MAX_TOKENS {
        return wrong(at, format!("may hold {MAX_TOKENS} merges, got {}", list.len()));
    }
    for (i, merge) in list.iter().enumerate() {
        let pair = match merge {
            Value::String(s) => s.split_once(' '),
            Value::Array(a) if a.len() == 2 => a[0].as_str().zip(a[1].as_str()),
            _ => None,
        };
        let Some((a, b)) = pair else { return wrong(at, format!("entry {i} must be a pair of tokens, got {merge}")) };
        let known = |t: &str| !t.is_empty() && vocab.contains_key(t);
        let whole = b.strip_prefix(prefix).map(|rest| format!("{a}{rest}"));
        if !known(a) || !known(b) || !whole.is_some_and(|w| known(&w)) {
            return wrong(at, format!("entry {i}, {merge}: both parts and the whole must be in the vocabulary"));
        }
    }
    Ok(())
}

/// All tokens with their ids, the added ones checked against the vocabulary.
fn added<'a>(
    list: &'a Value,
    mut tokens: HashMap<&'a str, usize>,
) -> Result<HashMap<&'a str, usize>, (String, String)> {
    let at = "added_tokens";
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.len() > MAX_ADDED {
        return wrong(at, format!("may hold {MAX_ADDED} tokens, got {}", list.len()));
    }
    let mut by_id: HashMap<usize, &str> = tokens.iter().map(|(t, id)| (*id, *t)).collect();
    for (i, token) in list.iter().enumerate() {
        let (Some(text), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else {
            return wrong(at, format!("entry {i} must have a `content` and an `id`"));
        };
        if text.is_empty() || id >= MAX_TOKENS as u64 {
            return wrong(at, format!("entry {i} must have some content and an id below {MAX_TOKENS}, got id {id}"));
        }
        let id = id as usize;
        if let Some(other) = by_id.insert(id, text).filter(|other| *other != text) {
            return wrong(at, format!("{text:?} and {other:?} share id {id}"));
        }
        if tokens.insert(text, id).is_some_and(|other| other != id) {
            return wrong(at, format!("{text:?} has two ids"));
        }
    }
    Ok(tokens)
}

/// Walks normalizers, pre-tokenizers and decoders for parameters that the crate would stumble over.
fn pipeline(part: &Value, at: &str, growth: &mut usize) -> Check {
    let size = |key: &str| part[key].as_str().map_or(0, str::len);
    match part["type"].as_str() {
        None if part.is_null() => return Ok(()),
        None => return wrong(at, "must be an object with a `type`"),
        Some("Replace") => {
            let pattern = part["pattern"].as_object().and_then(|p| p.values().next()).and_then(Value::as_str);
            let Some(pattern) = pattern.filter(|p| !p.is_empty()) else {
                return wrong(at, "Replace needs a pattern that is not empty");
            };
            let shortest = if part["pattern"].get("String").is_some() { pattern.len() } else { 1 };
            *growth = growth.saturating_mul(size("content").div_ceil(shortest).max(1));
            if *growth > MAX_GROWTH {
                return wrong(at, format!("Replace may make a text at most {MAX_GROWTH} times as long"));
            }
        }
        Some("Prepend") if size("prepend") == 0 => return wrong(at, "Prepend needs a text that is not empty"),
        Some("FixedLength") if part["length"].as_u64().is_none_or(|n| n == 0) => {
            return wrong(at, "FixedLength needs a length of at least 1");
        }
        Some("Metaspace") if part["replacement"].as_str().is_none_or(|r| r.chars().count() != 1) => {
            return wrong(at, "Metaspace needs a replacement of one character");
        }
        Some("Precompiled") => {
            let map = part["precompiled_charsmap"].as_str().unwrap_or("").as_bytes();
            let data = map.strip_suffix(b"==").or(map.strip_suffix(b"=")).unwrap_or(map);
            let base64 = data.iter().all(|b| b.is_ascii_alphanumeric() || b"+/".contains(b));
            if data.is_empty() || !map.len().is_multiple_of(4) || !base64 {
                return wrong(at, "Precompiled needs its character map, in base64");
            }
        }
        _ => {}
    }
    for key in ["normalizers", "pretokenizers", "decoders"] {
        for (i, inner) in part[key].as_array().into_iter().flatten().enumerate() {
            pipeline(inner, &format!("{at}.{key}[{i}]"), growth)?;
        }
    }
    Ok(())
}

/// A template's special tokens must be declared, with the ids that they have.
fn post_processor(part: &Value, at: &str, tokens: &HashMap<&str, usize>) -> Check {
    for (i, inner) in part["processors"].as_array().into_iter().flatten().enumerate() {
        post_processor(inner, &format!("{at}.processors[{i}]"), tokens)?;
    }
    if part["type"] != "TemplateProcessing" {
        return Ok(());
    }
    let declared = part["special_tokens"].as_object();
    for piece in ["single", "pair"].iter().flat_map(|key| part[key].as_array().into_iter().flatten()) {
        let Some(name) = piece.get("SpecialToken").and_then(|t| t["id"].as_str()) else { continue };
        let Some(entry) = declared.and_then(|d| d.get(name)) else {
            return wrong(at, format!("{name:?} is used, but not among its special_tokens"));
        };
        let ids = entry["ids"].as_array().map(Vec::as_slice).unwrap_or_default();
        if ids.is_empty() || !ids.iter().all(|id| tokens.values().any(|known| id.as_u64() == Some(*known as u64))) {
            return wrong(at, format!("{name:?} has the ids {}, which are no tokens", entry["ids"]));
        }
    }
    Ok(())
}
