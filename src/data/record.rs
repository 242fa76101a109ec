//! A row -> a record: a chat, a text, or a prompt and its completion. Which one, the columns say; the first that fits counts:
//!
//! | columns | record |
//! |---|---|
//! | `merged_prompt` of the source, `output` | chat of two messages |
//! | `messages` or `conversations` (`role` and `content`, or ShareGPT's `from` and `value`); `system`, `tools` | chat |
//! | `prompt`, `completion`: lists of messages; `tools` | chat of which the completion's answers are trained |
//! | `prompt`, `completion`: texts | text of which the completion is trained |
//! | `instruction`, `input`, `output`: Alpaca's; `system` | chat of two messages |
//! | `text` | text |
use super::merge;
use super::message::{self, Roles};
use super::read::{Parsed, Row, kind};
use super::source::Source;
use super::template::Chat;
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The columns that have a meaning; `columns` of a source says what they are called in its files. `role` and `content` are
/// those of a message.
pub const COLUMNS: &[&str] = &[
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "text",
    "system",
    "tools",
    "role",
    "content",
];

/// One record and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub file: Arc<PathBuf>,
    /// `line 12`, `row 3`, `document 7`.
    pub at: String,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Messages before `from` are context: none of them is trained.
    Chat {
        chat: Chat,
        from: usize,
    },
    Text(String),
    /// The completion alone is trained.
    Completion {
        prompt: String,
        completion: String,
    },
}

impl Record {
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::content(&*self.file, &self.at, what)
    }
}

/// In parallel; the error is the first bad row's, and says how many more there are among these.
pub fn records(file: &Path, source: &Source, rows: Vec<Parsed>) -> Result<Vec<Record>> {
    let shared = Arc::new(file.to_path_buf());
    let roles = Roles::new(source);
    let parsed: Vec<Result<Record, (String, String)>> = rows
        .into_par_iter()
        .map(|row| {
            let Row { at, fields } = row?;
            match body(fields, source, &roles) {
                Ok(body) => Ok(Record { file: shared.clone(), at, body }),
                Err(what) => Err((at, what)),
            }
        })
        .collect();
    let bad = parsed.iter().filter(|r| r.is_err()).count();
    let records: Result<Vec<Record>, _> = parsed.into_iter().collect();
    records.map_err(|(at, what)| {
        let more = if bad > 1 { format!(" ({} more bad lines)", bad - 1) } else { String::new() };
        Error::content(file, at, what + &more)
    })
}

/// Whether a record of `source` can need the file's column `name`.
pub fn wants(source: &Source, name: &str) -> bool {
    let plays = COLUMNS.iter().any(|ours| source.column(ours) == name);
    plays || source.merged_prompt.as_deref().is_some_and(|prompt| merge::columns(prompt).any(|c| c == name))
}

/// A row's fields by our names.
struct Fields<'a> {
    row: Map<String, Value>,
    source: &'a Source,
}

impl Fields<'_> {
    /// A column that is there and holds something.
    fn get(&self, name: &str) -> Option<&Value> {
        self.row.get(self.source.column(name)).filter(|v| !v.is_null())
    }
    fn take(&mut self, name: &str) -> Option<Value> {
        self.row.shift_remove(self.source.column(name)).filter(|v| !v.is_null())
    }
    /// As messages speak of it: `prompt`, or `question` where `columns` says so.
    fn named(&self, name: &str) -> String {
        self.source.column(name).to_string()
    }
    fn text(&self, name: &str) -> Result<&str, String> {
        let value = self.get(name).unwrap_or(&Value::Null);
        match value.as_str() {
            Some("") => Err(format!("`{}` is empty", self.named(name))),
            Some(text) => Ok(text),
            None => Err(format!("`{}` must be a text, got {}", self.named(name), kind(value))),
        }
    }
    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
    fn system(&self) -> Result<Option<String>, String> {
        match self.get("system") {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|t| !t.is_empty())),
            Some(other) => Err(format!("`{}` must be a text, got {}", self.named("system"), kind(other))),
        }
    }
}

