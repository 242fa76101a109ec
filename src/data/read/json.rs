//! JSON Lines, one object a line; or one JSON array of objects.
use super::{BLOCK, MAX_ROW, Parsed, Row, Take, kind, with_text};
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fs::File;
use std::io::Read;
use std::path::Path;

pub fn rows(file: &Path, take: &mut Take) -> Result<()> {
    let mut reader = File::open(file).map_err(Error::read(file))?;
    let mut blocks = Blocks { file, reader: &mut reader, rest: vec![], line: 1, first: true, done: false };
    while let Some((block, line)) = blocks.next()? {
        if line == 1 && block.trim_ascii_start().starts_with(b"[") {
            drop(block);
            return array(file, take);
        }
        take(lines(&block, line))?;
    }
    Ok(())
}

/// Whole lines, about [`BLOCK`] bytes of them at a time.
struct Blocks<'a> {
    file: &'a Path,
    reader: &'a mut File,
    /// The beginning of a line that goes on.
    rest: Vec<u8>,
    /// The number of that line.
    line: usize,
    first: bool,
    done: bool,
}

impl Blocks<'_> {
    /// With the number of the block's first line.
    fn next(&mut self) -> Result<Option<(Vec<u8>, usize)>> {
        if self.done {
            return Ok(None);
        }
        let mut block = std::mem::take(&mut self.rest);
        let got = self.reader.by_ref().take(BLOCK as u64).read_to_end(&mut block).map_err(Error::read(self.file))?;
        if std::mem::take(&mut self.first) && block.starts_with(b"\xEF\xBB\xBF") {
            block.drain(..3);
        }
        if got < BLOCK {
            self.done = true;
        } else {
            let end = block.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            self.rest = block.split_off(end);
            if self.rest.len() > MAX_ROW {
                let at = self.line + count_lines(&block);
                let what = format!("has more than {} bytes; a line may have {MAX_ROW}", self.rest.len());
                return Err(Error::content(self.file, format!("line {at}"), what));
            }
        }
        let line = self.line;
        self.line += count_lines(&block);
        Ok(Some((block, line)))
    }
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|b| **b == b'\n').count()
}

fn lines(block: &[u8], first: usize) -> Vec<Parsed> {
    let numbered: Vec<(usize, &[u8])> = block
        .split(|b| *b == b'\n')
        .enumerate()
        .map(|(i, line)| (first + i, line.trim_ascii()))
        .filter(|(_, line)| !line.is_empty())
        .collect();
    numbered.into_par_iter().map(|(number, line)| row(line, number, false)).collect()
}

/// `first` is the line on which `text` begins.
fn row(text: &[u8], first: usize, in_array: bool) -> Parsed {
    let at = |what: String| (format!("line {first}"), what);
    if text.len() > MAX_ROW {
        let one = if in_array { "record" } else { "line" };
        return Err(at(format!("has {} bytes; a {one} may have {MAX_ROW}", text.len())));
    }
    let text =
        std::str::from_utf8(text).map_err(|e| at(format!("must be UTF-8, is not at byte {}", e.valid_up_to())))?;
    let value: Value = serde_json::from_str(text).map_err(|e| {
        let open = !in_array && e.is_eof() && text.starts_with('{');
        let hint = if open { " (one whole object a line is wanted, or one array of objects)" } else { "" };
        let line = first + e.line().saturating_sub(1);
        (format!("line {line}"), format!("bad JSON at column {}: {e}{hint}", e.column()))
    })?;
    match value {
        Value::Object(fields) => Ok(Row { at: format!("line {first}"), fields }),
        other => Err(at(format!("must be a JSON object, got {}", kind(&other)))),
    }
}

/// The array's structure is checked first, then its records are parsed where they stand.
fn array(file: &Path, take: &mut Take) -> Result<()> {
    with_text(file, |text| {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let whole = deserializer.deserialize_seq(Elements).and_then(|elements| deserializer.end().map(|()| elements));
        let elements = whole.map_err(|e| {
            let at = format!("line {}", e.line());
            Error::content(file, at, format!("bad JSON at column {}: {e}", e.column()))
        })?;
        let (mut line, mut counted) = (1, 0);
        let mut rest = &elements[..];
        while !rest.is_empty() {
            let (mut numbered, mut bytes) = (vec![], 0);
            while let Some((element, after)) = rest.split_first().filter(|_| bytes <= BLOCK) {
                let start = element.as_ptr() as usize - text.as_ptr() as usize;
                line += count_lines(&text.as_bytes()[counted..start]);
                (counted, rest) = (start, after);
                bytes += element.len();
                numbered.push((line, *element));
            }
            take(numbered.par_iter().map(|(line, text)| row(text.as_bytes(), *line, true)).collect())?;
        }
        Ok(())
    })
}

/// An array's elements as they are written.
struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<&'de str>;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "an array of objects")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut out = vec![];
        while let Some(raw) = seq.next_element::<&RawValue>()? {
            out.push(raw.get());
        }
        Ok(out)
    }
}
