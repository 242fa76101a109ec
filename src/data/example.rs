//! A record -> token ids, and which of them the loss counts.
use super::finding::Finding;
use super::record::{Body, Record};
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

/// Which tokens count in the loss. Of a text without roles all do, and of a prompt with its completion those of the completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainOn {
    /// A chat's assistant messages, end tokens included.
    #[default]
    Assistant,
    /// A chat's last assistant message.
    LastTurn,
    /// All of a chat.
    Chat,
    /// All of every record, prompts with a completion, too: pretraining.
    Everything,
}

/// How records become examples.
pub struct Encoder<'a> {
    pub tokenizer: &'a Tokenizer,
    /// None if no record is a chat.
    pub template: Option<&'a Template>,
    pub train_on: TrainOn,
    /// Longer examples lose their end.
    pub max_length: usize,
}

impl Encoder<'_> {
    /// With what is odd about it.
    pub fn encode(&self, record: &Record) -> Result<(Example, Vec<Finding>)> {
        let mut found = vec![];
        let mut example = match &record.body {
            Body::Chat { chat, from } => self.chat(chat, *from, &mut found),
            Body::Text(text) => self.document(text, 0, &mut found),
            Body::Completion { prompt, completion } => {
                let from = if self.train_on == TrainOn::Everything { 0 } else { prompt.len() };
                self.document(&format!("{prompt}{completion}"), from, &mut found)
            }
        }
        .map_err(|e| at_record(record, e))?;
        self.examine(&example, &mut found);
        example.ids.truncate(self.max_length);
        example.trained.truncate(self.max_length);
        if example.targets() == 0 {
            found.push(Finding::WithoutTargets);
        }
        Ok((example, found))
    }

    /// Before it is cut.
    fn examine(&self, example: &Example, found: &mut Vec<Finding>) {
        let bos = self.tokenizer.bos_id();
        if example.len() > self.max_length {
            found.push(Finding::Truncated);
            if example.trained[self.max_length..].contains(&true) {
                found.push(Finding::AnswerCut);
            }
        }
        if bos.is_some() && example.ids.first().copied() == bos && example.ids.get(1).copied() == bos {
            found.push(Finding::DoubleBos);
        }
        let last = example.trained.iter().rposition(|t| *t).map(|at| example.ids[at]);
        if last.is_some_and(|id| !self.tokenizer.eos_ids().contains(&id)) {
            found.push(Finding::OpenEnd);
        }
    }

    /// Trained from byte `from` on, EOS included.
    fn document(&self, text: &str, from: usize, found: &mut Vec<Finding>) -> Result<Example> {
        let mut example = if from > 0 {
            mask(self.tokenizer.encode_spans(text, true)?, std::slice::from_ref(&(from..text.len())))
        } else {
            let ids = self.tokenizer.encode(text, true)?;
            Example { trained: vec![true; ids.len()], ids }
        };
        if !example.ids.last().is_some_and(|id| self.tokenizer.eos_ids().contains(id)) {
            self.close(&mut example, true, found)?;
        }
        Ok(example)
    }

    /// Messages before `from` are context.
    fn chat(&self, chat: &Chat, from: usize, found: &mut Vec<Finding>) -> Result<Example> {
        let template = self.template.ok_or_else(|| Error::Bug("a chat without a template".into()))?;
        let last = chat.messages.last().is_some_and(|m| m["role"] == "assistant");
        let (text, spans, said) = match self.train_on {
            TrainOn::Everything => (template.render(chat, false)?, whole(0), true),
            TrainOn::Chat => {
                let (text, start) = template.render_from(chat, from)?;
                (text, whole(start), true)
            }
            TrainOn::Assistant | TrainOn::LastTurn => {
                let words = chat.messages.iter().rposition(|m| m["role"] == "assistant").unwrap_or(0);
                let from = if self.train_on == TrainOn::LastTurn { from.max(words) } else { from };
                let rendered = template.render_assistant_from(chat, from)?;
                (rendered.text, rendered.assistant, last)
            }
        };
        let mut contents = chat.messages.iter().filter_map(|m| m.get("content")?.as_str());
        if contents.any(|c| self.tokenizer.special_tokens().iter().any(|t| c.contains(t))) {
            found.push(Finding::SpecialInContent);
        }
        // The template writes BOS itself.
        let mut example = mask(self.tokenizer.encode_spans(&text, false)?, &spans);
        if !template.is_closed(&text) {
            self.close(&mut example, said, found)?;
        }
        Ok(example)
    }

    fn close(&self, example: &mut Example, trained: bool, found: &mut Vec<Finding>) -> Result<()> {
        let what = "names no eos_token, and a text must end with one; set eos_token in tokenizer_config.json";
        let eos = self.tokenizer.eos_id().ok_or_else(|| Error::content(self.tokenizer.file(), "", what))?;
        example.ids.push(eos);
        example.trained.push(trained);
        found.push(Finding::EosAdded);
        Ok(())
    }
}

/// One span, from byte `start` to the end.
fn whole(start: usize) -> Vec<Range<usize>> {
    std::iter::once(start..usize::MAX).collect()
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
