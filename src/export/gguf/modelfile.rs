//! Ollama's `Modelfile` for a GGUF file: where the weights are, what ends a turn, and the chat template in Go's syntax.
//!
//! Only templates that go by a name here have their Go form here; Ollama itself knows those of many published models by the
//! Jinja text in the file.
use crate::data::{Template, Tokenizer, builtin};
use crate::error::Result;

/// Names of built-in templates, and what Ollama writes for them: system, user and assistant of a chat.
const GO: &[(&str, &str)] = &[
    ("chatml", CHATML),
    ("qwen", CHATML),
    (
        "llama-3",
        "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{- end }}\
         <|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "gemma",
        "{{- range $i, $m := .Messages }}{{- if eq .Role \"user\" }}<start_of_turn>user\n{{ if and (eq $i 1) $.System }}\
         {{ $.System }}\n\n{{ end }}{{ .Content }}<end_of_turn>\n{{ else if eq .Role \"assistant\" }}<start_of_turn>model\n\
         {{ .Content }}<end_of_turn>\n{{ end }}{{- end }}<start_of_turn>model\n",
    ),
    ("phi-3", "{{- range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}<|assistant|>\n"),
    (
        "phi-4",
        "{{- range .Messages }}<|im_start|>{{ .Role }}<|im_sep|>{{ .Content }}<|im_end|>{{ end }}\
         <|im_start|>assistant<|im_sep|>",
    ),
    ("zephyr", "{{- range .Messages }}<|{{ .Role }}|>\n{{ .Content }}</s>\n{{ end }}<|assistant|>\n"),
];

const CHATML: &str =
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n";

/// The text of the file, beside `file`.
pub fn text(tokenizer: &Tokenizer, file: &str) -> Result<String> {
    let mut text = format!("FROM ./{file}\n");
    match known(tokenizer)? {
        Some(go) => text += &format!("TEMPLATE \"\"\"{go}\"\"\"\n"),
        None => text += "# the chat template is the one in the GGUF file: Ollama has its own form of those it knows\n",
    }
    for id in tokenizer.eos_ids() {
        if let Some(token) = tokenizer.id_to_token(*id) {
            text += &format!("PARAMETER stop {}\n", serde_json::json!(token));
        }
    }
    Ok(text)
}

/// The Go form of the tokenizer's own template, where it is a built-in one.
fn known(tokenizer: &Tokenizer) -> Result<Option<&'static str>> {
    if tokenizer.chat_template().is_none() {
        return Ok(None);
    }
    let own = Template::portable_own(tokenizer)?;
    for name in builtin::names() {
        if Template::portable(name, tokenizer)? == own {
            return Ok(GO.iter().find(|(go, _)| *go == name).map(|(_, text)| *text));
        }
    }
    Ok(None)
}
