//! Data files -> records. JSON Lines (`messages`, `text`, or `prompt` + `completion`) and, for pretraining, plain text.
//!
//! All files are read and checked before any training: a bad line stops the run, with its file and number.
use super::template::Chat;
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAX_LINE: usize = 16 << 20;
const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];

/// One record and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub file: Arc<PathBuf>,
    /// `line 12`, or `document 3`.
    pub at: String,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Chat(Chat),
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

/// Resolves paths and globs; a glob's files are sorted. Each entry must name at least one file.
pub fn files(entries: &[String]) -> Result<Vec<PathBuf>> {
    let mut out = vec![];
    for entry in entries {
        if Path::new(entry).is_file() || !entry.contains(['*', '?', '[']) {
            out.push(PathBuf::from(entry));
            continue;
        }
        let found = glob::glob(entry).map_err(|e| Error::content(entry, "", format!("bad glob: {e}")))?;
        let before = out.len();
        for path in found {
            let path = path.map_err(|e| Error::Read { file: e.path().to_path_buf(), source: e.into() })?;
            out.extend(path.is_file().then_some(path));
        }
        if out.len() == before {
            return Err(Error::content(entry, "", "matches no file"));
        }
    }
    Ok(out)
}

/// All records of `file`, in order. `pretrain` also takes `.txt`: documents separated by form feeds.
pub fn read(file: &Path, pretrain: bool) -> Result<Vec<Record>> {
    if file.is_dir() {
        return Err(Error::content(file, "", "is a directory; name its files, say with `/*.jsonl`"));
    }
    let bytes = std::fs::read(file).map_err(Error::read(file))?;
    if let Some(kind) = foreign(&bytes) {
        return Err(Error::content(file, "", format!("must be JSON Lines in UTF-8, but looks like {kind}")));
    }
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    let shared = Arc::new(file.to_path_buf());
    let records = match file.extension().and_then(|e| e.to_str()) {
        Some("txt") if pretrain => documents(&shared, bytes)?,
        Some("txt") => {
            let what = "plain text is for pretraining (method = \"pretrain\"); for fine-tuning give JSON Lines";
            return Err(Error::content(file, "", what));
        }
        _ => lines(&shared, bytes)?,
    };
    if records.is_empty() {
        return Err(Error::content(file, "", "has no record"));
    }
    Ok(records)
}

/// What a file that is no text may be, by its first bytes.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    const KINDS: &[(&[u8], &str)] = &[
        (b"\x1F\x8B", "gzip; unpack it first"),
        (b"\x28\xB5\x2F\xFD", "zstd; unpack it first"),
        (b"\xFD7zXZ", "xz; unpack it first"),
        (b"PK\x03\x04", "a zip archive; unpack it first"),
        (b"PAR1", "Parquet; convert it to JSON Lines"),
        (b"ARROW1", "Arrow; convert it to JSON Lines"),
        (b"\xFF\xFE", "UTF-16; convert it to UTF-8"),
        (b"\xFE\xFF", "UTF-16; convert it to UTF-8"),
        (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself"),
        (b"<!DOCTYPE", "a web page"),
        (b"<html", "a web page"),
    ];
    KINDS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| *kind)
}

fn documents(file: &Arc<PathBuf>, bytes: &[u8]) -> Result<Vec<Record>> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::content(&**file, "", format!("must be UTF-8, is not at byte {}", e.valid_up_to())))?;
    let parts = text.split('\x0C').map(str::trim).enumerate().filter(|(_, text)| !text.is_empty());
    let record = |(i, text): (usize, &str)| Record {
        file: file.clone(),
        at: format!("document {}", i + 1),
        body: Body::Text(text.to_string()),
    };
    Ok(parts.map(record).collect())
}

/// Lines parse in parallel; the error is the first bad line's, and says how many more there are.
fn lines(file: &Arc<PathBuf>, bytes: &[u8]) -> Result<Vec<Record>> {
    let numbered: Vec<(usize, &[u8])> = bytes
        .split(|b| *b == b'\n')
        .enumerate()
        .map(|(i, line)| (i + 1, line.trim_ascii()))
        .filter(|(_, line)| !line.is_empty())
        .collect();
    if numbered.first().is_some_and(|(_, line)| line.starts_with(b"[")) {
        let what = "is a JSON array; one object a line is wanted (jq -c '.[]' converts)";
        return Err(Error::content(&**file, "line 1", what));
    }
    let parsed: Vec<Result<Record, (usize, String)>> = numbered
        .into_par_iter()
        .map(|(number, line)| {
            let body = parse(line).map_err(|what| (number, what))?;
            Ok(Record { file: file.clone(), at: format!("line {number}"), body })
        })
        .collect();
    let bad = parsed.iter().filter(|r| r.is_err()).count();
    let records: Result<Vec<Record>, _> = parsed.into_iter().collect();
    records.map_err(|(number, what)| {
        let more = if bad > 1 { format!(" ({} more bad lines)", bad - 1) } else { String::new() };
        Error::content(&**file, format!("line {number}"), what + &more)
    })
}