fn body(row: Map<String, Value>, source: &Source, roles: &Roles) -> Result<Body, String> {
    let mut fields = Fields { row, source };
    if let Some(prompt) = &source.merged_prompt {
        let user = json!({ "role": "user", "content": merge::merge(prompt, &fields.row)? });
        return answered(&fields, user);
    }
    for name in ["messages", "conversations"] {
        if let Some(messages) = fields.take(name) {
            let mut messages = message::messages(messages, &fields.named(name), roles)?;
            if messages[0]["role"] != "system" {
                messages.splice(0..0, fields.system()?.map(|text| message::of("system", text)));
            }
            return Ok(Body::Chat { chat: Chat { messages, tools: tools(&mut fields)? }, from: 0 });
        }
    }
    if fields.has("prompt") && fields.has("completion") {
        return completion(fields, roles);
    }
    if fields.has("instruction") && fields.has("output") {
        return answered(&fields, instruction(&fields)?);
    }
    if fields.has("text") {
        return Ok(Body::Text(fields.text("text")?.to_string()));
    }
    let have: Vec<&str> = fields.row.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str()).collect();
    Err(missing(&have))
}

/// What a row of these columns lacks.
pub fn missing(have: &[&str]) -> String {
    let have = if have.is_empty() { "none".to_string() } else { have.join(", ") };
    format!(
        "must have `messages`, `conversations`, `prompt` and `completion`, `instruction` and `output`, or `text`; has only \
        {have} (`columns` of the dataset says what they are called here)"
    )
}

fn completion(mut fields: Fields, roles: &Roles) -> Result<Body, String> {
    let (prompt, completion) = (fields.get("prompt"), fields.get("completion"));
    if !prompt.is_some_and(Value::is_array) && !completion.is_some_and(Value::is_array) {
        let (prompt, completion) = (fields.text("prompt")?.to_string(), fields.text("completion")?.to_string());
        return Ok(Body::Completion { prompt, completion });
    }
    let mut list = |name: &str| {
        let value = fields.take(name).unwrap_or(Value::Null);
        message::messages(value, &fields.named(name), roles)
    };
    let (mut messages, completion) = (list("prompt")?, list("completion")?);
    let from = messages.len();
    messages.extend(completion);
    Ok(Body::Chat { chat: Chat { messages, tools: tools(&mut fields)? }, from })
}

/// The two parts stay beside the `content` that they make, for a template that shows them apart, as Alpaca's.
fn instruction(fields: &Fields) -> Result<Value, String> {
    let instruction = fields.text("instruction")?;
    match fields.get("input") {
        None => Ok(json!({ "role": "user", "content": instruction })),
        Some(Value::String(input)) if input.is_empty() => Ok(json!({ "role": "user", "content": instruction })),
        Some(Value::String(input)) => {
            let content = format!("{instruction}\n\n{input}");
            Ok(json!({ "role": "user", "content": content, "instruction": instruction, "input": input }))
        }
        Some(other) => Err(format!("`{}` must be a text, got {}", fields.named("input"), kind(other))),
    }
}

/// A chat of the message `user` and the row's `output`.
fn answered(fields: &Fields, user: Value) -> Result<Body, String> {
    let output = match fields.get("output") {
        Some(Value::Number(_) | Value::Bool(_)) if fields.source.merged_prompt.is_some() => {
            merge::shown(fields.get("output").unwrap_or(&Value::Null))
        }
        _ => fields.text("output")?.to_string(),
    };
    let Value::Object(user) = user else { return Err("a message must be an object".into()) };
    let mut messages: Vec<_> = fields.system()?.map(|text| message::of("system", text)).into_iter().collect();
    messages.extend([user, message::of("assistant", output)]);
    Ok(Body::Chat { chat: Chat { messages, tools: None }, from: 0 })
}

/// A list; also as JSON text, as tables hold it.
fn tools(fields: &mut Fields) -> Result<Option<Value>, String> {
    let Some(value) = fields.take("tools") else { return Ok(None) };
    match message::unquoted(value, &fields.named("tools"))? {
        Value::Array(list) if list.is_empty() => Ok(None),
        Value::Array(list) => Ok(Some(Value::Array(list))),
        other => Err(format!("`{}` must be a list, got {}", fields.named("tools"), kind(&other))),
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
