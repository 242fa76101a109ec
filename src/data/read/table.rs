//! CSV and TSV: the first line names the columns, each other record is a row of texts. An empty cell is no value.
use super::{BLOCK, MAX_ROW, Parsed, Row, Take};
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::fs::File;
use std::path::Path;

const MAX_COLUMNS: usize = 4096;

pub fn rows(file: &Path, delimiter: u8, take: &mut Take) -> Result<()> {
    let opened = Capped { inner: File::open(file).map_err(Error::read(file))?, left: MAX_ROW };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(false).from_reader(opened);
    let names = header(file, &mut reader)?;
    let mut record = csv::StringRecord::new();
    let (mut block, mut bytes) = (vec![], 0);
    loop {
        reader.get_mut().left = MAX_ROW;
        let line = reader.position().line();
        match reader.read_record(&mut record) {
            Ok(false) => break,
            Ok(true) => {
                bytes += record.as_slice().len();
                block.push(Ok(row(&names, &record, line)));
            }
            Err(e) => {
                block.push(fault(file, line, e)?);
                break;
            }
        }
        if bytes > BLOCK {
            bytes = 0;
            take(std::mem::take(&mut block))?;
        }
    }
    take(block)
}

fn header(file: &Path, reader: &mut csv::Reader<Capped>) -> Result<Vec<String>> {
    let fail = |what: String| Err(Error::content(file, "line 1", what));
    let names = match reader.headers() {
        Ok(names) => names.iter().map(|name| name.trim().to_string()).collect::<Vec<_>>(),
        Err(e) => {
            let what = fault(file, 1, e)?.expect_err("a fault");
            return Err(Error::content(file, what.0, what.1));
        }
    };
    if names.len() > MAX_COLUMNS {
        return fail(format!("names {} columns; a table may have {MAX_COLUMNS}", names.len()));
    }
    let mut seen = HashSet::new();
    match names.iter().find(|name| !name.is_empty() && !seen.insert(*name)) {
        Some(twice) => fail(format!("names the column {twice:?} twice")),
        None => Ok(names),
    }
}

fn row(names: &[String], record: &csv::StringRecord, line: u64) -> Row {
    let cells = names.iter().zip(record).filter(|(name, cell)| !name.is_empty() && !cell.is_empty());
    let fields: Map<String, Value> = cells.map(|(name, cell)| (name.clone(), Value::from(cell))).collect();
    let line = record.position().map_or(line, csv::Position::line);
    Row { at: format!("line {line}"), fields }
}

/// What is wrong with a record that is no record; a file that cannot be read is an error by itself.
fn fault(file: &Path, line: u64, e: csv::Error) -> Result<Parsed> {
    let line = e.position().map_or(line, csv::Position::line);
    let what = match e.into_kind() {
        csv::ErrorKind::Io(e) if e.kind() == std::io::ErrorKind::FileTooLarge => {
            format!("has more than {MAX_ROW} bytes; is a quote left open?")
        }
        csv::ErrorKind::Io(source) => return Err(Error::Read { file: file.to_path_buf(), source }),
        csv::ErrorKind::Utf8 { err, .. } => format!("must be UTF-8, is not in cell {}", err.field() + 1),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("has {len} cells where the first line names {expected_len} columns")
        }
        other => format!("bad CSV: {other:?}"),
    };
    Ok(Err((format!("line {line}"), what)))
}

/// A file of which one record may take so many bytes: an open quote would swallow the rest of the file otherwise.
struct Capped {
    inner: File,
    left: usize,
}

impl std::io::Read for Capped {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        let end = buf.len().min(self.left);
        let got = self.inner.read(&mut buf[..end])?;
        self.left -= got;
        Ok(got)
    }
}
