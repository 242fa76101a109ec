//! TOML and YAML become one tree in which every value knows its line, so that a bad value can name it.
use crate::error::{Error, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// A config is a page of keys: anything longer is another kind of file.
const MAX_BYTES: u64 = 1 << 20;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    Line(usize),
    /// A `key=value` of the command line, as given.
    Override(String),
}

#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    List(Vec<Node>),
    Table(Vec<(String, Node)>),
}

#[derive(Clone, Debug)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => write!(f, "nothing"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Int(i) => write!(f, "{i}"),
            Value::Float(x) => write!(f, "{x}"),
            Value::Str(s) => write!(f, "{s:?}"),
            Value::List(_) => write!(f, "a list"),
            Value::Table(_) => write!(f, "a table"),
        }
    }
}

/// The keys of `file`, which is TOML or YAML by its extension.
pub fn read(file: &Path) -> Result<Vec<(String, Node)>> {
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let parse = match extension.as_str() {
        "toml" => toml,
        "yaml" | "yml" => yaml,
        _ => return Err(Error::content(file, "", "a config ends in .toml, .yaml or .yml: rename it")),
    };
    let size = std::fs::metadata(file).map_err(Error::read(file))?.len();
    if size > MAX_BYTES {
        return Err(Error::content(file, "", format!("a config has at most {MAX_BYTES} bytes, got {size}")));
    }
    let bytes = std::fs::read(file).map_err(Error::read(file))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = line_of(e.as_bytes(), e.utf8_error().valid_up_to());
        Error::content(file, format!("line {at}"), "is not UTF-8: save the file as UTF-8")
    })?;
    parse(&text).map_err(|(line, what)| {
        let at = if line == 0 { String::new() } else { format!("line {line}") };
        Error::content(file, at, format!("is not valid {}: {what}", extension.to_uppercase()))
    })
}

/// The value of a `key=value` override: TOML where it parses as such, else the text itself.
pub fn read_override(value: &str, place: &Place) -> Node {
    let parsed = DeValue::parse(value).ok().and_then(|v| toml_value(v.into_inner(), &|_| place.clone()).ok());
    let value = parsed.unwrap_or_else(|| Value::Str(value.to_string()));
    Node { place: place.clone(), value }
}

/// Lines count from 1.
fn line_of(text: &[u8], byte: usize) -> usize {
    1 + text[..byte.min(text.len())].iter().filter(|b| **b == b'\n').count()
}

/// A parser's complaint: the line (0: unknown) and what is wrong.
type Complaint = (usize, String);

fn toml(text: &str) -> Result<Vec<(String, Node)>, Complaint> {
    let at = |byte: usize| Place::Line(line_of(text.as_bytes(), byte));
    let table = DeTable::parse(text).map_err(|e| {
        let line = e.span().map_or(0, |s| line_of(text.as_bytes(), s.start));
        (line, e.message().replace('\n', ", "))
    })?;
    toml_table(table.into_inner(), &at)
}

fn toml_table(table: DeTable, at: &dyn Fn(usize) -> Place) -> Result<Vec<(String, Node)>, Complaint> {
    // The parser sorts by name; people read from the top.
    let mut pairs: Vec<_> = table.into_iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    let mut out = Vec::new();
    for (key, value) in pairs {
        let place = at(key.span().start);
        let placed = |(line, what)| match &place {
            Place::Line(of_key) if line == 0 => (*of_key, what),
            _ => (line, what),
        };
        let value = toml_value(value.into_inner(), at).map_err(placed)?;
        out.push((key.into_inner().into_owned(), Node { place, value }));
    }
    Ok(out)
}

fn toml_value(value: DeValue, at: &dyn Fn(usize) -> Place) -> Result<Value, Complaint> {
    Ok(match value {
        DeValue::String(s) => Value::Str(s.into_owned()),
        DeValue::Integer(i) => Value::Int(
            i64::from_str_radix(i.as_str(), i.radix()).map_err(|_| (0, format!("the number {i} is too large")))?,
        ),
        DeValue::Float(x) => Value::Float(x.as_str().parse().map_err(|_| (0, format!("{x} is not a number")))?),
        DeValue::Boolean(b) => Value::Bool(b),
        // No key wants a date; as text it may be part of a path.
        DeValue::Datetime(d) => Value::Str(d.to_string()),
        DeValue::Array(array) => {
            let mut list = Vec::new();
            for item in array {
                let place = at(item.span().start);
                list.push(Node { place, value: toml_value(item.into_inner(), at)? });
            }
            Value::List(list)
        }
        DeValue::Table(table) => Value::Table(toml_table(table, at)?),
    })
}

fn yaml(text: &str) -> Result<Vec<(String, Node)>, Complaint> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let root: Spanned<Raw> = serde_saphyr::from_str(text).map_err(|e| {
        let line = e.location().map_or(0, |l| l.line() as usize);
        let first = e.without_snippet().to_string();
        (line, first.lines().next().unwrap_or("").to_string())
    })?;
    match root.value.0 {
        Value::Table(table) => Ok(table),
        Value::Null => Ok(Vec::new()),
        other => Err((1, format!("a config is a table of keys, got {other}"))),
    }
}

/// A YAML value that is yet to be given its place.
struct Raw(Value);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

fn node(spanned: Spanned<Raw>) -> Node {
    Node { place: Place::Line(spanned.referenced.line() as usize), value: spanned.value.0 }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a value")
    }
    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw(Value::Null))
    }
    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw(Value::Null))
    }
    fn visit_bool<E>(self, b: bool) -> Result<Raw, E> {
        Ok(Raw(Value::Bool(b)))
    }
    fn visit_i64<E>(self, i: i64) -> Result<Raw, E> {
        Ok(Raw(Value::Int(i)))
    }
    fn visit_u64<E: serde::de::Error>(self, i: u64) -> Result<Raw, E> {
        let i = i64::try_from(i).map_err(|_| E::custom(format!("the number {i} is too large")))?;
        Ok(Raw(Value::Int(i)))
    }
    fn visit_f64<E>(self, x: f64) -> Result<Raw, E> {
        Ok(Raw(Value::Float(x)))
    }
    fn visit_str<E>(self, s: &str) -> Result<Raw, E> {
        Ok(Raw(Value::Str(s.to_string())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(node(item));
        }
        Ok(Raw(Value::List(list)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut table = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let value: Raw = map.next_value()?;
            let place = Place::Line(key.referenced.line() as usize);
            table.push((key.value, Node { place, value: value.0 }));
        }
        Ok(Raw(Value::Table(table)))
    }
}
