//! Data files -> rows, some at a time: JSON Lines, JSON, CSV, TSV, Parquet, and plain text for pretraining.
//!
//! A row is what the file says, by its own names; [`record`](super::record) makes sense of it. A bad row stops the run, with
//! its file and line.
mod json;
mod parquet;
mod table;
use super::source::extension;
use crate::error::{Error, Result};
use memmap2::Mmap;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longest row that is read.
const MAX_ROW: usize = 16 << 20;
/// Bytes of rows that are handed on together; at least one row.
const BLOCK: usize = 8 << 20;
/// Longest document of a text file.
const MAX_DOCUMENT: usize = 4 << 30;

/// One record as the file holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `line 12`, `row 3` of a Parquet file, `document 7` of a text.
    pub at: String,
    pub fields: Map<String, Value>,
}

/// A row, or where it should be and what is wrong with it.
pub type Parsed = Result<Row, (String, String)>;

/// Takes the rows of a file block by block.
pub type Take<'a> = dyn FnMut(Vec<Parsed>) -> Result<()> + 'a;

/// Hands all rows of `file` to `take`, in order. `wants` says which columns matter, where a format can leave others unread.
pub fn read(file: &Path, pretrain: bool, wants: &dyn Fn(&str) -> bool, take: &mut Take) -> Result<()> {
    let kind = extension(file);
    let fail = |what: &str| Err(Error::content(file, "", what));
    let start = start(file)?;
    if start.starts_with(b"PAR1") {
        return parquet::rows(file, wants, take);
    }
    if let Some(kind) = foreign(&start) {
        return fail(&format!("must be JSON Lines, JSON, CSV, Parquet or text in UTF-8, but looks like {kind}"));
    }
    match kind.as_str() {
        "parquet" => fail("does not begin as Parquet does, with PAR1; is it whole?"),
        "csv" => table::rows(file, b',', take),
        "tsv" => table::rows(file, b'\t', take),
        "txt" | "md" if pretrain => documents(file, take),
        "txt" | "md" => fail(
            "plain text is for pretraining (method = \"pretrain\"); for fine-tuning give JSON Lines, JSON, CSV or Parquet",
        ),
        "jsonl" | "ndjson" | "json" => json::rows(file, take),
        other => fail(&format!(
            "ends in {other:?}, which says nothing about its content; name it .jsonl, .json, .csv, .tsv, .parquet or .txt"
        )),
    }
}

/// Nothing else is opened: a pipe may never end.
pub(super) fn check_regular(file: &Path) -> Result<()> {
    let meta = std::fs::metadata(file).map_err(Error::read(file))?;
    if meta.is_dir() {
        return Err(Error::content(file, "", "is a directory where a file is wanted"));
    }
    if !meta.is_file() {
        return Err(Error::content(file, "", "is not a regular file; save the data to one first"));
    }
    Ok(())
}

/// The first bytes of a regular file.
fn start(file: &Path) -> Result<Vec<u8>> {
    check_regular(file)?;
    let mut start = vec![];
    let opened = File::open(file).map_err(Error::read(file))?;
    opened.take(64).read_to_end(&mut start).map_err(Error::read(file))?;
    Ok(start)
}

/// What a file that is no text may be, by its first bytes.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    const KINDS: &[(&[u8], &str)] = &[
        (b"\x1F\x8B", "gzip; unpack it first"),
        (b"\x28\xB5\x2F\xFD", "zstd; unpack it first"),
        (b"\xFD7zXZ", "xz; unpack it first"),
        (b"BZh", "bzip2; unpack it first"),
        (b"PK\x03\x04", "a zip archive or a spreadsheet; unpack it, or save it as CSV"),
        (b"ARROW1", "Arrow; save it as Parquet"),
        (b"\xFF\xFF\xFF\xFF", "an Arrow stream; save it as Parquet"),
        (b"PARE", "encrypted Parquet"),
        (b"\xFF\xFE", "UTF-16; convert it to UTF-8"),
        (b"\xFE\xFF", "UTF-16; convert it to UTF-8"),
        (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself"),
        (b"<!DOCTYPE", "a web page"),
        (b"<html", "a web page"),
        (b"SQLite format", "a SQLite database"),
        (b"\x80\x04\x95", "a Python pickle"),
    ];
    KINDS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| *kind)
}

/// A file's text where it lies, so that it may be larger than the memory; a byte order mark is left out.
fn with_text(file: &Path, take: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let opened = File::open(file).map_err(Error::read(file))?;
    // SAFETY: data files are not changed while they are read; one that is, is refused at the end by its size or its time.
    let bytes = unsafe { Mmap::map(&opened) }.map_err(Error::read(file))?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count();
        Error::content(file, format!("line {line}"), format!("must be UTF-8, is not at byte {}", e.valid_up_to()))
    })?;
    take(text.strip_prefix('\u{FEFF}').unwrap_or(text))
}

/// Documents separated by form feeds.
fn documents(file: &Path, take: &mut Take) -> Result<()> {
    with_text(file, |text| {
        let (mut block, mut bytes) = (vec![], 0);
        let parts = text.split('\x0C').map(str::trim).enumerate().filter(|(_, text)| !text.is_empty());
        for (i, text) in parts {
            if text.len() > MAX_DOCUMENT {
                let what =
                    format!("has {} bytes; one may have {MAX_DOCUMENT}: put form feeds between documents", text.len());
                return Err(Error::content(file, format!("document {}", i + 1), what));
            }
            bytes += text.len();
            let fields = Map::from_iter([("text".to_string(), Value::from(text))]);
            block.push(Ok(Row { at: format!("document {}", i + 1), fields }));
            if bytes > BLOCK {
                bytes = 0;
                take(std::mem::take(&mut block))?;
            }
        }
        take(block)
    })
}

/// The field's name for people.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
