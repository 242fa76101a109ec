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

/// DeepSeek V3's: numbers first, then Chinese and Japanese, then the rest.
const DEEPSEEK_V3: &[&str] = &[
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// How text is split before it is merged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Split {
    /// GPT-2's own rule, which the byte-level step has built in.
    Gpt2,
    /// The same after each digit was taken apart.
    Digits,
    Regex(&'static str),
    /// What one leaves whole the next may split.
    Regexes(&'static [&'static str]),
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
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "glm4"],
        split: Split::Regex(CL100K),
        whole_words: true,
        nfc: false,
    },
    Pre { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], split: Split::Regex(CL100K), whole_words: false, nfc: false },
    Pre { names: &["qwen2", "deepseek-r1-qwen"], split: Split::Regex(QWEN2), whole_words: false, nfc: true },
    Pre { names: &["gpt-4o", "llama4"], split: Split::Regex(O200K), whole_words: false, nfc: false },
    Pre { names: &["deepseek-v3"], split: Split::Regexes(DEEPSEEK_V3), whole_words: false, nfc: false },
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
        (splits, false) => {
            let regexes: Vec<&str> = splits.iter().map(regex).collect::<Option<_>>()?;
            let known = PRES.iter().map(|pre| pre.split);
            known.into_iter().find(|known| match known {
                Split::Regex(own) => regexes == [*own],
                Split::Regexes(own) => regexes == *own,
                Split::Gpt2 | Split::Digits => false,
            })
        }
        _ => None,
    }
}

/// That of a stage that keeps what matches apart.
fn regex(split: &Value) -> Option<&str> {
    let isolates = split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] != true;
    split["pattern"]["Regex"].as_str().filter(|_| isolates)
}

/// The stage of a regex.
fn split_stage(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
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
    let sequence = |first: Vec<Value>, use_regex| {
        let all: Vec<Value> = first.into_iter().chain([byte_level(use_regex)]).collect();
        json!({"type": "Sequence", "pretokenizers": all})
    };
    Ok(Made {
        normalizer: if pre.nfc { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: match pre.split {
            Split::Gpt2 => byte_level(true),
            Split::Digits => sequence(vec![json!({"type": "Digits", "individual_digits": true})], true),
            Split::Regex(regex) => sequence(vec![split_stage(regex)], false),
            Split::Regexes(all) => sequence(all.iter().map(|regex| split_stage(regex)).collect(), false),
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
