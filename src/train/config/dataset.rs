//! `dataset`: paths, and tables that say more of them.
use super::source::FromNode;
use super::tree::{Node, Place, Value};
use crate::data::record::COLUMNS;
use crate::data::{ROLES, Source, TrainOn, check_merged_prompt};
use crate::error::distance;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

const KEYS: &[&str] =
    &["path", "name", "split", "weight", "columns", "roles", "merged_prompt", "conversation_extension"];

/// What is wrong with a part, and where it stands.
type Wrong = (Place, String);

/// One or a list of them.
impl FromNode for Vec<Source> {
    fn wanted() -> String {
        "a path, a table with a `path`, or a list of these".into()
    }
    fn from_value(value: &Value) -> Option<Vec<Source>> {
        Self::parts_of(value).ok().flatten()
    }
    fn parts_of(value: &Value) -> Result<Option<Vec<Source>>, Wrong> {
        let Value::List(items) = value else { return Ok(source(value)?.map(|one| vec![one])) };
        let sources = items.iter().map(|node| source(&node.value)).collect::<Result<Option<Vec<_>>, _>>()?;
        Ok(sources)
    }
}

fn source(value: &Value) -> Result<Option<Source>, Wrong> {
    let Value::Table(keys) = value else { return Ok(String::from_value(value).map(Source::new)) };
    let Some((_, path)) = keys.iter().find(|(key, _)| key == "path") else { return Ok(None) };
    let mut out = Source::new(part::<String>("path", path)?);
    for (key, node) in keys {
        match key.as_str() {
            _ if matches!(node.value, Value::Null) => {}
            "path" => {}
            "name" => out.name = Some(part(key, node)?),
            "split" => out.split = Some(part(key, node)?),
            "weight" => {
                out.weight = part("weight", node)?;
                if !(out.weight > 0.0 && out.weight <= 1e6) {
                    return Err((
                        node.place.clone(),
                        format!(".weight must be more than 0, at most 1e6, got {}", node.value),
                    ));
                }
            }
            "columns" => out.columns = table(key, node, |ours, _| known("columns", ours, node, COLUMNS))?,
            "roles" => out.roles = table(key, node, |_, role| one_of("roles", role, ROLES).map(|_| ()))?,
            "merged_prompt" => {
                let prompt: String = part("merged_prompt", node)?;
                check_merged_prompt(&prompt).map_err(|what| (node.place.clone(), format!(".merged_prompt {what}")))?;
                out.merged_prompt = Some(prompt);
            }
            "conversation_extension" => {
                out.conversation_extension = part("conversation_extension", node)?;
                if !(1..=1024).contains(&out.conversation_extension) {
                    let what = format!(".conversation_extension must be from 1 to 1024, got {}", node.value);
                    return Err((node.place.clone(), what));
                }
            }
            other => known("", other, node, KEYS)?,
        }
    }
    Ok(Some(out))
}

fn part<T: FromNode>(key: &str, node: &Node) -> Result<T, Wrong> {
    let wrong = || (node.place.clone(), format!(".{key} must be {}, got {}", T::wanted(), node.value));
    T::from_value(&node.value).ok_or_else(wrong)
}

fn one_of(key: &str, node: &Node, words: &[&str]) -> Result<String, Wrong> {
    let word: String = part(key, node)?;
    match words.contains(&word.as_str()) {
        true => Ok(word),
        false => Err((node.place.clone(), format!(".{key} must be one of {}, got {word:?}", words.join(", ")))),
    }
}

/// A key that must be one of `keys`.
fn known(table: &str, key: &str, node: &Node, keys: &[&str]) -> Result<(), Wrong> {
    if keys.contains(&key) {
        return Ok(());
    }
    let dot = if table.is_empty() { String::new() } else { format!(".{table}") };
    let close = keys.iter().map(|k| (distance(key, k), k)).filter(|(d, k)| *d <= 1 + k.len() / 4).min();
    let hint = close.map_or_else(|| format!("it has {}", keys.join(", ")), |(_, k)| format!("did you mean `{k}`?"));
    Err((node.place.clone(), format!("{dot} has no key `{key}`: {hint}")))
}

fn table(
    key: &str,
    node: &Node,
    check: impl Fn(&str, &Node) -> Result<(), Wrong>,
) -> Result<BTreeMap<String, String>, Wrong> {
    let Value::Table(entries) = &node.value else {
        return Err((node.place.clone(), format!(".{key} must be a table, got {}", node.value)));
    };
    let mut out = BTreeMap::new();
    for (name, node) in entries {
        check(name, node)?;
        out.insert(name.clone(), part(&format!("{key}.{name}"), node)?);
    }
    Ok(out)
}

/// TRL's `true` and `false`, and `"last"`.
impl FromNode for TrainOn {
    fn wanted() -> String {
        "true, false or \"last\"".into()
    }
    fn from_value(value: &Value) -> Option<TrainOn> {
        match value {
            Value::Bool(true) => Some(TrainOn::Assistant),
            Value::Bool(false) => Some(TrainOn::Chat),
            Value::Str(s) if s == "last" => Some(TrainOn::LastTurn),
            _ => None,
        }
    }
}

impl Serialize for TrainOn {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            TrainOn::Assistant => s.serialize_bool(true),
            TrainOn::LastTurn => s.serialize_str("last"),
            TrainOn::Chat | TrainOn::Everything => s.serialize_bool(false),
        }
    }
}
