//! Tokens that a tokenizer gets, and roles that tokens get, as a config says it: in the tokenizer that a run works with, and in the
//! files that go with its result, so that these run elsewhere as they are.
//!
//! Ids go on after the last one, as in the `tokenizers` crate. A token that is in the vocabulary already keeps its id.
use super::Tokenizer;
use super::tokenizer::{MAX_CONFIG, MAX_TOKENIZER, Parts, read};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewTokens {
    /// Words: text like other text, but one token each.
    pub tokens: Vec<String>,
    /// Control tokens: left out where special tokens are skipped.
    pub special: Vec<String>,
    /// `eos_token` -> its text, and so on; special, and new where the vocabulary has no such token.
    pub names: BTreeMap<String, String>,
}

impl NewTokens {
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.special.is_empty() && self.names.is_empty()
    }

    /// Every text once, and whether it is special.
    fn all(&self) -> Vec<(&str, bool)> {
        let special = self.names.values().chain(&self.special).map(|text| (text.as_str(), true));
        let mut out: Vec<(&str, bool)> = vec![];
        for (text, is_special) in special.chain(self.tokens.iter().map(|text| (text.as_str(), false))) {
            if !out.iter().any(|(known, _)| *known == text) {
                out.push((text, is_special));
            }
        }
        out
    }

    /// Whether `tokenizer` has all of it already.
    pub fn are_in(&self, tokenizer: &Tokenizer) -> bool {
        let named = |(name, text): (&String, &String)| tokenizer.special_names().get(name) == Some(text);
        self.all().iter().all(|(text, _)| tokenizer.token_to_id(text).is_some()) && self.names.iter().all(named)
    }

    /// The ids of these tokens that `before` does not have, in `after`, which has them.
    pub fn added(&self, before: &Tokenizer, after: &Tokenizer) -> Vec<u32> {
        let new = self.all().into_iter().filter(|(text, _)| before.token_to_id(text).is_none());
        let mut ids: Vec<u32> = new.filter_map(|(text, _)| after.token_to_id(text)).collect();
        ids.sort();
        ids
    }

    /// Puts the tokens into what a tokenizer is made from.
    pub(super) fn apply(&self, parts: &mut Parts) -> Result<()> {
        self.add(&parts.file, &mut parts.json)?;
        parts.names.extend(self.names.clone());
        Ok(())
    }

    /// Into the content of a `tokenizer.json`. Returns the ids.
    fn add(&self, file: &Path, json: &mut Value) -> Result<BTreeMap<String, u64>> {
        let wrong = |at: &str, what: &str| Err(Error::content(file, at, what));
        let (mut ids, mut next) = known(json);
        let Some(top) = json.as_object_mut() else { return wrong("", "must be a JSON object") };
        let list = top.entry("added_tokens").or_insert_with(|| json!([]));
        if list.is_null() {
            *list = json!([]);
        }
        let Some(list) = list.as_array_mut() else { return wrong("added_tokens", "must be a list") };
        for (text, special) in self.all() {
            if let Some(entry) = list.iter_mut().find(|entry| entry["content"] == text) {
                if special {
                    entry["special"] = json!(true);
                }
                continue;
            }
            let id = ids.get(text).copied().unwrap_or(next);
            next = next.max(id + 1);
            ids.insert(text.to_string(), id);
            list.push(entry(text, special, Some(id)));
        }
        // the crate wants them in the order of their ids
        list.sort_by_key(|entry| entry["id"].as_u64());
        Ok(ids)
    }

    /// Changes the tokenizer's files in `folder`, the generation config and, where there is one, the model's config.
    pub fn write(&self, folder: &Path) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mut ids = BTreeMap::new();
        edit(&folder.join("tokenizer.json"), MAX_TOKENIZER, Missing::Stays, |file, json| {
            ids = self.add(file, &mut *json)?;
            Ok(())
        })?;
        edit(&folder.join("tokenizer_config.json"), MAX_CONFIG, Missing::Made, |_, json| {
            self.describe(json, &ids);
            self.name(json);
            Ok(())
        })?;
        edit(&folder.join("special_tokens_map.json"), MAX_CONFIG, Missing::Stays, |_, json| {
            self.name(json);
            Ok(())
        })?;
        edit(&folder.join("added_tokens.json"), MAX_CONFIG, Missing::Stays, |_, json| {
            for (text, _) in self.all() {
                json[text] = json!(ids.get(text));
            }
            Ok(())
        })?;
        let generation = if self.names.is_empty() { Missing::Stays } else { Missing::Made };
        edit(&folder.join("generation_config.json"), MAX_CONFIG, generation, |_, json| {
            self.point(json, &ids, Ends::All);
            Ok(())
        })?;
        edit(&folder.join("config.json"), MAX_CONFIG, Missing::Stays, |_, json| {
            self.point(json, &ids, Ends::One);
            Ok(())
        })
    }

    /// `added_tokens_decoder` of tokenizer_config.json, where it has one.
    fn describe(&self, json: &mut Value, ids: &BTreeMap<String, u64>) {
        let Some(decoder) = json.get_mut("added_tokens_decoder").and_then(Value::as_object_mut) else { return };
        for (text, special) in self.all() {
            let Some(id) = ids.get(text).map(u64::to_string) else { continue };
            match decoder.get_mut(&id) {
                Some(Value::Object(known)) if special => drop(known.insert("special".into(), json!(true))),
                Some(_) => {}
                None => drop(decoder.insert(id, entry(text, special, None))),
            }
        }
    }

    /// The roles, and the list of special tokens without one.
    fn name(&self, json: &mut Value) {
        for (name, text) in &self.names {
            json[name] = json!(text);
        }
        // transformers 5 calls it otherwise
        let key = if json.get("extra_special_tokens").is_some_and(Value::is_array) {
            "extra_special_tokens"
        } else {
            "additional_special_tokens"
        };
        for text in &self.special {
            let list = &mut json[key];
            if list.is_null() {
                *list = json!([]);
            }
            let known = |entry: &Value| entry == text || entry["content"] == *text;
            if let Some(list) = list.as_array_mut().filter(|list| !list.iter().any(known)) {
                list.push(json!(text));
            }
        }
    }

    /// `eos_token_id` and so on.
    fn point(&self, json: &mut Value, ids: &BTreeMap<String, u64>, ends: Ends) {
        for (name, text) in &self.names {
            let key = format!("{name}_id");
            let Some(id) = ids.get(text) else { continue };
            let earlier = match json[&key].take() {
                Value::Array(list) => list,
                Value::Null => vec![],
                one => vec![one],
            };
            let others: Vec<Value> = earlier.into_iter().filter(|other| *other != *id).collect();
            json[&key] = match ends {
                Ends::All if name == "eos_token" && !others.is_empty() => {
                    json!(std::iter::once(json!(id)).chain(others).collect::<Vec<_>>())
                }
                _ => json!(id),
            };
        }
    }
}

