//! Byte-level BPE: tokens and merges are in the file, the rule that splits text first goes by a name.
use super::pieces::{Pieces, texts};
use super::{BESIDE, KEY, Made};
use crate::error::Result;
use crate::io::gguf::{Gguf, Value as Meta};
use serde_json::{Value, json};

/// cl100k's, with numbers of up to three digits: Llama 3, Phi-4, DBRX.
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits: Qwen 2, 2.5, 3.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// o200k's: GPT-4o, Llama 4, Phi-4-mini.
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's: Nemo and later.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is split before it is merged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Split {
    /// GPT-2's own rule, which the byte-level step has built in.
    Gpt2,
    /// The same after each digit was taken apart.
    Digits,
    Regex(&'static str),
}

/// What a name of `tokenizer.ggml.pre` stands for.
struct Pre {
    names: &'static [&'static str],
    split: Split,
    /// A word that is a token is that token, whatever the merges make of it; texts begin with BOS.
    whole_words: bool,
    nfc: bool,
}

const PRES: &[Pre] = &[
    Pre {
        names: &["gpt-2", "gpt2", "olmo", "mpt", "jais", "phi-2"],
        split: Split::Gpt2,
        whole_words: false,
        nfc: false,
    },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        split: Split::Digits,
        whole_words: false,
        nfc: false,
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        split: Split::Regex(CL100K),
        whole_words: true,
        nfc: false,
    },
    Pre { names: &["dbrx", "smaug-bpe"], split: Split::Regex(CL100K), whole_words: false, nfc: false },
    Pre { names: &["qwen2", "deepseek-r1-qwen"], split: Split::Regex(QWEN2), whole_words: false, nfc: true },
    Pre { names: &["gpt-4o", "llama4"], split: Split::Regex(O200K), whole_words: false, nfc: false },
    Pre { names: &["tekken"], split: Split::Regex(TEKKEN), whole_words: true, nfc: false },
];

/// Every name that is known.
pub(super) fn names() -> Vec<&'static str> {
    PRES.iter().flat_map(|pre| pre.names).copied().collect()
}

/// The name that stands for how this `tokenizer.json` splits text.
pub(super) fn name(json: &Value) -> Option<&'static str> {
    let split = split(&json["pre_tokenizer"])?;
    let whole_words = json["model"]["ignore_merges"] == true;
    let nfc = json["normalizer"]["type"] == "NFC";
    let mut fit = PRES.iter().filter(|pre| pre.split == split && pre.whole_words == whole_words);
    let first = fit.clone().next();
    fit.find(|pre| pre.nfc == nfc).or(first).map(|pre| pre.names[0])
}

/// The rule in a `pre_tokenizer`, if it is one of those with a name.
fn split(pre_tokenizer: &Value) -> Option<Split> {
    let alone = std::slice::from_ref(pre_tokenizer);
    let stages = pre_tokenizer["pretokenizers"].as_array().map_or(alone, Vec::as_slice);
    let (last, first) = stages.split_last()?;
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true {
        return None;
    }
    let own = last["use_regex"] != false;
    match (first, own) {
        ([], true) => Some(Split::Gpt2),
        ([digits], true) if digits["type"] == "Digits" && digits["individual_digits"] == true => Some(Split::Digits),
        ([split], false) if split["type"] == "Split" && split["behavior"] == "Isolated" => {
            let regex = split["pattern"]["Regex"].as_str()?;
            let known = PRES.iter().map(|pre| pre.split);
            known.into_iter().find(|known| matches!(known, Split::Regex(own) if *own == regex))
        }
        _ => None,
    }
}

pub(super) fn make(gguf: &Gguf, pieces: &Pieces) -> Result<Made> {
    let key = format!("{KEY}.pre");
    let name = gguf.get(&key).and_then(Meta::as_text).unwrap_or("default");
    let Some(pre) = PRES.iter().find(|pre| pre.names.contains(&name)) else {
        let what = format!("how `{name}` splits text is not known; known: {}; {BESIDE}", names().join(", "));
        return gguf.wrong(&key, what);
    };
    let mut merges = Vec::new();
    for merge in texts(gguf, "merges")? {
        let Some(pair) = merge.split_once(' ') else {
            return gguf.wrong(&format!("{KEY}.merges"), format!("{merge:?} is no pair of tokens"));
        };
        merges.push(json!([pair.0, pair.1]));
    }
    let byte_level = |use_regex: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": use_regex})
    };
    let sequence =
        |first: Value, use_regex| json!({"type": "Sequence", "pretokenizers": [first, byte_level(use_regex)]});
    Ok(Made {
        normalizer: if pre.nfc { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: match pre.split {
            Split::Gpt2 => byte_level(true),
            Split::Digits => sequence(json!({"type": "Digits", "individual_digits": true}), true),
            Split::Regex(regex) => {
                let split =
                    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
                sequence(split, false)
            }
        },
        decoder: byte_level(true),
        model: json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.whole_words,
            "vocab": pieces.vocab(), "merges": merges}),
        post_processor: Some(byte_level(false)),
        adds_bos: pre.whole_words,
        strip_after: false,
    })
}
