//! What turns conversations into tokens and tokens into text: a tokenizer, and the chat template that goes with it.
use crate::data::template::{Chat, Template};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::export::peft;
use crate::infer::text::Text;
use crate::model;
use serde_json::{Map, Value, json};
use std::path::Path;

pub struct Voice {
    pub tokenizer: Tokenizer,
    /// Where the model has one.
    pub template: Option<Template>,
}

/// One message of a conversation.
pub fn message(role: &str, content: &str) -> Map<String, Value> {
    json!({ "role": role, "content": content }).as_object().cloned().unwrap_or_default()
}

impl Voice {
    /// Of the model in `folder`, or what its adapter has of its own.
    pub fn load(folder: &Path, adapter: Option<&Path>) -> Result<Voice> {
        let (spec, tokenizer) = model::check(folder)?.sound()?;
        let vocab = adapter.map_or(Ok(spec.V), |adapter| peft::vocab(adapter, &spec))?;
        let tokenizer = peft::tokenizer(adapter, tokenizer, vocab)?;
        let own = tokenizer.chat_template().is_some();
        let template = if own { Some(Template::load(None, &tokenizer)?) } else { None };
        Ok(Voice { tokenizer, template })
    }

    pub fn text(&self, stops: &[String]) -> Text<'_> {
        Text::new(&self.tokenizer, stops)
    }

    /// The tokens of a conversation that the assistant goes on with.
    pub fn chat(&self, messages: Vec<Map<String, Value>>, tools: Option<Value>) -> Result<Vec<u32>> {
        let Some(template) = &self.template else {
            let what = "the model has no chat template: give it texts to continue instead of messages";
            return Err(Error::content(self.tokenizer.file(), "", what));
        };
        let text = template.render(&Chat { messages, tools }, true)?;
        // The template itself writes BOS.
        self.tokenizer.encode(&text, false)
    }

    /// The tokens of `{"prompt": ..}` or `{"messages": [..]}`; the error says what is wrong with it. A prompt is what a user
    /// says, or with `raw` and without a template a text to continue.
    pub fn prompt(&self, line: &Value, raw: bool) -> Result<Vec<u32>, String> {
        let said = |e: Error| e.to_string();
        if let Some(messages) = line.get("messages") {
            let objects = messages.as_array().and_then(|all| all.iter().map(|m| m.as_object().cloned()).collect());
            return self.chat(objects.ok_or("`messages` must be a list of objects")?, None).map_err(said);
        }
        let text = line["prompt"].as_str().ok_or("a `prompt` (a text) or `messages` is wanted")?;
        match raw || self.template.is_none() {
            true => self.tokenizer.encode(text, true).map_err(said),
            false => self.chat(vec![message("user", text)], None).map_err(said),
        }
    }
}
