//! Chat templates that are chosen by name, for models without one of their own: each writes plain chats as the family's own
//! template does, and marks what the assistant says. They refuse tools, which only a model's own template can write.
//! Built-in `qwen` is Qwen 2.5's, `llama-3` that of 3.0, `mistral` that of 7B v0.3, `gemma` that of 2 and 3.
use super::tokenizer::{TemplateText, Tokenizer};
use crate::error::Result;

/// Name and text.
const TEMPLATES: &[(&str, &str)] = &[
    ("chatml", include_str!("templates/chatml.jinja")),
    ("llama-3", include_str!("templates/llama-3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
    ("gemma", include_str!("templates/gemma.jinja")),
    ("phi-3", include_str!("templates/phi-3.jinja")),
    ("phi-4", include_str!("templates/phi-4.jinja")),
    ("qwen", include_str!("templates/qwen.jinja")),
    ("alpaca", include_str!("templates/alpaca.jinja")),
    ("vicuna", include_str!("templates/vicuna.jinja")),
    ("zephyr", include_str!("templates/zephyr.jinja")),
];

pub fn names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|(name, _)| *name)
}

/// None if there is none of that name. ChatML says nothing of BOS: it comes where the tokenizer adds one to a text.
pub(super) fn get(name: &str, tokenizer: &Tokenizer) -> Result<Option<TemplateText>> {
    let Some((_, text)) = TEMPLATES.iter().find(|(known, _)| *known == name) else { return Ok(None) };
    let bos = if name == "chatml" && tokenizer.adds_bos()? { "{{ bos_token }}" } else { "" };
    Ok(Some(TemplateText { file: name.into(), text: format!("{bos}{}", text.trim_end()) }))
}
