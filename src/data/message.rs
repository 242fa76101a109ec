//! Messages as files write them -> messages as chat templates read them: a `role`, a `content`, and whatever else they have.
use super::read::kind;
use super::source::Source;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];
/// What ShareGPT files call the roles.
const SHAREGPT: &[(&str, &str)] = &[
    ("human", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("function_call", "assistant"),
    ("observation", "tool"),
    ("function_response", "tool"),
];

/// How a source's messages call things.
pub struct Roles<'a> {
    role: &'a str,
    content: &'a str,
    renamed: &'a BTreeMap<String, String>,
}

impl<'a> Roles<'a> {
    pub fn new(source: &'a Source) -> Roles<'a> {
        Roles { role: source.column("role"), content: source.column("content"), renamed: &source.roles }
    }

    /// Our role that the file's `name` stands for.
    fn role(&self, name: &str) -> Option<&str> {
        let own = self.renamed.get(name).map(String::as_str);
        let known = ROLES.iter().find(|role| **role == name).copied();
        own.or(known).or(SHAREGPT.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours))
    }
}

pub fn of(role: &str, content: impl Into<Value>) -> Map<String, Value> {
    Map::from_iter([("role".to_string(), role.into()), ("content".to_string(), content.into())])
}

/// A list; also as JSON text, as tables hold it.
pub fn unquoted(value: Value, name: &str) -> Result<Value, String> {
    match &value {
        Value::String(text) if text.trim_start().starts_with(['[', '{']) => {
            serde_json::from_str(text).map_err(|e| format!("`{name}` holds bad JSON at column {}: {e}", e.column()))
        }
        _ => Ok(value),
    }
}

/// `name` is the column's, for messages.
pub fn messages(value: Value, name: &str, roles: &Roles) -> Result<Vec<Map<String, Value>>, String> {
    let list = match unquoted(value, name)? {
        Value::Array(list) => list,
        other => return Err(format!("`{name}` must be a list, got {}", kind(&other))),
    };
    if list.is_empty() {
        return Err(format!("`{name}` is empty"));
    }
    let numbered = list.into_iter().enumerate();
    numbered.map(|(i, m)| message(m, roles).map_err(|e| format!("`{name}[{i}]`{e}"))).collect()
}

/// The error goes on from `messages[i]`. A list of text parts becomes one text.
fn message(value: Value, roles: &Roles) -> Result<Map<String, Value>, String> {
    let Value::Object(mut message) = value else { return Err(format!(" must be an object, got {}", kind(&value))) };
    let sharegpt = !message.contains_key(roles.role) && message.contains_key("from");
    let (role_key, content_key) = if sharegpt { ("from", "value") } else { (roles.role, roles.content) };
    let name = match message.shift_remove(role_key) {
        None => return Err(format!(" has no `{role_key}`")),
        Some(Value::String(name)) => name,
        Some(other) => return Err(format!(".{role_key} must be a text, got {}", kind(&other))),
    };
    let Some(role) = roles.role(&name) else {
        let what = format!(".{role_key} must be one of {}, got {name:?}", ROLES.join(", "));
        return Err(what + " (`roles` of the dataset can say what it stands for)");
    };
    let calls = message.get("tool_calls").is_some_and(|calls| !calls.is_null());
    let content = match message.shift_remove(content_key) {
        Some(Value::String(text)) if sharegpt && name == "function_call" => {
            message.insert("tool_calls".into(), calls_of(&text)?);
            Value::Null
        }
        Some(Value::String(text)) => Value::String(text),
        Some(Value::Array(parts)) => parts.iter().map(text_part).collect::<Result<String, _>>()?.into(),
        None | Some(Value::Null) if calls => Value::Null,
        None => return Err(format!(" has no `{content_key}`")),
        Some(other) => return Err(format!(".{content_key} must be a text, got {}", kind(&other))),
    };
    // Role and content come first, as people write them.
    let mut out = of(role, content);
    out.extend(message);
    Ok(out)
}

/// ShareGPT's `function_call` holds one call, or a list of them, as JSON text.
fn calls_of(text: &str) -> Result<Value, String> {
    let bad = |what: String| format!(".value must be a call as JSON, with `name` and `arguments`: {what}");
    let calls = match serde_json::from_str(text).map_err(|e| bad(e.to_string()))? {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let one = |call: Value| match call.get("name") {
        Some(Value::String(_)) => Ok(json!({ "type": "function", "function": call })),
        _ => Err(bad("it has no name".into())),
    };
    calls.into_iter().map(one).collect()
}

fn text_part(part: &Value) -> Result<&str, String> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text),
        (other, _) => Err(format!(".content may hold parts of type text only, got {}", other.unwrap_or("none"))),
    }
}
