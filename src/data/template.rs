//! Chat templates: a conversation -> the text that the model sees, and which parts of it are the assistant's words.
//!
//! The parts come from the template's structure, never from a search for its strings: `{% generation %}` says them outright;
//! without it, the assistant's turn i is what render(messages[..=i]) adds to render(messages[..i], add_generation_prompt).
use super::tokenizer::{TemplateText, Tokenizer};
use super::{builtin, python};
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

/// The frames of control tokens in a template's text, as in `<|im_start|>` and `<start_of_turn>`.
const CONTROL: &[(&str, &str)] = &[("<|", "|>"), ("<｜", "｜>"), ("<start_of_", "turn>"), ("<end_of_", "turn>")];

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
    /// `name`: a [built-in template](super::builtin), a `.jinja` file, or None for the model's own.
    pub fn load(name: Option<&str>, tokenizer: &Tokenizer) -> Result<Template> {
        Template::new(&Template::text(name, tokenizer)?, tokenizer)
    }

    pub(super) fn text(name: Option<&str>, tokenizer: &Tokenizer) -> Result<TemplateText> {
        match name {
            None => tokenizer.chat_template().cloned().ok_or_else(|| {
                let what = "this model has no chat template; set chat_template, say to \"chatml\" or a .jinja file";
                Error::content(tokenizer.file(), "", what)
            }),
            Some(file) if file.ends_with(".jinja") => {
                let text = super::tokenizer::read(Path::new(file), MAX_SOURCE as u64)?;
                Ok(TemplateText { file: file.into(), text })
            }
            Some(name) => builtin::get(name, tokenizer)?.ok_or_else(|| {
                let known = builtin::names().collect::<Vec<_>>().join(", ");
                Error::Usage(format!("chat_template must be one of {known}, or a .jinja file, got {name:?}"))
            }),
        }
    }

    /// The text of the template `name` as other programs read it, which do not know `{% generation %}`: to go with a model that
    /// was trained on it.
    pub fn portable(name: &str, tokenizer: &Tokenizer) -> Result<String> {
        Ok(replace_generation(&Template::text(Some(name), tokenizer)?.text, "if true", "endif").0)
    }

    /// The same of the model's own template.
    pub fn portable_own(tokenizer: &Tokenizer) -> Result<String> {
        Ok(replace_generation(&Template::text(None, tokenizer)?.text, "if true", "endif").0)
    }

    pub fn new(source: &TemplateText, tokenizer: &Tokenizer) -> Result<Template> {
        let file = source.file.clone();
        if source.text.len() > MAX_SOURCE || source.text.trim().is_empty() {
            let what = format!("must have 1 to {MAX_SOURCE} bytes, got {}", source.text.len());
            return Err(Error::content(file, "chat_template", what));
        }
        // As Jinja2's lexer does.
        let lines = source.text.replace("\r\n", "\n").replace('\r', "\n");
        // A filter block has the same form and the same rules for blanks.
        let (text, marked) = replace_generation(&lines, "filter generation", "endfilter");
        let mut env = python::environment();
        env.add_filter("generation", |words: String| format!("{OPEN}{words}{CLOSE}"));
        env.add_template_owned("chat", text).map_err(|e| fault(&file, &e))?;
        let tokens = tokenizer.special_names().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(Template { env, file, tokens, special: tokenizer.special_tokens().to_vec(), marked })
    }

    /// The text of `chat`; with `add_generation_prompt` up to where the assistant begins to speak.
    pub fn render(&self, chat: &Chat, add_generation_prompt: bool) -> Result<String> {
        Ok(self.whole(chat, add_generation_prompt)?.text)
    }

    /// The text of `chat` and the assistant's part of it.
    pub fn render_assistant(&self, chat: &Chat) -> Result<Rendered> {
        self.render_assistant_from(chat, 0)
    }

    /// As [`Template::render_assistant`]; what the assistant says before messages[from] is context.
    pub fn render_assistant_from(&self, chat: &Chat, from: usize) -> Result<Rendered> {
        let mut whole = self.whole(chat, false)?;
        if self.marked && from > 0 {
            let before = self.run(&chat.messages[..from], chat.tools.as_ref(), false)?.assistant.len();
            whole.assistant.drain(..before.min(whole.assistant.len()));
        }
        if !self.marked {
            for i in (from..chat.messages.len()).filter(|i| chat.messages[*i]["role"] == "assistant") {
                let turn = self.turn(chat, i, &whole.text)?;
                whole.assistant.push(turn);
            }
        }
        Ok(whole)
    }

    /// The text of `chat`, and the byte where messages[from] begins in it; an assistant's begins after its generation prompt.
    pub fn render_from(&self, chat: &Chat, from: usize) -> Result<(String, usize)> {
        let whole = self.whole(chat, false)?.text;
        if from == 0 {
            return Ok((whole, 0));
        }
        match self.start(chat, from, &whole)? {
            Some(start) => Ok((whole, start)),
            None => Err(self.refuse(format!(
                "renders a conversation such that message {from} does not follow the ones before it, so that a completion \
                cannot be told from its prompt"
            ))),
        }
    }

    /// Whether `text` ends with a special token, blanks after it aside: then its end needs no EOS.
    pub fn is_closed(&self, text: &str) -> bool {
        let text = text.trim_end();
        self.special.iter().any(|token| text.ends_with(token.as_str()))
    }

    /// The control tokens that the template writes and `tokenizer` does not know.
    pub fn unknown_tokens(&self, tokenizer: &Tokenizer) -> Vec<String> {
        let source = self.env.get_template("chat").map(|t| t.source().to_string()).unwrap_or_default();
        let mut out = vec![];
        for (open, close) in CONTROL {
            for (at, _) in source.match_indices(open) {
                let Some(end) = source[at + open.len()..].find(close) else { continue };
                let token = &source[at..at + open.len() + end + close.len()];
                let name = &token[open.len()..token.len() - close.len()];
                // what spans a quote is made of pieces: '<|' + message.role + '|>'
                let whole = !name.contains(|c: char| c.is_whitespace() || "'\"{}<>".contains(c));
                if whole && tokenizer.token_to_id(token).is_none() && !out.iter().any(|t| t == token) {
                    out.push(token.to_string());
                }
            }
        }
        out
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    fn whole(&self, chat: &Chat, add_generation_prompt: bool) -> Result<Rendered> {
        if chat.messages.iter().flat_map(Map::values).chain(&chat.tools).any(has_mark) {
            return Err(self.refuse("cannot take a text with the characters U+FDD0 or U+FDD1, which Unicode reserves"));
        }
        self.run(&chat.messages, chat.tools.as_ref(), add_generation_prompt)
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
        let after = self.run(&chat.messages[..=i], chat.tools.as_ref(), false)?.text;
        let what = || {
            self.refuse(format!(
                "renders a conversation such that message {i} does not follow its generation prompt, so that the assistant's \
                words cannot be told apart; put them between {{% generation %}} and {{% endgeneration %}}, or choose a \
                built-in chat_template"
            ))
        };
        let start = self.start(chat, i, whole)?.filter(|start| after.starts_with(&whole[..*start])).ok_or_else(what)?;
        let len =
            if whole.starts_with(&after) { after.len() - start } else { self.kept(&after[start..], &whole[start..])? };
        let words = &whole[start..start + len];
        Ok(start..start + if self.is_closed(words) { words.trim_end().len() } else { len })
    }

    /// Where messages[i] begins in `whole`.
    fn start(&self, chat: &Chat, i: usize, whole: &str) -> Result<Option<usize>> {
        let render = |prompt| Ok(self.run(&chat.messages[..i], chat.tools.as_ref(), prompt)?.text);
        let before = render(chat.messages[i]["role"] == "assistant")?;
        match whole.starts_with(&before) {
            true => Ok(Some(before.len())),
            false => Ok(self.opening(&render(false)?, &before, whole)),
        }
    }

    /// A generation prompt may open the reasoning, which `whole` leaves out (Qwen3.5, DeepSeek-R1). Then the assistant begins
    /// after the last line end or special token that `before` shares with `whole`, if that is past the messages so far.
    fn opening(&self, messages: &str, before: &str, whole: &str) -> Option<usize> {
        let shared = &whole.as_bytes()[..common(before.as_bytes(), whole.as_bytes())];
        let line = shared.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let start = line.max(self.last_special(shared));
        (start > messages.len() && whole.starts_with(messages) && before.starts_with(messages)).then_some(start)
    }

    /// A turn that more messages follow may lose its beginning (Qwen3 leaves reasoning out) or end otherwise (gpt-oss has
    /// another token there; Phi-3 closes the whole conversation with EOS). What is left of `turn` begins `rest` and ends with a
    /// special token. Returns its length.
    fn kept(&self, turn: &str, rest: &str) -> Result<usize> {
        let (turn, bytes) = (turn.as_bytes(), rest.as_bytes());
        let (mut shared, mut at) = (0, 0);
        for from in 0..turn.len() {
            if turn.len() - from <= shared {
                break;
            }
            (shared, at) = (shared, at).max((common(&turn[from..], bytes), from));
        }
        let end = self.last_special(&bytes[..shared]);
        // The special token that `rest` goes on with where `turn` differs, and its place.
        let other = (end..=shared).filter(|at| rest.is_char_boundary(*at)).find_map(|at| {
            let len = self.special_at(&bytes[at..])?;
            (at + len > shared).then_some((at, len))
        });
        let words = bytes[end..other.map_or(shared, |(at, _)| at)].trim_ascii();
        match other {
            _ if end > 0 && words.is_empty() => Ok(end),
            Some((s, len)) if self.special_at(&turn[at + s..]).is_some() => Ok(s + len),
            _ => Err(self.refuse(
                "renders an assistant's turn differently when more messages follow; put its words between {% generation %} \
                and {% endgeneration %}, or choose a built-in chat_template",
            )),
        }
    }

    /// The length of the special token that `bytes` begin with.
    fn special_at(&self, bytes: &[u8]) -> Option<usize> {
        self.special.iter().filter(|token| bytes.starts_with(token.as_bytes())).map(String::len).max()
    }

    /// Where the last special token in `bytes` ends; 0 if there is none.
    fn last_special(&self, bytes: &[u8]) -> usize {
        (0..bytes.len()).rev().find_map(|at| Some(at + self.special_at(&bytes[at..])?)).unwrap_or(0)
    }

    fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::content(&self.file, "chat_template", what)
    }
}

/// `{% generation %}` is an extension of transformers: other tags for its two, and whether there were any.
fn replace_generation(source: &str, open: &str, close: &str) -> (String, bool) {
    let (mut out, mut marked) = (String::new(), false);
    for (i, part) in source.split("{%").enumerate() {
        if i > 0 {
            out.push_str("{%");
        }
        let tag = part.find("%}").map_or("", |end| &part[..end]);
        let other = match tag.trim_matches(['-', '+']).trim() {
            "generation" if i > 0 => open,
            "endgeneration" if i > 0 => close,
            _ => {
                out.push_str(part);
                continue;
            }
        };
        marked = true;
        out.push_str(&tag.replace(tag.trim_matches(['-', '+']).trim(), other));
        out.push_str(&part[tag.len()..]);
    }
    (out, marked)
}

/// How many bytes two texts begin with alike.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
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
