//! The tokenizer inside a GGUF file, as the `tokenizer.json` it was made from.
//!
//! `gpt2`: byte-level BPE with its merges; `tokenizer.ggml.pre` names how text is split first. `llama`: SentencePiece's BPE
//! with scores, from which the merges follow. Other kinds need a tokenizer.json beside the file.
use super::tokenizer::{Parts, TemplateText};
use crate::error::{Error, Result};
use crate::io::gguf::{Gguf, Value as Meta};
use pieces::Pieces;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

mod bpe;
mod pieces;
mod spm;
mod write;
pub use write::metadata;

const KEY: &str = "tokenizer.ggml";
pub(super) const BESIDE: &str = "put the model's tokenizer.json (and tokenizer_config.json) beside the GGUF file";

/// Roles that a config names, and the metadata with their ids.
const ROLES: [(&str, &str); 5] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("pad_token", "padding_token_id"),
    ("sep_token", "seperator_token_id"),
];

/// Special tokens that end a turn: llama.cpp stops at them, too, for a GGUF file has no list of all that end a generation.
const ENDS: [&str; 9] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
];

/// The model's own chat template.
pub(super) fn template(gguf: &Gguf) -> Option<TemplateText> {
    let text = gguf.get("tokenizer.chat_template").and_then(Meta::as_text)?;
    Some(TemplateText { file: gguf.path().to_path_buf(), text: text.into() })
}

/// The files that a Hugging Face folder has beside the weights, from a GGUF file: name and content.
pub fn companions(gguf: &Gguf) -> Result<Vec<(&'static str, Value)>> {
    let Parts { json, names, template, generation, .. } = parts(gguf)?;
    let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
    for (role, token) in names {
        config[role] = json!(token);
    }
    if let Some(template) = template {
        config["chat_template"] = json!(template.text);
    }
    let generation = Value::Object(generation);
    Ok(vec![("tokenizer.json", json), ("tokenizer_config.json", config), ("generation_config.json", generation)])
}

/// What [`super::Tokenizer`] is made from.
pub(super) fn parts(gguf: &Gguf) -> Result<Parts> {
    let key = format!("{KEY}.model");
    let Some(model) = gguf.get(&key).and_then(Meta::as_text) else {
        return gguf.wrong(&key, format!("is missing: {BESIDE}"));
    };
    let pieces = Pieces::read(gguf)?;
    let made = match model {
        "gpt2" => bpe::make(gguf, &pieces)?,
        "llama" => spm::make(gguf, &pieces)?,
        other => return gguf.wrong(&key, format!("`{other}` is not supported, gpt2 and llama are: {BESIDE}")),
    };
    let mut names = BTreeMap::new();
    for (role, key) in ROLES {
        if let Some(id) = id(gguf, &pieces, key)? {
            names.insert(role.to_string(), pieces.texts[id].to_string());
        }
    }
    let json = json!({
        "version": "1.0",
        "added_tokens": pieces.added(made.strip_after),
        "normalizer": made.normalizer,
        "pre_tokenizer": made.pre_tokenizer,
        "post_processor": post_processor(gguf, &pieces, &made)?,
        "decoder": made.decoder,
        "model": made.model,
    });
    let mut ends: Vec<usize> = Vec::new();
    for key in ["eot_token_id", "eom_token_id"] {
        ends.extend(id(gguf, &pieces, key)?);
    }
    ends.extend((0..pieces.texts.len()).filter(|i| pieces.is_control(*i) && ENDS.contains(&pieces.texts[*i])));
    let generation = Map::from_iter([("eos_token_id".to_string(), json!(ends))]);
    let (file, template) = (gguf.path().to_path_buf(), template(gguf));
    let (config_file, generation_file) = (file.clone(), file.clone());
    Ok(Parts { file, json, config_file, names, template, generation_file, generation })
}

/// What the kinds differ in.
struct Made {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// What comes before the frame of BOS and EOS.
    post_processor: Option<Value>,
    /// Whether texts begin with BOS, unless the file says otherwise.
    adds_bos: bool,
    /// White space after a special token belongs to it.
    strip_after: bool,
}

fn id(gguf: &Gguf, pieces: &Pieces, key: &str) -> Result<Option<usize>> {
    let key = format!("{KEY}.{key}");
    let Some(value) = gguf.get(&key) else { return Ok(None) };
    // some converters write 2³² − 1 for none
    match value.as_u64() {
        Some(id) if (id as usize) < pieces.texts.len() => Ok(Some(id as usize)),
        Some(id) if id == u64::from(u32::MAX) => Ok(None),
        _ => Err(Error::content(
            gguf.path(),
            key,
            format!("an id below {} is wanted, got {value:?}", pieces.texts.len()),
        )),
    }
}

/// BOS before and EOS after a text, where the model wants them.
fn post_processor(gguf: &Gguf, pieces: &Pieces, made: &Made) -> Result<Value> {
    let flag = |key: &str, usual| gguf.get(&format!("{KEY}.{key}")).and_then(Meta::as_bool).unwrap_or(usual);
    let token = |on: bool, key| if on { id(gguf, pieces, key) } else { Ok(None) };
    let bos = token(flag("add_bos_token", made.adds_bos), "bos_token_id")?;
    let eos = token(flag("add_eos_token", false), "eos_token_id")?;
    let mut stages: Vec<Value> = made.post_processor.iter().cloned().collect();
    if bos.is_some() || eos.is_some() {
        let special = |id: &usize| json!({"SpecialToken": {"id": pieces.texts[*id], "type_id": 0}});
        let frame = |text: &[&str]| -> Vec<Value> {
            let texts = text.iter().map(|text| json!({"Sequence": {"id": text, "type_id": 0}}));
            bos.iter().map(special).chain(texts).chain(eos.iter().map(special)).collect()
        };
        let tokens: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|id| {
                let text = pieces.texts[id];
                (text.to_string(), json!({"id": text, "ids": [id], "tokens": [text]}))
            })
            .collect();
        stages.push(json!({"type": "TemplateProcessing", "single": frame(&["A"]), "pair": frame(&["A", "B"]),
            "special_tokens": tokens}));
    }
    Ok(match stages.len() {
        0 => Value::Null,
        1 => stages.remove(0),
        _ => json!({"type": "Sequence", "processors": stages}),
    })
}