/// What a new end does to the earlier ones.
#[derive(Clone, Copy)]
enum Ends {
    /// A generation still ends with them, too.
    All,
    One,
}

#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Stays,
    Made,
}

/// All tokens of a `tokenizer.json` with their ids, and the id after the last.
fn known(json: &Value) -> (BTreeMap<String, u64>, u64) {
    let mut ids = BTreeMap::new();
    match &json["model"]["vocab"] {
        Value::Object(map) => ids.extend(map.iter().filter_map(|(text, id)| Some((text.clone(), id.as_u64()?)))),
        Value::Array(list) => {
            ids.extend((0..).zip(list).filter_map(|(id, entry)| Some((entry[0].as_str()?.to_string(), id))))
        }
        _ => {}
    }
    let added = json["added_tokens"].as_array().into_iter().flatten();
    ids.extend(added.filter_map(|token| Some((token["content"].as_str()?.to_string(), token["id"].as_u64()?))));
    let next = ids.values().max().map_or(0, |id| id + 1);
    (ids, next)
}

fn entry(text: &str, special: bool, id: Option<u64>) -> Value {
    let mut entry = Map::new();
    entry.extend(id.map(|id| ("id".to_string(), json!(id))));
    entry.insert("content".into(), json!(text));
    for key in ["single_word", "lstrip", "rstrip", "normalized"] {
        entry.insert(key.into(), json!(false));
    }
    entry.insert("special".into(), json!(special));
    Value::Object(entry)
}

fn edit(file: &Path, limit: u64, missing: Missing, change: impl FnOnce(&Path, &mut Value) -> Result<()>) -> Result<()> {
    let mut json = match (file.exists(), missing) {
        (false, Missing::Stays) => return Ok(()),
        (false, Missing::Made) => json!({}),
        (true, _) => super::tokenizer::parse::<Value>(file, &read(file, limit)?)?,
    };
    if !json.is_object() {
        return Err(Error::content(file, "", "must be a JSON object"));
    }
    change(file, &mut json)?;
    let mut text = serde_json::to_vec_pretty(&json).map_err(|e| Error::Bug(e.to_string()))?;
    text.push(b'\n');
    std::fs::write(file, text).map_err(Error::write(file))
}
