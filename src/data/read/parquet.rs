//! Parquet: rows of the columns that matter. A struct's fields that hold nothing are left out, for a struct cannot lack one.
//!
//! The file is untrusted: a panic of the crate is an error here.
use super::{BLOCK, MAX_ROW, Row, Take};
use crate::error::{Error, Result};
use ::parquet::errors::Result as Read;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use ::parquet::record::reader::RowIter;
use ::parquet::schema::types::{Type, TypePtr};
use serde_json::{Map, Value};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Structs in lists in structs ..
const MAX_DEPTH: usize = 64;
const MAX_COLUMNS: usize = 4096;

pub fn rows(file: &Path, wants: &dyn Fn(&str) -> bool, take: &mut Take) -> Result<()> {
    let opened = File::open(file).map_err(Error::read(file))?;
    let reader = guard(file, "", || SerializedFileReader::new(opened))?;
    let schema = reader.metadata().file_metadata().schema_descr().root_schema_ptr();
    let columns: Vec<TypePtr> = schema.get_fields().iter().filter(|c| wants(c.name())).cloned().collect();
    if reader.metadata().file_metadata().schema_descr().num_columns() > MAX_COLUMNS || depth(&schema) > MAX_DEPTH {
        let what = format!("has a schema of more than {MAX_COLUMNS} columns, or deeper than {MAX_DEPTH}");
        return Err(Error::content(file, "", what));
    }
    if columns.is_empty() {
        let have: Vec<&str> = schema.get_fields().iter().map(|c| c.name()).collect();
        return take(vec![Err(("schema".into(), super::super::record::missing(&have)))]);
    }
    let mut iter = guard(file, "", || {
        let chosen = Type::group_type_builder(schema.name()).with_fields(columns).build()?;
        RowIter::from_file_into(Box::new(reader)).project(Some(chosen))
    })?;
    let mut row = 0;
    loop {
        let (mut block, mut bytes) = (vec![], 0);
        while bytes < BLOCK {
            row += 1;
            let at = format!("row {row}");
            let Some(got) = guard(file, &at, || iter.next().transpose())? else { break };
            let before = bytes;
            let cells = got.into_columns().into_iter();
            let fields: Map<String, Value> = cells.map(|(name, cell)| (name, value(cell, &mut bytes))).collect();
            if bytes - before > MAX_ROW {
                let what = format!("has {} bytes; a row may have {MAX_ROW}", bytes - before);
                return Err(Error::content(file, at, what));
            }
            block.push(Ok(Row { at, fields }));
        }
        if block.is_empty() {
            return Ok(());
        }
        take(block)?;
    }
}

fn depth(schema: &Type) -> usize {
    match schema.is_primitive() {
        true => 1,
        false => 1 + schema.get_fields().iter().map(|f| depth(f)).max().unwrap_or(0),
    }
}

/// Runs code of the `parquet` crate; its errors and its panics become ours.
fn guard<T>(file: &Path, at: &str, f: impl FnOnce() -> Read<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Error::content(file, at, format!("bad Parquet: {e}"))),
        Err(_) => Err(Error::content(file, at, "bad Parquet: the file contradicts itself; is it whole?")),
    }
}

/// `bytes` counts what a value takes.
fn value(field: Field, bytes: &mut usize) -> Value {
    *bytes += 16;
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => b.into(),
        Field::Byte(i) => i.into(),
        Field::Short(i) => i.into(),
        Field::Int(i) => i.into(),
        Field::Long(i) => i.into(),
        Field::UByte(i) => i.into(),
        Field::UShort(i) => i.into(),
        Field::UInt(i) => i.into(),
        Field::ULong(i) => i.into(),
        Field::Float16(x) => f64::from(x).into(),
        Field::Float(x) => f64::from(x).into(),
        Field::Double(x) => x.into(),
        Field::Str(text) => {
            *bytes += text.len();
            text.into()
        }
        Field::Bytes(raw) => {
            *bytes += raw.len();
            String::from_utf8_lossy(raw.data()).into_owned().into()
        }
        Field::Group(row) => {
            let cells = row.into_columns().into_iter().filter(|(_, cell)| *cell != Field::Null);
            Value::Object(cells.map(|(name, cell)| (name, value(cell, bytes))).collect())
        }
        Field::ListInternal(list) => list.elements().iter().map(|cell| value(cell.clone(), bytes)).collect(),
        Field::MapInternal(map) => {
            let name = |key: &Field| match key {
                Field::Str(text) => text.clone(),
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(k, v)| (name(k), value(v.clone(), bytes))).collect())
        }
        other => other.to_string().into(),
    }
}
