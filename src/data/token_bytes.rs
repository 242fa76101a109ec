//! Tokens as the bytes they stand for: a token may be a part of a character, of which there is no text.
use serde_json::Value;

/// How a tokenizer writes bytes in the texts of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// A printable character for each byte, as in GPT-2.
    ByteLevel,
    /// `<0xE8>` for a byte that no token has, `▁` for a blank: SentencePiece's.
    Fallback,
    Plain,
}

impl Writing {
    /// That of a `tokenizer.json`, by how it decodes.
    pub fn of(json: &Value) -> Writing {
        let decoder = &json["decoder"];
        let stages = decoder["decoders"].as_array().map_or(std::slice::from_ref(decoder), Vec::as_slice);
        let has = |kinds: &[&str]| stages.iter().any(|s| s["type"].as_str().is_some_and(|kind| kinds.contains(&kind)));
        match () {
            _ if has(&["ByteLevel"]) => Writing::ByteLevel,
            _ if has(&["ByteFallback", "Metaspace"]) => Writing::Fallback,
            _ => Writing::Plain,
        }
    }

    /// What a token of this text stands for.
    pub fn bytes(self, token: &str) -> Vec<u8> {
        let plain = || token.as_bytes().to_vec();
        match self {
            Writing::Plain => plain(),
            Writing::ByteLevel => token.chars().map(byte).collect::<Option<_>>().unwrap_or_else(plain),
            Writing::Fallback => match named(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
        }
    }
}

/// The byte of a character of GPT-2's alphabet: printable ones of Latin-1 are themselves, the 68 others follow from 256 on.
fn byte(c: char) -> Option<u8> {
    match c as u32 {
        own @ (33..=126 | 161..=172 | 174..=255) => Some(own as u8),
        low @ 256..=288 => Some((low - 256) as u8),
        high @ 289..=322 => Some((high - 289 + 127) as u8),
        323 => Some(173),
        _ => None,
    }
}

fn named(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bytes_of_tokens() {
        let alphabet: Vec<u8> = ('\u{21}'..='\u{143}').filter_map(byte).collect();
        let mut sorted = alphabet.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..=255).collect::<Vec<u8>>());
        assert_eq!(Writing::ByteLevel.bytes("ĠèªŀĊ"), " 語\n".as_bytes());
        assert_eq!(Writing::ByteLevel.bytes("èª"), [0xe8, 0xaa]);
        assert_eq!(Writing::ByteLevel.bytes("語"), "語".as_bytes());
        assert_eq!((Writing::Fallback.bytes("<0xE8>"), Writing::Fallback.bytes("▁a")), (vec![0xe8], b" a".to_vec()));
        assert_eq!(Writing::Fallback.bytes("<0xé>"), "<0xé>".as_bytes());
        let stages = json!({ "decoder": { "type": "Sequence", "decoders": [{ "type": "ByteFallback" }] } });
        assert_eq!(Writing::of(&stages), Writing::Fallback);
        assert_eq!(Writing::of(&json!({ "decoder": { "type": "ByteLevel" } })), Writing::ByteLevel);
        assert_eq!(Writing::of(&json!({ "decoder": null })), Writing::Plain);
    }
}
