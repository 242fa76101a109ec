//! Columns -> one prompt, and single chats -> longer ones, as in Unsloth's `to_sharegpt`.
//!
//! A merged prompt is text with columns in braces: `Age {Age}.[[ She is called {Name}.]]`. A `[[part]]` is left out where one
//! of its columns is empty; outside of such parts an empty column is an error. `{{` and `}}` are braces.
use super::record::{Body, Record};
use crate::error::Result;
use crate::rng::Rng;
use serde_json::{Map, Value};

/// A piece of a merged prompt.
#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Column(String),
    Optional(Vec<Piece>),
}

/// The columns that a prompt names; none of a prompt that [`check`] refuses.
pub fn columns(prompt: &str) -> impl Iterator<Item = String> {
    fn gather(pieces: Vec<Piece>) -> Vec<String> {
        let of = |piece| match piece {
            Piece::Text(_) => vec![],
            Piece::Column(name) => vec![name],
            Piece::Optional(inner) => gather(inner),
        };
        pieces.into_iter().flat_map(of).collect()
    }
    gather(parse(prompt).unwrap_or_default()).into_iter()
}

/// What is wrong with a prompt, whatever the rows hold.
pub fn check(prompt: &str) -> Result<(), String> {
    parse(prompt)?;
    match columns(prompt).next() {
        Some(_) => Ok(()),
        None => Err("names no {column}".into()),
    }
}

fn parse(prompt: &str) -> Result<Vec<Piece>, String> {
    let mut rest = prompt;
    let pieces = run(&mut rest, false)?;
    Ok(pieces)
}

fn run(rest: &mut &str, inside: bool) -> Result<Vec<Piece>, String> {
    let (mut pieces, mut text) = (vec![], String::new());
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("[[") {
            if inside {
                return Err("has a [[part]] within another one".into());
            }
            *rest = after;
            pieces.push(Piece::Text(std::mem::take(&mut text)));
            pieces.push(Piece::Optional(run(rest, true)?));
            continue;
        }
        if let Some(after) = rest.strip_prefix("]]").filter(|_| inside) {
            *rest = after;
            pieces.push(Piece::Text(text));
            return Ok(pieces);
        }
        if rest.starts_with("{{") || rest.starts_with("}}") {
            text.push(c);
            *rest = &rest[2..];
            continue;
        }
        if let Some(after) = rest.strip_prefix('{') {
            let (name, after) = after.split_once('}').ok_or("has a { without its }")?;
            if name.is_empty() {
                return Err("has {} without a column".into());
            }
            pieces.push(Piece::Text(std::mem::take(&mut text)));
            pieces.push(Piece::Column(name.to_string()));
            *rest = after;
            continue;
        }
        if c == '}' {
            return Err("has a } without its {".into());
        }
        text.push(c);
        *rest = &rest[c.len_utf8()..];
    }
    if inside {
        return Err("has a [[part without its ]]".into());
    }
    pieces.push(Piece::Text(text));
    Ok(pieces)
}

/// The prompt of one row.
pub fn merge(prompt: &str, row: &Map<String, Value>) -> Result<String, String> {
    let mut out = String::new();
    fill(&parse(prompt).map_err(|e| format!("merged_prompt {e}"))?, row, &mut out).map_err(|name| {
        format!("merged_prompt needs `{name}`, which is empty or absent here; put it between [[ and ]]")
    })?;
    match out.trim().is_empty() {
        true => Err("merged_prompt is empty for this row".into()),
        false => Ok(out),
    }
}

/// The error is the column that is empty.
fn fill(pieces: &[Piece], row: &Map<String, Value>, out: &mut String) -> Result<(), String> {
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Column(name) => match row.get(name).map(shown).filter(|text| !text.is_empty()) {
                Some(text) => out.push_str(&text),
                None => return Err(name.clone()),
            },
            Piece::Optional(inner) => {
                let mut part = String::new();
                if fill(inner, row, &mut part).is_ok() {
                    out.push_str(&part);
                }
            }
        }
    }
    Ok(())
}

/// A value as Python's `str` shows it; nothing is the empty text.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        other => super::python::shown(other),
    }
}

/// Each chat goes on with `times - 1` others. As many chats as before; every chat comes `times` times.
pub fn extend(records: Vec<Record>, times: usize, mut rng: Rng) -> Result<Vec<Record>> {
    let mut out = records.clone();
    for _ in 1..times {
        let mut order: Vec<usize> = (0..records.len()).collect();
        rng.shuffle(&mut order);
        for (record, other) in out.iter_mut().zip(order) {
            append(record, &records[other])?;
        }
    }
    Ok(out)
}

/// A system message and tools stand once, so both chats must have the same ones.
fn append(record: &mut Record, other: &Record) -> Result<()> {
    let parts = |r: &Record| match &r.body {
        Body::Chat { chat, from: 0 } => Ok(chat.clone()),
        _ => Err(r.error("conversation_extension joins chats, and this record is none")),
    };
    let (first, second) = (parts(record)?, parts(other)?);
    let system = |m: &&Map<String, Value>| m["role"] == "system" || m["role"] == "developer";
    let count = |chat: &super::Chat| chat.messages.iter().take_while(system).count();
    let (a, b) = (count(&first), count(&second));
    if first.messages[..a] != second.messages[..b] || first.tools != second.tools {
        return Err(record.error(format!(
            "conversation_extension joins chats of one system message and of the same tools, but those of {} differ",
            other.at
        )));
    }
    if let Body::Chat { chat, .. } = &mut record.body {
        chat.messages.extend_from_slice(&second.messages[b..]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn optional_parts_come_and_go() {
        let prompt = "Passenger[[ {Name}]] of age {Age}.[[ Fare {Fare}, cabin {Cabin}.]] {{x}} [y]";
        assert_eq!(columns(prompt).collect::<Vec<_>>(), ["Name", "Age", "Fare", "Cabin"]);
        let row = |value: Value| merge(prompt, value.as_object().unwrap());
        let all = json!({"Name": "Ada", "Age": 36, "Fare": 7.0, "Cabin": "C1"});
        assert_eq!(row(all).unwrap(), "Passenger Ada of age 36. Fare 7.0, cabin C1. {x} [y]");
        assert_eq!(
            row(json!({"Age": 36.5, "Name": "", "Fare": 7, "Cabin": null})).unwrap(),
            "Passenger of age 36.5. {x} [y]"
        );
        assert!(row(json!({"Name": "Ada"})).unwrap_err().contains("needs `Age`"));
    }

    #[test]
    fn bad_prompts_say_why() {
        for (prompt, want) in [
            ("no column", "names no {column}"),
            ("{a", "a { without its }"),
            ("a}", "a } without its {"),
            ("{}", "{} without a column"),
            ("[[{a}", "without its ]]"),
            ("[[{a}[[{b}]]]]", "within another one"),
        ] {
            assert!(check(prompt).unwrap_err().contains(want), "{prompt}");
        }
        assert_eq!(check("{a} ]] is text here"), Ok(()));
    }
}
