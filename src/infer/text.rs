//! Tokens as they come to text as it goes out: whole characters, and nothing of a stop string.
use crate::data::tokenizer::{Stream, Tokenizer};
use crate::error::Result;

/// The text of one answer.
pub struct Text<'t> {
    stream: Option<Stream<'t>>,
    stops: Vec<String>,
    /// What may be the beginning of a stop string.
    held: String,
    ended: bool,
}

impl<'t> Text<'t> {
    pub fn new(tokenizer: &'t Tokenizer, stops: &[String]) -> Text<'t> {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Text { stream: Some(tokenizer.stream(true)), stops, held: String::new(), ended: false }
    }

    /// A stop string came: there is no more text.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The text that has become certain.
    pub fn push(&mut self, id: u32) -> Result<String> {
        match &mut self.stream {
            Some(stream) if !self.ended => {
                let text = stream.push(id)?;
                Ok(self.pass(&text))
            }
            _ => Ok(String::new()),
        }
    }

    /// What is left at the end.
    pub fn finish(&mut self) -> Result<String> {
        let Some(stream) = self.stream.take().filter(|_| !self.ended) else { return Ok(String::new()) };
        let rest = stream.finish()?;
        let mut text = self.pass(&rest);
        if !self.ended {
            text += &std::mem::take(&mut self.held);
        }
        Ok(text)
    }

    fn pass(&mut self, more: &str) -> String {
        self.held += more;
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.ended = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begun = |from: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*from..]));
        let sure = self.held.char_indices().map(|(at, _)| at).find(begun).unwrap_or(self.held.len());
        let rest = self.held.split_off(sure);
        std::mem::replace(&mut self.held, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_string_never_shows() {
        let text = |stops: &[&str]| Text {
            stream: None,
            stops: stops.iter().map(|s| s.to_string()).collect(),
            held: String::new(),
            ended: false,
        };
        let mut t = text(&["END", "ENOUGH"]);
        let out: Vec<String> = ["a E", "N", "x", " EN", "OUG", "H of it"].iter().map(|s| t.pass(s)).collect();
        assert_eq!(out, ["a ", "", "ENx", " ", "", ""]);
        assert!(t.ended());
        let mut t = text(&["é!"]);
        assert_eq!([t.pass("cé"), t.pass("é"), t.pass("?")], ["c", "é", "é?"]);
        // the first to come counts, wherever it stands among the stops
        let mut t = text(&["b", "a"]);
        assert_eq!((t.pass("xab"), t.ended()), ("x".into(), true));
    }
}
