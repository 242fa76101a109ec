//! A record -> token ids, and which of them the loss counts.
use super::source::{Body, Record};
use super::template::{Chat, Template};
use super::tokenizer::{Token, Tokenizer};
use crate::error::{Error, Result};
use std::ops::Range;

/// One sequence. `trained[i]`: token i counts in the loss as a *target*, something to predict; token 0 is never predicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub ids: Vec<u32>,
    pub trained: Vec<bool>,
}

impl Example {
    pub fn len(&self) -> usize {
        self.ids.len()
    }
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
    /// Tokens that count in the loss.
    pub fn targets(&self) -> usize {
        self.trained.iter().skip(1).filter(|t| **t).count()
    }
}

/// What happened to a record besides its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    pub truncated: bool,
    pub eos_added: bool,
    /// A message holds the text of a special token; it is encoded as that token, as Hugging Face does.
    pub special_in_content: bool,
}

/// How records become examples.
pub struct Encoder<'a> {
    pub tokenizer: &'a Tokenizer,
    /// None if no record is a chat.
    pub template: Option<&'a Template>,
    pub assistant_only_loss: bool,
    /// Longer examples lose their end.
    pub max_length: usize,
}

impl Encoder<'_> {
    pub fn encode(&self, record: &Record) -> Result<(Example, Notes)> {
        let mut notes = Notes::default();
        let mut example = match &record.body {
            Body::Chat(chat) => self.chat(chat, &mut notes).map_err(|e| at_record(record, e))?,
            Body::Text(text) => self.document(text, 0, &mut notes)?,
            Body::Completion { prompt, completion } => {
                self.document(&format!("{prompt}{completion}"), prompt.len(), &mut notes)?
            }
        };
        notes.truncated = example.len() > self.max_length;
        example.ids.truncate(self.max_length);
        example.trained.truncate(self.max_length);
        Ok((example, notes))
    }

    /// Trained from byte `from` on, EOS included.
    fn document(&self, text: &str, from: usize, notes: &mut Notes) -> Result<Example> {
        let mut example = if from > 0 {
            mask(self.tokenizer.encode_spans(text, true)?, std::slice::from_ref(&(from..text.len())))
        } else {
            let ids = self.tokenizer.encode(text, true)?;
            Example { trained: vec![true; ids.len()], ids }
        };
        if !example.ids.last().is_some_and(|id| self.tokenizer.eos_ids().contains(id)) {
            self.close(&mut example, true, notes)?;
        }
        Ok(example)
    }

    fn chat(&self, chat: &Chat, notes: &mut Notes) -> Result<Example> {
        let template = self.template.ok_or_else(|| Error::Bug("a chat without a template".into()))?;
        let (text, spans) = if self.assistant_only_loss {
            let rendered = template.render_assistant(chat)?;
            (rendered.text, rendered.assistant)
        } else {
            let text = template.render(chat, false)?;
            let whole = 0..text.len();
            (text, vec![whole])
        };
        let contents = chat.messages.iter().filter_map(|m| m.get("content")?.as_str());
        notes.special_in_content =
            contents.into_iter().any(|c| self.tokenizer.special_tokens().iter().any(|t| c.contains(t)));
        // The template writes BOS itself.
        let mut example = mask(self.tokenizer.encode_spans(&text, false)?, &spans);
        if !template.is_closed(&text) {
            let said = !self.assistant_only_loss || chat.messages.last().is_some_and(|m| m["role"] == "assistant");
            self.close(&mut example, said, notes)?;
        }
        Ok(example)
    }

    fn close(&self, example: &mut Example, trained: bool, notes: &mut Notes) -> Result<()> {
        let what = "names no eos_token, and a text must end with one; set eos_token in tokenizer_config.json";
        let eos = self.tokenizer.eos_id().ok_or_else(|| Error::content(self.tokenizer.file(), "", what))?;
        example.ids.push(eos);
        example.trained.push(trained);
        notes.eos_added = true;
        Ok(())
    }
}

/// A token is trained if it begins within a span: one that straddles the span's start is part of the prompt.
fn mask(tokens: Vec<Token>, spans: &[Range<usize>]) -> Example {
    let trained = tokens.iter().map(|(_, at)| spans.iter().any(|span| span.contains(&at.start))).collect();
    Example { ids: tokens.into_iter().map(|token| token.0).collect(), trained }
}

/// A template that refuses a chat, or a tokenizer a text: say which one.
fn at_record(record: &Record, e: Error) -> Error {
    match e {
        Error::Content { .. } => record.error(e),
        other => other,
    }
}
