//! Chat templates: a conversation -> the text that the model sees, and which parts of it are the assistant's words.
//!
//! The parts come from the template's structure, never from a search for its strings: `{% generation %}` says them outright;
//! without it, the assistant's turn i is what render(messages[..=i]) adds to render(messages[..i], add_generation_prompt).
use super::python;
use super::tokenizer::{TemplateText, Tokenizer};
use crate::error::{Error, Result};
use minijinja::{Environment, context};
use serde_json::{Map, Value};
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAX_SOURCE: usize = 128 << 10;
const MAX_OUTPUT: usize = 16 << 20;
/// They frame the assistant's words in a rendering; Unicode keeps these two for such inner use, so no text has them.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

/// For models without a template of their own.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A conversation as a data set or a client gives it; a message keeps all its keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    pub messages: Vec<Map<String, Value>>,
    pub tools: Option<Value>,
}

/// A rendered conversation; `assistant` are the byte ranges that the assistant says, its end token included.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub text: String,
    pub assistant: Vec<Range<usize>>,
}

pub struct Template {
    env: Environment<'static>,
    file: PathBuf,
    tokens: Vec<(String, String)>,
    special: Vec<String>,
    /// It says by itself which words are the assistant's.
    marked: bool,
}

impl Template {
    /// `name`: a built-in template (`chatml`), a `.jinja` file, or None for the model's own.
    pub fn load(name: Option<&str>, tokenizer: &Tokenizer) -> Result<Template> {
        let given = match name {
            Some("chatml") => {
                let bos = if tokenizer.adds_bos()? { "{{ bos_token }}" } else { "" };
                Some(TemplateText { file: "chatml".into(), text: format!("{bos}{CHATML}") })
            }
            Some(file) if file.ends_with(".jinja") => {
                let text = super::tokenizer::read(Path::new(file), MAX_SOURCE as u64)?;
                Some(TemplateText { file: file.into(), text })
            }
            Some(other) => {
                let what = format!("chat_template must be `chatml` or a .jinja file, got {other:?}");
                return Err(Error::Usage(what));
            }
            None => tokenizer.chat_template().cloned(),
        };
        let what = "this model has no chat template; set chat_template = \"chatml\" or name a .jinja file";
        Template::new(&given.ok_or_else(|| Error::content(tokenizer.file(), "", what))?, tokenizer)
    }

    pub fn new(source: &TemplateText, tokenizer: &Tokenizer) -> Result<Template> {
        let file = source.file.clone();
        if source.text.len() > MAX_SOURCE || source.text.trim().is_empty() {
            let what = format!("must have 1 to {MAX_SOURCE} bytes, got {}", source.text.len());
            return Err(Error::content(file, "chat_template", what));
        }
        let (text, marked) = generation_as_filter(&source.text);
        let mut env = python::environment();
        env.add_filter("generation", |words: String| format!("{OPEN}{words}{CLOSE}"));
        env.add_template_owned("chat", text).map_err(|e| fault(&file, &e))?;
        let tokens = tokenizer.special_names().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(Template { env, file, tokens, special: tokenizer.special_tokens().to_vec(), marked })
    }

    /// The text of `chat`; with `add_generation_prompt` up to where the assistant begins to speak.
    pub fn render(&self, chat: &Chat, add_generation_prompt: bool) -> Result<String> {
        Ok(self.run(&chat.messages, chat.tools.as_ref(), add_generation_prompt)?.text)
    }

    /// The text of `chat` and the assistant's part of it.
    pub fn render_assistant(&self, chat: &Chat) -> Result<Rendered> {
        if chat.messages.iter().flat_map(Map::values).chain(&chat.tools).any(has_mark) {
            return Err(self.refuse("cannot take a text with the characters U+FDD0 or U+FDD1, which Unicode reserves"));
        }
        let mut whole = self.run(&chat.messages, chat.tools.as_ref(), false)?;
        if !self.marked {
            for i in (0..chat.messages.len()).filter(|i| chat.messages[*i]["role"] == "assistant") {
                let turn = self.turn(chat, i, &whole.text)?;
                whole.assistant.push(turn);
            }
        }
        Ok(whole)
    }

