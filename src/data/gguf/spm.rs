//! SentencePiece's BPE: of all pairs of neighbours, the one whose whole has the highest score is merged first.
//!
//! The file has scores and no merges; the list of merges in that order does the same, as in transformers' conversion.
use super::pieces::{Pieces, list};
use super::{BESIDE, KEY, Made};
use crate::error::Result;
use crate::io::gguf::{Gguf, Value as Meta};
use serde_json::{Value, json};
use std::collections::HashMap;

pub(super) fn make(gguf: &Gguf, pieces: &Pieces) -> Result<Made> {
    let key = format!("{KEY}.scores");
    let scores = list(gguf, "scores")?.iter().map(Meta::as_f64).collect::<Option<Vec<f64>>>();
    let scores = scores.filter(|s| s.len() == pieces.texts.len() && s.iter().all(|x| x.is_finite()));
    let Some(scores) = scores else { return gguf.wrong(&key, "a number for each token is wanted") };
    let unknown = (0..pieces.texts.len()).find(|id| pieces.is_unknown(*id)).map(|id| pieces.texts[id]);
    if !pieces.texts.contains(&"<0x0A>") {
        return gguf.wrong(&format!("{KEY}.tokens"), format!("has no bytes to fall back to, as `<0x0A>`: {BESIDE}"));
    }
    let prefix = gguf.get(&format!("{KEY}.add_space_prefix")).and_then(Meta::as_bool).unwrap_or(true);
    let spaces = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![spaces(" ", "▁")];
    let mut decoders = vec![spaces("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let phi3 = gguf.get("general.architecture").and_then(Meta::as_text) == Some("phi3");
    Ok(Made {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": pieces.vocab(), "merges": merges(pieces, &scores)}),
        post_processor: None,
        adds_bos: true,
        strip_after: phi3,
    })
}

/// Every way to make a token of two, highest score first; of equals the longer left part, then the longer right one.
fn merges(pieces: &Pieces, scores: &[f64]) -> Vec<Value> {
    let ids: HashMap<&str, usize> =
        pieces.used().filter(|id| pieces.is_text(*id)).map(|id| (pieces.texts[id], id)).collect();
    let mut all: Vec<(usize, usize, usize)> = Vec::new();
    for whole in pieces.used().filter(|id| pieces.is_text(*id)) {
        let text = pieces.texts[whole];
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let first = all.len();
        all.extend(cuts.filter_map(|(a, b)| Some((whole, *ids.get(a)?, *ids.get(b)?))));
        all[first..].sort_by_key(|(_, a, b)| (*a, *b));
    }
    let length = |id: usize| pieces.texts[id].chars().count();
    let rank = |(whole, a, b): &(usize, usize, usize)| (scores[*whole], length(*a), length(*b));
    // stable: what is left of the order is that of the ids
    all.sort_by(|x, y| {
        let ((sx, ax, bx), (sy, ay, by)) = (rank(x), rank(y));
        sy.total_cmp(&sx).then((ay, by).cmp(&(ax, bx)))
    });
    all.into_iter().map(|(_, a, b)| json!([pieces.texts[a], pieces.texts[b]])).collect()
}