fn parse(line: &[u8]) -> Result<Body, String> {
    if line.len() > MAX_LINE {
        return Err(format!("has {} bytes; a line may have {MAX_LINE}", line.len()));
    }
    let text = std::str::from_utf8(line).map_err(|e| format!("must be UTF-8, is not at byte {}", e.valid_up_to()))?;
    let value: Value = serde_json::from_str(text).map_err(|e| format!("bad JSON at column {}: {e}", e.column()))?;
    let Value::Object(mut record) = value else { return Err(format!("must be a JSON object, got {}", kind(&value))) };
    if let Some(messages) = record.remove("messages") {
        return chat(messages, record.remove("tools")).map(Body::Chat);
    }
    if let (Some(prompt), Some(completion)) = (record.get("prompt"), record.get("completion")) {
        let prompt = string(prompt, "prompt")?.to_string();
        let completion = string(completion, "completion")?.to_string();
        return Ok(Body::Completion { prompt, completion });
    }
    match record.get("text") {
        Some(text) => Ok(Body::Text(string(text, "text")?.to_string())),
        None => Err(missing(&record)),
    }
}

fn missing(record: &Map<String, Value>) -> String {
    let have: Vec<&str> = record.keys().map(String::as_str).collect();
    let hint = if record.contains_key("conversations") {
        "; rename `conversations` to `messages`, `from` to `role`, `value` to `content`"
    } else {
        ""
    };
    format!("must have `messages`, `text`, or `prompt` and `completion`; has only {}{hint}", have.join(", "))
}

fn string<'a>(value: &'a Value, key: &str) -> Result<&'a str, String> {
    match value.as_str() {
        Some("") => Err(format!("`{key}` is empty")),
        Some(text) => Ok(text),
        None => Err(format!("`{key}` must be a text, got {}", kind(value))),
    }
}

fn chat(messages: Value, tools: Option<Value>) -> Result<Chat, String> {
    let Value::Array(list) = messages else {
        return Err(format!("`messages` must be a list, got {}", kind(&messages)));
    };
    if list.is_empty() {
        return Err("`messages` is empty".into());
    }
    let tools = tools.filter(|t| !t.is_null());
    if let Some(other) = tools.as_ref().filter(|t| !t.is_array()) {
        return Err(format!("`tools` must be a list, got {}", kind(other)));
    }
    let messages = list.into_iter().enumerate().map(|(i, m)| message(m).map_err(|e| format!("`messages[{i}]`{e}")));
    Ok(Chat { messages: messages.collect::<Result<_, _>>()?, tools })
}

/// The error goes on from `messages[i]`. A list of text parts becomes one text.
fn message(value: Value) -> Result<Map<String, Value>, String> {
    let Value::Object(mut message) = value else { return Err(format!(" must be an object, got {}", kind(&value))) };
    let role = match message.get("role") {
        None => return Err(" has no `role`".into()),
        Some(role) => role.as_str().ok_or_else(|| format!(".role must be a text, got {}", kind(role)))?,
    };
    if !ROLES.contains(&role) {
        return Err(format!(".role must be one of {}, got {role:?}", ROLES.join(", ")));
    }
    let calls = message.get("tool_calls").is_some_and(|calls| !calls.is_null());
    match message.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let text = parts.iter().map(text_part).collect::<Result<String, _>>()?;
            message.insert("content".into(), text.into());
        }
        None | Some(Value::Null) if calls => {
            message.insert("content".into(), Value::Null);
        }
        None => return Err(" has no `content`".into()),
        Some(other) => return Err(format!(".content must be a text, got {}", kind(other))),
    }
    Ok(message)
}

fn text_part(part: &Value) -> Result<&str, String> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text),
        (other, _) => Err(format!(".content may hold parts of type text only, got {}", other.unwrap_or("none"))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_records_say_what_was_wanted() {
        for (line, want) in [
            ("{", "bad JSON"),
            ("[1]", "must be a JSON object, got a list"),
            (r#"{"a": 1, "b": 2}"#, "has only a, b"),
            (r#"{"conversations": []}"#, "rename `conversations`"),
            (r#"{"text": 1}"#, "`text` must be a text, got a number"),
            (r#"{"text": ""}"#, "`text` is empty"),
            (r#"{"messages": {}}"#, "`messages` must be a list"),
            (r#"{"messages": []}"#, "`messages` is empty"),
            (r#"{"messages": [1]}"#, "`messages[0]` must be an object, got a number"),
            (r#"{"messages": [{"content": "x"}]}"#, "`messages[0]` has no `role`"),
            (r#"{"messages": [{"role": "user"}]}"#, "`messages[0]` has no `content`"),
            (r#"{"messages": [{"role": "user", "content": null}]}"#, "`messages[0]`.content must be a text, got null"),
            (r#"{"messages": [{"role": "bot", "content": "x"}]}"#, "got \"bot\""),
            (r#"{"messages": [{"role": "user", "content": [{"type": "image"}]}]}"#, "type text only, got image"),
            (r#"{"messages": [{"role": "user", "content": "x"}], "tools": 1}"#, "`tools` must be a list"),
            (r#"{"text": "\ud800"}"#, "bad JSON"),
            (r#"{"text": NaN}"#, "bad JSON"),
        ] {
            let got = parse(line.as_bytes()).unwrap_err();
            assert!(got.contains(want), "{line}: {got}");
        }
        assert!(parse(&"[".repeat(100_000).into_bytes()).unwrap_err().contains("recursion limit"));
    }

    #[test]
    fn parts_of_text_join_and_other_keys_stay() {
        let line = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"}]}"#;
        let Body::Chat(chat) = parse(line.as_bytes()).unwrap() else { panic!("a chat") };
        assert_eq!((&chat.messages[0]["content"], &chat.messages[0]["name"]), (&"ab".into(), &"x".into()));
    }
}