    /// Whether `text` ends with a special token, blanks after it aside: then its end needs no EOS.
    pub fn is_closed(&self, text: &str) -> bool {
        let text = text.trim_end();
        self.special.iter().any(|token| text.ends_with(token.as_str()))
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    fn run(
        &self,
        messages: &[Map<String, Value>],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<Rendered> {
        let names = minijinja::Value::from_iter(self.tokens.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let own = context! { messages, tools, documents => (), add_generation_prompt };
        let template = self.env.get_template("chat").map_err(|e| fault(&self.file, &e))?;
        let text = template.render(context! { ..own, ..names }).map_err(|e| fault(&self.file, &e))?;
        if text.len() > MAX_OUTPUT {
            return Err(self.refuse(format!("makes a text of {} bytes; the limit is {MAX_OUTPUT}", text.len())));
        }
        split_marks(&text).ok_or_else(|| self.refuse("has a {% generation %} within another one"))
    }

    /// The range of `whole` that messages[i], an assistant's, makes.
    fn turn(&self, chat: &Chat, i: usize, whole: &str) -> Result<Range<usize>> {
        let tools = chat.tools.as_ref();
        let before = self.run(&chat.messages[..i], tools, true)?.text;
        let after = self.run(&chat.messages[..=i], tools, false)?.text;
        if !whole.starts_with(&before) || !after.starts_with(&before) {
            let what = format!(
                "renders a conversation such that message {i} does not follow its generation prompt, so that the \
                assistant's words cannot be told apart; put them between {{% generation %}} and {{% endgeneration %}}, or \
                set chat_template = \"chatml\""
            );
            return Err(self.refuse(what));
        }
        let start = before.len();
        let end = if whole.starts_with(&after) {
            after.len()
        } else {
            start + self.kept(&after[start..], &whole[start..])?
        };
        let words = &whole[start..end];
        let kept = if self.is_closed(words) { words.trim_end().len() } else { words.len() };
        Ok(start..start + kept)
    }

    /// A turn that more messages follow may lose its beginning (Qwen3 leaves reasoning out) or its end (Phi-3 closes the
    /// whole conversation with EOS). What is left of `turn` begins `rest`; it ends with a special token. Returns its length.
    fn kept(&self, turn: &str, rest: &str) -> Result<usize> {
        let common = |tail: &[u8]| tail.iter().zip(rest.as_bytes()).take_while(|(a, b)| a == b).count();
        let longest = (0..turn.len()).map(|at| common(&turn.as_bytes()[at..])).max().unwrap_or(0);
        let ends = self.special.iter().filter_map(|token| {
            let at = rest.as_bytes()[..longest].windows(token.len()).rposition(|w| w == token.as_bytes())?;
            Some(at + token.len())
        });
        let what = "renders an assistant's turn differently when more messages follow; put its words between \
            {% generation %} and {% endgeneration %}, or set chat_template = \"chatml\"";
        ends.max().ok_or_else(|| self.refuse(what))
    }

    fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::content(&self.file, "chat_template", what)
    }
}

/// `{% generation %}` is an extension of transformers; a filter block has the same form and the same rules for blanks.
fn generation_as_filter(source: &str) -> (String, bool) {
    let (mut out, mut marked) = (String::new(), false);
    for (i, part) in source.split("{%").enumerate() {
        if i > 0 {
            out.push_str("{%");
        }
        let tag = part.find("%}").map_or("", |end| &part[..end]);
        let filter = match tag.trim_matches(['-', '+']).trim() {
            "generation" => "filter generation",
            "endgeneration" => "endfilter",
            _ => {
                out.push_str(part);
                continue;
            }
        };
        marked = true;
        out.push_str(&tag.replace(tag.trim_matches(['-', '+']).trim(), filter));
        out.push_str(&part[tag.len()..]);
    }
    (out, marked)
}

/// Whether a text in `value` could be taken for a mark.
fn has_mark(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains([OPEN, CLOSE]),
        Value::Array(list) => list.iter().any(has_mark),
        Value::Object(map) => map.values().any(has_mark),
        _ => false,
    }
}

/// Takes the marks out of a rendering. None if they are not in pairs.
fn split_marks(text: &str) -> Option<Rendered> {
    let mut out = Rendered { text: String::with_capacity(text.len()), assistant: vec![] };
    let mut open = None;
    for part in text.split_inclusive([OPEN, CLOSE]) {
        let (words, mark) = match part.chars().next_back() {
            Some(c @ (OPEN | CLOSE)) => (&part[..part.len() - c.len_utf8()], Some(c)),
            _ => (part, None),
        };
        out.text.push_str(words);
        match (mark, open) {
            (Some(OPEN), None) => open = Some(out.text.len()),
            (Some(CLOSE), Some(start)) => {
                out.assistant.push(start..out.text.len());
                open = None;
            }
            (None, None) => {}
            _ => return None,
        }
    }
    Some(out)
}

/// A minijinja error, with the template's line.
fn fault(file: &Path, e: &minijinja::Error) -> Error {
    let at = e.line().map_or("chat_template".into(), |line| format!("chat_template line {line}"));
    let what = match e.kind() {
        minijinja::ErrorKind::OutOfFuel => "runs for too long".to_string(),
        minijinja::ErrorKind::InvalidOperation => e.detail().unwrap_or("invalid operation").to_string(),
        kind => e.detail().map_or(kind.to_string(), |detail| format!("{kind}: {detail}")),
    };
    Error::content(file, at, what)
}
